"""The relaxed categorical prior."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.conditional import Prior
from pyro_vae.distributions import RelaxedOneHot as RelaxedOneHotDistribution
from pyro_vae.validation import check_flag, check_positive, check_variables

__all__ = ["RelaxedOneHot"]


class RelaxedOneHot(Prior):
    r"""A prior of one or several relaxed categorical variables, each in a simplex.

    .. math::
        z = \mathrm{softmax}((\log \pi + g) / \tau), \qquad g \sim \mathrm{Gumbel}(0, 1)

    By default :math:`\pi` is uniform; with ``learned`` this is its initial value. The KL of a
    posterior is sampled. The model is not that of :class:`OneHot`, whose evidence is another.

    References:
        | The concrete distribution (Maddison, Mnih and Teh, 2016),
          https://arxiv.org/abs/1611.00712

    Arguments:
        latent_dim: The number of variables times that of their categories.
        variables: The number of variables.
        temperature: :math:`\tau`. A schedule of ``fit`` may change it, by the name
            ``"prior.temperature"``.
        learned: Whether the probabilities are learned.

    Raises:
        ValueError: If ``latent_dim`` is not at least two categories for each variable, or the
            temperature is not positive.

    Example:
        >>> RelaxedOneHot(6, variables=2)().sample().sum().round(decimals=3)
        tensor(2.)
    """

    support = constraints.simplex
    schedulable = ("temperature",)

    logits: Tensor
    temperature: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        variables: int = 1,
        temperature: float = 0.5,
        learned: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim, self.variables = check_variables(latent_dim, variables)
        temperature = check_positive("temperature", temperature)
        self.learned = check_flag("learned", learned)
        self.register_buffer("temperature", torch.tensor(temperature))
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
        return RelaxedOneHotDistribution(self.temperature, self.logits)

    def extra_repr(self) -> str:
        """Shows the sizes and whether it is learned."""
        return f"latent_dim={self.latent_dim}, variables={self.variables}, learned={self.learned}"
