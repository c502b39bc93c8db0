"""The logistic-normal prior on the simplex."""

from collections.abc import Callable

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions import LogisticNormal as LogisticNormalDistribution
from pyro_vae.priors.location_scale import LocationScale

__all__ = ["LogisticNormal"]


class LogisticNormal(LocationScale):
    r"""A prior over shares that sum to one: the softmax of independent normals and a zero.

    .. math:: z = \mathrm{softmax}(u, 0), \qquad u_k \sim \mathcal{N}(\mu_k, \sigma_k^2)

    By default :math:`\mu = 0` and :math:`\sigma = 1`; with ``learned`` these are initial values,
    which covariates shift. The KL of a logistic-normal posterior has a closed form.

    References:
        | Autoencoding variational inference for topic models (Srivastava and Sutton, 2017),
          https://arxiv.org/abs/1703.01488

    Arguments:
        latent_dim: The number of shares, at least 2.
        learned: Whether means and scales are learned.
        covariate_dim: The number of covariates, used only by a learned prior.
        hidden: The widths of the hidden layers of its network; an empty list makes it linear.

    Raises:
        ValueError: If a size is out of range, or hidden layers are given without a learned prior
            with covariates.

    Example:
        >>> LogisticNormal(3)().sample().sum().round(decimals=3)
        tensor(1.)
    """

    support = constraints.simplex
    dependent = 1

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()`` or that of ``covariates``."""
        return LogisticNormalDistribution(*self.compute_loc_and_scale(covariates))
