"""The Dirichlet prior on the simplex."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.conditional import Prior
from pyro_vae.distributions import Dirichlet as DirichletDistribution
from pyro_vae.priors.location_scale import FLOOR, invert_positive
from pyro_vae.validation import check_flag, check_number, check_size

__all__ = ["Dirichlet"]


class Dirichlet(Prior):
    r"""A prior over shares that sum to one, as of the topics of a text.

    .. math:: p(z) \propto \prod_k z_k^{\alpha_k - 1}

    At :math:`\alpha = 1` it is uniform; below 1 it favours few large shares. The KL of a posterior
    is sampled.

    References:
        | Autoencoding variational inference for topic models (Srivastava and Sutton, 2017),
          https://arxiv.org/abs/1703.01488

    Arguments:
        latent_dim: The number of shares, at least 2.
        concentration: :math:`\alpha`, above 0.001; with ``learned``, its initial value.
        learned: Whether there is a learned concentration for each share.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> Dirichlet(3)().log_prob(torch.tensor([0.2, 0.3, 0.5]))
        tensor(0.6931)
    """

    support = constraints.simplex

    concentration: Tensor

    def __init__(
        self, latent_dim: int, *, concentration: float = 1.0, learned: bool = False
    ) -> None:
        super().__init__()
        latent_dim = self.latent_dim = check_size("latent_dim", latent_dim, least=2)
        value = check_number("concentration", concentration, above=FLOOR)
        self.learned = check_flag("learned", learned)
        if self.learned:
            raw = torch.full((latent_dim,), invert_positive(value, FLOOR))
            self.raw_concentration = nn.Parameter(raw)
        else:
            self.register_buffer("concentration", torch.full((latent_dim,), value))

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()``."""
        if self.learned:
            return DirichletDistribution(softplus(self.raw_concentration) + FLOOR)
        return DirichletDistribution(self.concentration)

    def extra_repr(self) -> str:
        """Shows the size and whether it is learned."""
        return f"latent_dim={self.latent_dim}, learned={self.learned}"
