"""The autoregressive prior over several one-hot variables."""

from collections.abc import Callable, Sequence
from functools import partial

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.conditional import Prior
from pyro_vae.distributions import Autoregressive as AutoregressiveDistribution
from pyro_vae.guard import import_zuko
from pyro_vae.networks.mlp import build_activation
from pyro_vae.validation import check_size, check_sizes, check_variables

__all__ = ["Autoregressive"]


class Autoregressive(Prior):
    r"""A prior over several one-hot variables, each given those before it.

    .. math:: P(z) = \prod_v P(z_v \mid z_1, \dots, z_{v - 1})

    A masked network gives all probabilities in one pass. A draw takes one pass for each variable.
    The KL of a posterior is sampled.

    References:
        | MADE: masked autoencoder for distribution estimation (Germain et al., 2015),
          https://arxiv.org/abs/1502.03509
        | Neural discrete representation learning (van den Oord, Vinyals and Kavukcuoglu, 2017),
          https://arxiv.org/abs/1711.00937

    Arguments:
        latent_dim: The number of variables times that of their categories.
        variables: The number of variables, at least 2; for one, use ``OneHot(learned=True)``.
        hidden: The widths of the hidden layers of the masked network.
        activation: As in :class:`~pyro_vae.networks.MLP`.

    Raises:
        ValueError: If ``latent_dim`` is not at least two categories for each variable, or an
            argument is out of range.

    Example:
        >>> Autoregressive(6, variables=2)().sample().sum().round(decimals=3)
        tensor(2.)
    """

    support = constraints.one_hot

    zero: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        variables: int = 2,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        variables = check_size("variables", variables, least=2)
        self.latent_dim, self.variables = check_variables(latent_dim, variables)
        categories = self.latent_dim // self.variables
        owner = torch.arange(self.variables).repeat_interleave(categories)
        build_activation(activation)
        self.network = import_zuko().nn.MaskedMLP(
            owner[:, None] > owner,
            check_sizes("hidden", hidden),
            activation=partial(build_activation, activation),
        )
        self.register_buffer("zero", torch.zeros(self.variables, categories), persistent=False)

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()``."""
        return AutoregressiveDistribution(self.network, self.zero)

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"latent_dim={self.latent_dim}, variables={self.variables}"
