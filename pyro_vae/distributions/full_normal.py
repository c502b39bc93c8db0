"""The multivariate normal of a full-covariance posterior."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.types import _size

from pyro_vae.distributions.draws import Draw

__all__ = ["FullNormal"]


class FullNormal(dist.MultivariateNormal):
    r"""A multivariate normal with a closed-form KL to independent normals.

    PyTorch's registry has no formula for this pair, the most common one for a full-covariance
    posterior. The formula is registered for this class only, so that other multivariate normals do
    not change.

    With :math:`z = \mu + L \epsilon` the log density of a draw is that of its noise,

    .. math::
        \log q(z) = -\tfrac12 \epsilon^\top \epsilon - \sum_d \log L_{dd}
        - \tfrac{D}{2} \log 2 \pi

    Without gradients the last draw is scored by this formula, which is exact. Solving for
    :math:`\epsilon` is not: for a :math:`z` rounded to single precision, the solution overflows if
    :math:`L` is ill-conditioned.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> q = FullNormal(torch.zeros(2), scale_tril=torch.eye(2))
        >>> p = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> torch.distributions.kl_divergence(q, p)
        tensor(0.)
    """

    _last_draw: Draw | None = None

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws differentiably, and stores the noise of the draw."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        tril = self._unbroadcasted_scale_tril
        value = self.loc + (tril @ noise.unsqueeze(-1)).squeeze(-1)
        self._last_draw = Draw.remember(value, noise)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density, in nats."""
        last = self._last_draw
        # With gradients the density depends on the value itself, and the noise is not a constant.
        if torch.is_grad_enabled() or last is None or not last.is_unchanged(value):
            return super().log_prob(value)
        log_det = self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * (last.other.square().sum(-1) + constant) - log_det
