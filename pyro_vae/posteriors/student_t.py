"""The Student-t posterior."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.distributions import StudentT as StudentTDistribution
from pyro_vae.posteriors.location_scale import LocationScale
from pyro_vae.validation import check_number

__all__ = ["StudentT"]


class StudentT(LocationScale):
    r"""A posterior of independent Student-t distributions.

    .. math:: q(z \mid x) = \prod_d \mathrm{St}(z_d \mid \nu, \mu_d(x), \sigma_d(x))

    As a proposal of importance sampling its heavy tails bound the weights. The KL to a normal prior
    has a closed form, which is finite for more than two degrees of freedom.

    Arguments:
        latent_dim: The number of latent dimensions.
        df: :math:`\nu`, the degrees of freedom, above 2 and at most 1,000.
        min_scale: The floor of :math:`\sigma`, which is a softplus of a feature plus this floor.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> StudentT(3)(torch.zeros(7, 2, 3)).batch_shape
        torch.Size([7])
    """

    df: Tensor

    def __init__(self, latent_dim: int, *, df: float = 5.0, min_scale: float = 1e-4) -> None:
        super().__init__(latent_dim, min_scale=min_scale)
        self.register_buffer("df", torch.tensor(check_number("df", df, above=2.0, most=1e3)))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, 2, latent_dim)``."""
        loc, scale = self.compute_loc_and_scale(features)
        return StudentTDistribution(self.df, loc, scale).to_event(1)
