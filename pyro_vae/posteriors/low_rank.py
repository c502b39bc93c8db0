"""The low-rank normal posterior."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.conditional import Posterior
from pyro_vae.distributions import LowRankNormal
from pyro_vae.validation import check_positive, check_size

__all__ = ["LowRank"]

_MAX_RATIO = 10.0
"""The most that a factor can be in units of the diagonal, for densities in single precision."""


class LowRank(Posterior):
    r"""A normal posterior whose covariance is of low rank plus diagonal.

    .. math::
        q(z \mid x) = \mathcal{N}(z \mid \mu(x), \Sigma(x)), \qquad
        \Sigma = S \left(I + \tfrac1R B B^\top\right) S

    :math:`S` is diagonal, :math:`B` is of shape ``(latent_dim, rank)``. A step costs of the order
    of :math:`D R^2`, where that of :class:`Full` is :math:`D^2`. Elements of :math:`B` are softly
    bounded by 10, so that a correlation is at most 0.99. The KL to independent normals, Laplace
    distributions and a Gaussian process has a closed form.

    Arguments:
        latent_dim: D, the number of latent dimensions.
        rank: R, the number of columns of :math:`B`.
        min_scale: The least element of :math:`S`.

    Raises:
        ValueError: If a size or ``min_scale`` is not positive.

    Example:
        >>> posterior = LowRank(3, rank=1)
        >>> posterior(torch.zeros(7, *posterior.feature_shape)).covariance_matrix.shape
        torch.Size([7, 3, 3])
    """

    def __init__(self, latent_dim: int, *, rank: int = 2, min_scale: float = 1e-4) -> None:
        super().__init__()
        latent_dim = self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.rank = check_size("rank", rank, least=1)
        self.min_scale = check_positive("min_scale", min_scale)
        self.feature_shape = torch.Size((2 + self.rank, latent_dim))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, 2 + rank, latent_dim)``."""
        loc, raw_scale = features[..., 0, :], features[..., 1, :]
        scale = softplus(raw_scale) + self.min_scale
        ratio = _MAX_RATIO * torch.tanh(features[..., 2:, :].mT / _MAX_RATIO)
        return LowRankNormal(loc, scale, ratio / math.sqrt(self.rank))

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"latent_dim={self.latent_dim}, rank={self.rank}"
