"""The codes of a picture as regressors, with weights that all rows share."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn

from pyro_vae import VAE, AutoVAEGuide, networks
from scenarios.scenario import Scenario

MLP = partial(networks.MLP, hidden=[16])


def make() -> Scenario:
    """Returns a small instance."""
    vae = VAE((1, 4, 4), 3, name="picture", plate=None, encoder=MLP, decoder=MLP)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            z = vae.model(x)
            pyro.sample("y", dist.Normal((z * w).sum(-1), 0.5), obs=y)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(pyro.poutine.block(model, expose=["w"])))
    guide.append(AutoVAEGuide(model, vae))
    x, y = torch.rand(6, 1, 4, 4).round(), torch.randn(6)
    guide(x, y)
    return Scenario(
        model,
        guide,
        (x, y),
        nn.ModuleList([vae, guide[0]]),
        ("w", "picture.z"),
        initial=lambda: {"w": torch.zeros(3), "picture.z": vae.encode(x).mean.detach()},
    )
