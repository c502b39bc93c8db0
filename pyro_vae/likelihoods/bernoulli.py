"""The Bernoulli likelihood."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.conditional import Likelihood
from pyro_vae.likelihoods.core.em import sum_rows
from pyro_vae.validation import check_flag, check_shape

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    r"""A Bernoulli likelihood, for data of zeros and ones.

    .. math:: \log p(x \mid z) = \sum_i x_i \log \theta_i(z) + (1 - x_i) \log (1 - \theta_i(z))

    Grey-scale values are refused. Their score by this formula, the cross-entropy, is common but is
    not a likelihood, and cannot be compared with other models. Pass ``grey_scale=True`` to use it.

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
          (Loaiza-Ganem and Cunningham, 2019), https://arxiv.org/abs/1907.06845

    Arguments:
        event_shape: The shape of one datum.
        grey_scale: Whether to score values between zero and one by their cross-entropy.

    Example:
        >>> Bernoulli((2,))(torch.zeros(1, 2)).log_prob(torch.tensor([0.0, 1.0]))
        tensor(-1.3863)
    """

    measure = "mass"

    def __init__(self, event_shape: Sequence[int], *, grey_scale: bool = False) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.feature_shape = torch.Size((1, *self.event_shape))
        self.grey_scale = check_flag("grey_scale", grey_scale)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, 1, *event_shape)``."""
        logits = features.squeeze(-1 - len(self.event_shape))
        base = dist.Bernoulli(logits=logits, validate_args=False if self.grey_scale else None)
        return base.to_event(len(self.event_shape))

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> dist.TorchDistribution | None:
        """Computes the M step, with one pseudo-count for zero and one for one."""
        if self.grey_scale:
            return None
        size, total = sum_rows(responsibilities, x)
        means = (total + smoothing) / (size + 2 * smoothing)
        return dist.Bernoulli(means, validate_args=False)

    def extra_repr(self) -> str:
        """Shows the shape, and whether grey-scale values are allowed."""
        return super().extra_repr() + (", grey_scale=True" if self.grey_scale else "")

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values are zero or one."""
        low, high = x.amin().item(), x.amax().item()
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"Expected x to be zeros and ones for a Bernoulli likelihood, got values from "
                f"{low:.4g} to {high:.4g}: use Normal for real numbers (vae/likelihood=normal)"
            )
        if not self.grey_scale and not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(
                "Expected x to be zeros and ones for a Bernoulli likelihood, got grey-scale "
                "values: binarize the data, use ContinuousBernoulli, Normal or Categorical, or "
                "use the cross-entropy, which is not a likelihood, by Bernoulli(grey_scale=True) "
                "(vae.likelihood.grey_scale=true)"
            )
