"""The continuous Bernoulli distribution, exact for every logit."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["ContinuousBernoulli"]

SERIES_BELOW = 0.05
"""Where the power series, of error below 1e-13, replaces the closed form, which cancels."""


class ContinuousBernoulli(TorchDistribution):
    r"""The continuous Bernoulli distribution over :math:`[0, 1]`.

    .. math:: p(x) = \exp(\eta x - A(\eta)), \qquad A(\eta) = \log \frac{e^\eta - 1}{\eta}

    PyTorch's class of this name clamps the probabilities in its normalizer: in single precision
    its density integrates to less than one as soon as :math:`|\eta| > 16`. This one works on the
    logits and is normalized for all of them.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
          (Loaiza-Ganem and Cunningham, 2019), https://arxiv.org/abs/1907.06845

    Arguments:
        logits: The natural parameter :math:`\eta`, of any shape.

    Example:
        >>> import torch
        >>> ContinuousBernoulli(torch.zeros(2)).log_prob(torch.tensor([0.1, 0.9]))
        tensor([0., 0.])
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size, _instance: TorchDistribution | None = None
    ) -> "ContinuousBernoulli":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(ContinuousBernoulli, _instance)
        new.logits = self.logits.expand(batch_shape)
        super(ContinuousBernoulli, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self.__dict__.get("_validate_args")
        return new

    @property
    def mean(self) -> Tensor:
        r"""The mean :math:`A'(\eta)`."""
        near, eta = split(self.logits)
        series = 0.5 + self.logits / 12 - self.logits**3 / 720 + self.logits**5 / 30240
        return torch.where(near, series, -1 / torch.expm1(-eta) - 1 / eta)

    @property
    def variance(self) -> Tensor:
        r"""The variance :math:`A''(\eta)`."""
        near, eta = split(self.logits)
        series = 1 / 12 - self.logits**2 / 240 + self.logits**4 / 6048
        tail = torch.exp(-eta.abs())
        return torch.where(near, series, 1 / eta**2 - tail / torch.expm1(-eta.abs()) ** 2)

    def log_normalizer(self) -> Tensor:
        r"""Returns :math:`A(\eta)`."""
        near, eta = split(self.logits)
        series = self.logits / 2 + self.logits**2 / 24 - self.logits**4 / 2880
        size = eta.abs()
        exact = eta.clamp(min=0) + torch.log(-torch.expm1(-size) / size)
        return torch.where(near, series, exact)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density, in nats."""
        if self.__dict__.get("_validate_args", TorchDistribution._validate_args):
            self._validate_sample(value)
        return self.logits * value - self.log_normalizer()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws by inversion of the distribution function, differentiably."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        near, eta = split(self.logits)
        # By symmetry the draw is made for -|eta|, where exp cannot overflow, and reflected.
        size = eta.abs()
        draw = -torch.log1p(u * torch.expm1(-size)) / size
        exact = torch.where(eta > 0, 1 - draw, draw)
        series = u + self.logits * u * (1 - u) / 2
        return torch.where(near, series, exact).clamp(0, 1)


def split(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where the series holds, and logits that are safe to divide by elsewhere."""
    near = logits.abs() < SERIES_BELOW
    return near, torch.where(near, torch.ones_like(logits), logits)
