"""The diagonal normal posterior."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.posteriors.location_scale import LocationScale

__all__ = ["Normal"]


class Normal(LocationScale):
    r"""A diagonal normal posterior.

    .. math:: q(z \mid x) = \prod_d \mathcal{N}(z_d \mid \mu_d(x), \sigma_d^2(x))

    References:
        | Auto-encoding variational Bayes (Kingma and Welling, 2013),
          https://arxiv.org/abs/1312.6114

    Arguments:
        latent_dim: The number of latent dimensions.
        min_scale: The floor of :math:`\sigma`, which is a softplus of a feature plus this floor.

    Raises:
        ValueError: If a size or ``min_scale`` is not positive.

    Example:
        >>> import torch
        >>> Normal(3)(torch.zeros(7, 2, 3)).batch_shape
        torch.Size([7])
    """

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, 2, latent_dim)``."""
        return dist.Normal(*self.compute_loc_and_scale(features)).to_event(1)
