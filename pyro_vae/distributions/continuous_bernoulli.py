"""The continuous Bernoulli distribution, exact for every logit."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

__all__ = ["ContinuousBernoulli"]

_SERIES_BELOW = 0.05
"""The bound below which the power series replaces the closed form, which cancels.

The error of the series is below 1e-13."""

_VARIANCE_SERIES_BELOW = 0.5
"""The same for the variance, whose closed form cancels sooner; the error is below 1e-11."""

_DRAW_SERIES_BELOW = 0.02
"""The same for a draw, whose gradient cancels; the errors are below 1e-9."""


class ContinuousBernoulli(TorchDistribution):
    r"""The continuous Bernoulli distribution over :math:`[0, 1]`.

    .. math:: p(x) = \exp(\eta x - A(\eta)), \qquad A(\eta) = \log \frac{e^\eta - 1}{\eta}

    PyTorch's class of this name clamps the probabilities in its normalizer: in single precision
    its density integrates to less than one for :math:`|\eta| > 16`. This class uses the logits and
    is normalized for all of them.

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
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "ContinuousBernoulli":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(ContinuousBernoulli, _instance)
        new.logits = self.logits.expand(batch_shape)
        super(ContinuousBernoulli, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        r"""The mean :math:`A'(\eta)`."""
        near, small, eta = _split_logits(self.logits, _SERIES_BELOW)
        series = 0.5 + small / 12 - small**3 / 720 + small**5 / 30240
        # As for a draw, by symmetry, so that nothing overflows on the way back.
        size = eta.abs()
        low = 1 / size + torch.exp(-size) / torch.expm1(-size)
        return torch.where(near, series, torch.where(eta > 0, 1 - low, low))

    @property
    def variance(self) -> Tensor:
        r"""The variance :math:`A''(\eta)`."""
        near, small, eta = _split_logits(self.logits, _VARIANCE_SERIES_BELOW)
        square = small**2
        series = 1 / 12 - square / 240 + square**2 / 6048 - square**3 / 172800 + square**4 / 5322240
        tail = torch.exp(-eta.abs())
        return torch.where(near, series, 1 / eta**2 - tail / torch.expm1(-eta.abs()) ** 2)

    def log_normalizer(self) -> Tensor:
        r"""Returns :math:`A(\eta)`."""
        near, small, eta = _split_logits(self.logits, _SERIES_BELOW)
        series = small / 2 + small**2 / 24 - small**4 / 2880
        size = eta.abs()
        exact = eta.clamp(min=0) + torch.log(-torch.expm1(-size) / size)
        return torch.where(near, series, exact)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - self.log_normalizer()

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws differentiably, by inversion of the distribution function."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        near, small, eta = _split_logits(self.logits, _DRAW_SERIES_BELOW)
        # A draw for -|eta|, where exp cannot overflow, is reflected if eta is positive.
        size = eta.abs()
        draw = -torch.log1p(u * torch.expm1(-size)) / size
        exact = torch.where(eta > 0, 1 - draw, draw)
        # The quantile is K(eta) / eta, with K the cumulant generating function of Bernoulli(u).
        v = u * (1 - u)
        third, fourth, fifth = v * (1 - 2 * u), v * (1 - 6 * v), v * (1 - 2 * u) * (1 - 12 * v)
        series = u + small * (
            v / 2 + small * (third / 6 + small * (fourth / 24 + small * fifth / 120))
        )
        return torch.where(near, series, exact).clamp(0, 1)


def _split_logits(logits: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mask of the series, logits safe for the series, and for the closed form.

    ``torch.where`` passes a zero gradient to its unused branch, which overflow or a division by
    zero would turn into NaN.
    """
    near = logits.abs() < bound
    return (
        near,
        torch.where(near, logits, torch.zeros_like(logits)),
        torch.where(near, torch.ones_like(logits), logits),
    )
