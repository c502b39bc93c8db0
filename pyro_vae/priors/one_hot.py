"""The categorical prior over one-hot vectors."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.conditional import Prior
from pyro_vae.distributions import OneHot as OneHotDistribution
from pyro_vae.validation import check_flag, check_variables

__all__ = ["OneHot"]


class OneHot(Prior):
    r"""A prior of one or several independent categorical variables, as one-hot blocks.

    .. math:: P(z) = \prod_v \prod_c \pi_{vc}^{z_{vc}}

    By default :math:`\pi` is uniform; with ``learned`` this is its initial value. The KL of a
    one-hot posterior has a closed form.

    Arguments:
        latent_dim: The number of variables times that of their categories.
        variables: The number of variables.
        learned: Whether the probabilities are learned.

    Raises:
        ValueError: If ``latent_dim`` is not at least two categories for each variable.

    Example:
        >>> OneHot(6, variables=2)().log_prob(torch.tensor([1.0, 0, 0, 0, 0, 1.0]))
        tensor(-2.1972)
    """

    support = constraints.one_hot

    logits: Tensor

    def __init__(self, latent_dim: int, *, variables: int = 1, learned: bool = False) -> None:
        super().__init__()
        self.latent_dim, self.variables = check_variables(latent_dim, variables)
        self.learned = check_flag("learned", learned)
        logits = torch.zeros(self.variables, self.latent_dim // self.variables)
        if self.learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()``."""
        return OneHotDistribution(self.logits)

    def extra_repr(self) -> str:
        """Shows the sizes and whether it is learned."""
        return f"latent_dim={self.latent_dim}, variables={self.variables}, learned={self.learned}"
