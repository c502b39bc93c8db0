"""The conditional VAE: one half of a picture given the other, in the prior too."""

from functools import partial

import torch
from torch import nn

from pyro_vae import VAE, networks, priors
from scenarios.scenario import Scenario


def program(event_shape: tuple[int, ...], covariate_dim: int, latent_dim: int, width: int) -> VAE:
    """Returns a VAE of what is missing, whose covariates are what is seen."""
    mlp = partial(networks.MLP, hidden=[width])
    return VAE(
        event_shape,
        latent_dim,
        name="missing",
        prior=partial(priors.Normal, learned=True, hidden=[width]),
        encoder=mlp,
        decoder=mlp,
        covariate_dim=covariate_dim,
    )


def make() -> Scenario:
    """Returns a small instance."""
    vae = program((1, 2, 4), covariate_dim=8, latent_dim=2, width=16)
    # It starts at zero, from where no gradient reaches the layer before at the first step.
    nn.init.normal_(vae.prior.shift.layers[-1].weight, std=0.1)

    def model(missing, seen):
        return vae.model(missing, covariates=seen)

    def guide(missing, seen):
        return vae.guide(missing, covariates=seen)

    picture = torch.rand(6, 1, 4, 4).round()
    return Scenario(
        model,
        guide,
        (picture[:, :, 2:], picture[:, :, :2].flatten(1)),
        nn.ModuleList([vae]),
        ("missing.z",),
        initial=lambda: {"missing.z": torch.zeros(6, 2)},
    )
