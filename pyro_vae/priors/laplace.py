"""The Laplace prior, standard or learned."""

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.priors.location_scale import LocationScale

__all__ = ["Laplace"]


class Laplace(LocationScale):
    r"""A prior of independent Laplace distributions.

    .. math:: p(z) = \prod_d \frac{1}{2 b_d} e^{-\lvert z_d - \mu_d \rvert / b_d}

    By default :math:`\mu = 0` and :math:`b = 1`; with ``learned`` these are initial values, which
    covariates shift. Unlike a normal it is not invariant to rotations, so that it favours latent
    dimensions with sparse, independent meanings. The KL of normal and Laplace posteriors has a
    closed form.

    References:
        | Disentangling disentanglement in variational autoencoders (Mathieu et al., 2019),
          https://arxiv.org/abs/1812.02833

    Arguments:
        latent_dim: The number of latent dimensions.
        learned: Whether locations and scales are learned.
        covariate_dim: The number of covariates, used only by a learned prior.
        hidden: The widths of the hidden layers of its network; an empty list makes it linear.

    Raises:
        ValueError: If a size is out of range, or hidden layers are given without a learned prior
            with covariates.

    Example:
        >>> import torch
        >>> Laplace(3)().log_prob(torch.zeros(2, 3))
        tensor([-2.0794, -2.0794])
    """

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()`` or that of ``covariates``."""
        return dist.Laplace(*self.compute_loc_and_scale(covariates)).to_event(1)
