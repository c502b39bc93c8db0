"""The Student-t prior, standard or learned."""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.priors.location_scale import LocationScale
from pyro_vae.validation import check_number

__all__ = ["StudentT"]


class StudentT(LocationScale):
    r"""A prior of independent Student-t distributions, with heavy tails.

    .. math:: p(z) = \prod_d \mathrm{St}(z_d \mid \nu, \mu_d, \sigma_d)

    By default :math:`\mu = 0` and :math:`\sigma = 1`; with ``learned`` these are initial values,
    which covariates shift. Outliers may lie far from the centre at a cost that grows with the
    logarithm of the distance. The KL of a posterior is sampled.

    References:
        | Student-t variational autoencoder for robust density estimation (Takahashi et al., 2018),
          https://www.ijcai.org/proceedings/2018/374

    Arguments:
        latent_dim: The number of latent dimensions.
        df: :math:`\nu`, the degrees of freedom, above 1 and at most 1,000.
        learned: Whether locations and scales are learned.
        covariate_dim: The number of covariates, used only by a learned prior.
        hidden: The widths of the hidden layers of its network; an empty list makes it linear.

    Raises:
        ValueError: If an argument is out of range, or hidden layers are given without a learned
            prior with covariates.

    Example:
        >>> StudentT(3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    df: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        df: float = 5.0,
        learned: bool = False,
        covariate_dim: int = 0,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__(latent_dim, learned=learned, covariate_dim=covariate_dim, hidden=hidden)
        self.register_buffer("df", torch.tensor(check_number("df", df, above=1.0, most=1e3)))

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()`` or that of ``covariates``."""
        loc, scale = self.compute_loc_and_scale(covariates)
        return dist.StudentT(self.df, loc, scale).to_event(1)
