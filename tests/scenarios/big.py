"""More rows than a step takes: the plate draws some, and the encoder sees those alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae import VAE, networks
from scenarios.scenario import Fails, Scenario


def program(vae: VAE, batch_size: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns model and guide of ``batch_size`` rows that stand for all.

    The rows are those passed, or drawn by the guide: its plate and the model's have one name.
    """

    def run(side: nn.Module, x: Tensor, rows: Tensor | None = None) -> Tensor:
        size = batch_size if rows is None else len(rows)
        with pyro.plate("rows", len(x), subsample_size=size, subsample=rows) as batch:
            return side(x[batch])

    return partial(run, vae.model), partial(run, vae.guide)


def make() -> Scenario:
    """Returns a small instance."""
    mlp = partial(networks.MLP, hidden=[16])
    vae = VAE((1, 4, 4), 2, name="row", plate=None, encoder=mlp, decoder=mlp)
    model, guide = program(vae, 4)
    return Scenario(
        model,
        guide,
        (torch.rand(12, 1, 4, 4).round(),),
        nn.ModuleList([vae]),
        ("row.z",),
        initial=lambda: {"row.z": torch.zeros(4, 2)},
        fails={
            "NUTS": Fails(
                NotImplementedError,
                "does not support model with subsample sites",
                "needs the same density at each step, so all rows",
            )
        },
    )
