"""The mixture-of-normals prior."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.conditional import Prior
from pyro_vae.priors.location_scale import FLOOR, invert_positive
from pyro_vae.validation import check_positive, check_size

__all__ = ["Mixture"]


class Mixture(Prior):
    r"""A mixture of diagonal normals, trained jointly with the other parts.

    .. math:: p(z) = \sum_k \pi_k \prod_d \mathcal{N}(z_d \mid \mu_{kd}, \sigma_{kd}^2)

    The KL of a posterior to it has no closed form and is sampled.

    Arguments:
        latent_dim: The number of latent dimensions.
        components: The number of components.
        spread: The standard deviation of the initial means.

    Raises:
        ValueError: If a size or ``spread`` is not positive.

    Example:
        >>> Mixture(3, components=10)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(self, latent_dim: int, *, components: int = 10, spread: float = 1.0) -> None:
        super().__init__()
        latent_dim = self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        components = self.components = check_size("components", components, least=1)
        self.logits = nn.Parameter(torch.zeros(components))
        loc = check_positive("spread", spread) * torch.randn(components, latent_dim)
        self.loc = nn.Parameter(loc)
        self.raw_scale = nn.Parameter(
            torch.full((components, latent_dim), invert_positive(1.0, FLOOR))
        )

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()``."""
        components = dist.Normal(self.loc, softplus(self.raw_scale) + FLOOR).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"latent_dim={self.latent_dim}, components={self.components}"
