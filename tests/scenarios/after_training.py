"""The posterior after training: q has done its work, and other inference goes on from its mean."""

from functools import partial

import torch
from torch import nn

from pyro_vae import VAE, networks
from scenarios.scenario import Scenario


def make() -> Scenario:
    """Returns a small instance, with batch norm, which evaluation mode has to hold still."""
    mlp = partial(networks.MLP, hidden=[16], batch_norm=True)
    vae = VAE((1, 4, 4), 2, name="digit", encoder=mlp, decoder=mlp)
    x = torch.rand(6, 1, 4, 4).round()
    return Scenario(
        vae.model,
        vae.guide,
        (x,),
        nn.ModuleList([vae]),
        ("digit.z",),
        initial=lambda: {"digit.z": vae.encode(x).mean.detach()},
    )
