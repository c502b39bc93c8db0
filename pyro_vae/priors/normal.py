"""The diagonal normal prior, standard or learned."""

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.priors.location_scale import LocationScale

__all__ = ["Normal"]


class Normal(LocationScale):
    r"""A diagonal normal prior.

    .. math:: p(z) = \prod_d \mathcal{N}(z_d \mid \mu_d, \sigma_d^2)

    By default :math:`\mu = 0` and :math:`\sigma = 1`; with ``learned`` these are initial values.
    With ``learned`` and covariates, both depend on the covariates, linearly or by a network: the
    prior of a conditional VAE.

    References:
        | Auto-encoding variational Bayes (Kingma and Welling, 2013),
          https://arxiv.org/abs/1312.6114
        | Learning structured output representation using deep conditional generative models (Sohn,
          Lee and Yan, 2015), https://papers.nips.cc/paper/5775

    Arguments:
        latent_dim: The number of latent dimensions.
        learned: Whether the means and scales are learned.
        covariate_dim: The number of covariates, used only by a learned prior.
        hidden: The widths of the hidden layers of its network; an empty list makes it linear.

    Raises:
        ValueError: If a size is out of range, or hidden layers are given without a learned prior
            with covariates.

    Example:
        >>> import torch
        >>> Normal(3)().log_prob(torch.zeros(2, 3))
        tensor([-2.7568, -2.7568])
    """

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()`` or that of ``covariates``."""
        return dist.Normal(*self.compute_loc_and_scale(covariates)).to_event(1)
