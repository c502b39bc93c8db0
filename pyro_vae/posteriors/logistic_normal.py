"""The logistic-normal posterior on the simplex."""

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions import LogisticNormal as LogisticNormalDistribution
from pyro_vae.posteriors.location_scale import LocationScale

__all__ = ["LogisticNormal"]


class LogisticNormal(LocationScale):
    r"""A posterior over shares that sum to one: the softmax of independent normals and a zero.

    .. math:: z = \mathrm{softmax}(u, 0), \qquad u_k \sim \mathcal{N}(\mu_k(x), \sigma_k^2(x))

    The KL to a logistic-normal prior has a closed form; that to a Dirichlet prior is sampled.

    References:
        | Autoencoding variational inference for topic models (Srivastava and Sutton, 2017),
          https://arxiv.org/abs/1703.01488

    Arguments:
        latent_dim: The number of shares, at least 2.
        min_scale: The floor of :math:`\sigma`, which is a softplus of a feature plus this floor.

    Raises:
        ValueError: If ``latent_dim`` is less than 2, or ``min_scale`` is not positive.

    Example:
        >>> import torch
        >>> LogisticNormal(3)(torch.zeros(7, 2, 2)).rsample().shape
        torch.Size([7, 3])
    """

    support = constraints.simplex
    dependent = 1

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, 2, latent_dim - 1)``."""
        return LogisticNormalDistribution(*self.compute_loc_and_scale(features))
