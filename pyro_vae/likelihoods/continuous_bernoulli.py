"""The continuous Bernoulli likelihood."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.conditional import Likelihood
from pyro_vae.likelihoods.core.em import sum_rows
from pyro_vae.validation import check_positive, check_shape

__all__ = ["ContinuousBernoulli"]


class ContinuousBernoulli(Likelihood):
    r"""A continuous Bernoulli likelihood, for data in :math:`[0, 1]`.

    .. math:: \log p(x \mid z) = \sum_i \eta_i(z) x_i - \log \frac{e^{\eta_i(z)} - 1}{\eta_i(z)}

    The density at 0 and 1 grows without limit with :math:`|\eta|`, and pixels that are always
    black would drive it to infinity. The logits are therefore softly bounded by ``max_logit``.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
          (Loaiza-Ganem and Cunningham, 2019), https://arxiv.org/abs/1907.06845

    Arguments:
        event_shape: The shape of one datum.
        max_logit: The bound of :math:`|\eta|`, in ``max_logit * tanh(h / max_logit)``.

    Raises:
        ValueError: If ``max_logit`` is not positive.

    Example:
        >>> ContinuousBernoulli((2,))(torch.zeros(1, 2)).log_prob(torch.tensor([0.2, 0.7]))
        tensor(0.)
    """

    measure = "density"

    def __init__(self, event_shape: Sequence[int], *, max_logit: float = 20.0) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.feature_shape = torch.Size((1, *self.event_shape))
        self.max_logit = check_positive("max_logit", max_logit)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, 1, *event_shape)``."""
        h = features.squeeze(-1 - len(self.event_shape))
        logits = self.max_logit * torch.tanh(h / self.max_logit)
        return distributions.ContinuousBernoulli(logits).to_event(len(self.event_shape))

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> dist.TorchDistribution:
        """Computes the M step: finds the logits whose means are those of the rows."""
        size, total = sum_rows(responsibilities, x)
        mean = (total + smoothing / 2) / (size + smoothing)
        low, high = torch.full_like(mean, -self.max_logit), torch.full_like(mean, self.max_logit)
        for _ in range(50):
            middle = (low + high) / 2
            above = distributions.ContinuousBernoulli(middle).mean > mean
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return distributions.ContinuousBernoulli((low + high) / 2, validate_args=False)

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values lie between zero and one."""
        low, high = x.amin().item(), x.amax().item()
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"Expected x to lie in [0, 1] for a continuous Bernoulli likelihood, got values "
                f"from {low:.4g} to {high:.4g}"
            )
