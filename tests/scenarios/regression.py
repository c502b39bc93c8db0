"""The codes of a picture as regressors, with weights that all rows share."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide, AutoGuideList, AutoNormal
from torch import Tensor, nn

from pyro_vae import VAE, AutoVAEGuide, networks
from scenarios.scenario import Scenario


def program(
    vae: VAE,
    weights: type[AutoGuide] = AutoNormal,
    *,
    noise: float = 0.5,
    size: int | None = None,
    **options: float,
) -> tuple[Callable[..., None], AutoGuideList]:
    """Returns model and guide of pictures and outcomes.

    Arguments:
        vae: The VAE of the pictures.
        weights: The guide of the weights.
        noise: The scale of an outcome.
        size: How many rows are drawn for a step, if not all.
        options: What the guide of the weights is made with.
    """

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(x.new_zeros(vae.latent_dim), 1.0).to_event(1))
        with pyro.plate("rows", len(x), subsample_size=size) as rows:
            z = vae.model(x[rows])
            pyro.sample("y", dist.Normal((z * w).sum(-1), noise), obs=y[rows])

    guide = AutoGuideList(model)
    guide.append(weights(pyro.poutine.block(model, expose=["w"]), **options))
    guide.append(AutoVAEGuide(model, vae))
    return model, guide


def make() -> Scenario:
    """Returns a small instance."""
    mlp = partial(networks.MLP, hidden=[16])
    vae = VAE((1, 4, 4), 3, name="picture", plate=None, encoder=mlp, decoder=mlp)
    model, guide = program(vae)
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
