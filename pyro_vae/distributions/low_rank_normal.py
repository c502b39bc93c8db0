"""The multivariate normal of a low-rank posterior."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.types import _size

from pyro_vae.distributions.cholesky import factorize

__all__ = ["LowRankNormal"]


class LowRankNormal(dist.LowRankMultivariateNormal):
    r"""A normal with covariance :math:`S (I + B B^\top) S`, with a diagonal :math:`S`.

    In these parameters the small matrix :math:`I + B^\top B` is well conditioned for any
    :math:`S`. PyTorch's registry lacks the KL to independent elements. The formula is registered
    for this class only.

    Arguments:
        loc: The mean, ``(*batch, dim)``.
        scale: The diagonal of :math:`S`, of this shape.
        factor: :math:`B`, ``(*batch, dim, rank)``.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> q = LowRankNormal(torch.zeros(2), torch.ones(2), torch.zeros(2, 1))
        >>> p = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> torch.distributions.kl_divergence(q, p)
        tensor(0.)
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, factor: Tensor, *, validate_args: bool | None = None
    ) -> None:
        # The attributes that the constructor of PyTorch sets.
        batch = torch.broadcast_shapes(loc.shape[:-1], scale.shape[:-1], factor.shape[:-2])
        self._unbroadcasted_cov_factor = scale.unsqueeze(-1) * factor
        self._unbroadcasted_cov_diag = scale**2
        self.loc = loc.expand(*batch, -1)
        self.cov_factor = self._unbroadcasted_cov_factor.expand(*batch, -1, -1)
        self.cov_diag = self._unbroadcasted_cov_diag.expand(*batch, -1)
        eye = torch.eye(factor.shape[-1], dtype=loc.dtype, device=loc.device)
        self._capacitance_tril = factorize(eye + factor.mT @ factor)
        Distribution.__init__(self, batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any | None = None) -> "LowRankNormal":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(LowRankNormal, _instance)
        return super().expand(batch_shape, _instance=new)
