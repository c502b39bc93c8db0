"""The Laplace posterior."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.posteriors.location_scale import LocationScale

__all__ = ["Laplace"]


class Laplace(LocationScale):
    r"""A posterior of independent Laplace distributions.

    .. math:: q(z \mid x) = \prod_d \frac{1}{2 b_d(x)} e^{-\lvert z_d - \mu_d(x) \rvert / b_d(x)}

    The KL to a Laplace or a normal prior has a closed form.

    Arguments:
        latent_dim: The number of latent dimensions.
        min_scale: The floor of :math:`b`, which is a softplus of a feature plus this floor.

    Raises:
        ValueError: If a size or ``min_scale`` is not positive.

    Example:
        >>> import torch
        >>> Laplace(3)(torch.zeros(7, 2, 3)).batch_shape
        torch.Size([7])
    """

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, 2, latent_dim)``."""
        return dist.Laplace(*self.compute_loc_and_scale(features)).to_event(1)
