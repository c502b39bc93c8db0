"""The priors of this project."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.conditional import Prior

__all__ = ["MyPrior"]


class MyPrior(Prior):
    """A mixture of Laplace distributions for each latent dimension, learned with the VAE.

    With two components a dimension can be a switch: near one location, or near the other.

    Arguments:
        latent_dim: The number of latent dimensions, which the VAE passes.
        components: The number of Laplace distributions for each dimension.
        spread: The distance of the outer locations from zero at the start.
    """

    # Arguments with a default are settings: repeat them in conf/vae/prior/my_prior.yaml.
    def __init__(self, latent_dim: int, *, components: int = 2, spread: float = 1.0) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"Expected components to be 1 or more, got {components}")
        self.latent_dim = latent_dim
        # Parameters and submodules are trained and saved with the VAE.
        self.logits = nn.Parameter(torch.zeros(latent_dim, components))
        self.loc = nn.Parameter(torch.linspace(-spread, spread, components).repeat(latent_dim, 1))
        self.raw_scale = nn.Parameter(torch.zeros(latent_dim, components))

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns p(z): any Pyro distribution over vectors of length ``latent_dim``."""
        # The floor keeps densities finite.
        laplace = dist.Laplace(self.loc, softplus(self.raw_scale) + 1e-3)
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=self.logits), laplace)
        # The dimensions are independent: to_event makes one datum of them.
        return mixture.to_event(1)
