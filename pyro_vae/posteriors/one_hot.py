"""The categorical posterior over one-hot vectors."""

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.conditional import Posterior
from pyro_vae.distributions import OneHot as OneHotDistribution
from pyro_vae.validation import check_variables

__all__ = ["OneHot"]


class OneHot(Posterior):
    r"""A posterior of one or several independent categorical variables, as one-hot blocks.

    .. math:: q(z \mid x) = \prod_v \prod_c \pi_{vc}(x)^{z_{vc}}

    Its draws have no gradient. :class:`pyro.infer.TraceEnum_ELBO` sums over all codes, and
    :class:`pyro.infer.Trace_ELBO` adds a score term. :class:`pyro.infer.TraceGraph_ELBO`, by
    ``SVI``, reduces the variance of this term with a baseline, ``infer={"baseline":
    {"use_decaying_avg_baseline": True}}``. The objectives of this package raise an error.

    Arguments:
        latent_dim: The number of variables times that of their categories.
        variables: The number of variables; a VAE passes that of its prior.

    Raises:
        ValueError: If ``latent_dim`` is not at least two categories for each variable.

    Example:
        >>> OneHot(6, variables=2)(torch.zeros(7, 2, 3)).mode.shape
        torch.Size([7, 6])
    """

    support = constraints.one_hot

    def __init__(self, latent_dim: int, *, variables: int = 1) -> None:
        super().__init__()
        self.latent_dim, self.variables = check_variables(latent_dim, variables)
        self.feature_shape = torch.Size((self.variables, self.latent_dim // self.variables))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, variables, categories)``."""
        return OneHotDistribution(features)

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"latent_dim={self.latent_dim}, variables={self.variables}"
