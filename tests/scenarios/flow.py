"""A normalizing flow as prior."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import zuko
from torch import Tensor, nn

from pyro_vae import VAE, networks
from pyro_vae.conditional import Prior
from scenarios.scenario import Scenario

# To import zuko switches the validation of all distributions off.
pyro.enable_validation()


class Flow(Prior):
    """A neural spline flow from a standard normal, given covariates if there are any."""

    loc: Tensor

    def __init__(
        self, latent_dim: int, *, covariate_dim: int = 0, transforms: int = 2, hidden: int = 32
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.flow = zuko.flows.NSF(
            latent_dim, covariate_dim, transforms=transforms, hidden_features=[hidden]
        )
        self.register_buffer("loc", torch.zeros(latent_dim))

    def forward(
        self, covariates: Tensor | None = None, *, encode: Callable[..., Any] | None = None
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()`` or that of ``covariates``."""
        base = dist.Normal(self.loc, 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.flow.transform(covariates).inv])


def make() -> Scenario:
    """Returns a small instance."""
    mlp = partial(networks.MLP, hidden=[16])
    vae = VAE((1, 4, 4), 3, name="flow", prior=Flow, encoder=mlp, decoder=mlp)
    return Scenario(
        vae.model,
        vae.guide,
        (torch.rand(6, 1, 4, 4).round(),),
        nn.ModuleList([vae]),
        ("flow.z",),
        initial=lambda: {"flow.z": torch.zeros(6, 3)},
    )
