"""The Laplace posterior."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.conditional import Posterior
from pyro_vae.validation import check_positive, check_size

__all__ = ["Laplace"]


class Laplace(Posterior):
    r"""A posterior of independent Laplace distributions.

    .. math:: q(z \mid x) = \prod_d \frac{1}{2 b_d(x)} e^{-\lvert z_d - \mu_d(x) \rvert / b_d(x)}

    The KL to a Laplace or a normal prior has a closed form.

    Arguments:
        latent_dim: The number of latent dimensions.
        min_scale: The floor of :math:`b`, which is a softplus of a feature plus this floor.

    Raises:
        ValueError: If a size or ``min_scale`` is not positive.

    Example:
        >>> Laplace(3)(torch.zeros(7, 2, 3)).batch_shape
        torch.Size([7])
    """

    def __init__(self, latent_dim: int, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        latent_dim = self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.min_scale = check_positive("min_scale", min_scale)
        self.feature_shape = torch.Size((2, latent_dim))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, 2, latent_dim)``."""
        loc, raw_scale = features.unbind(-2)
        return dist.Laplace(loc, softplus(raw_scale) + self.min_scale).to_event(1)
