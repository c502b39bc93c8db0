"""Canvases of no, one or two objects: how many there are, and what the canvas looks like."""

from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceGraph_ELBO
from torch import Tensor

from pyro_vae import VAE, networks
from scenarios.air import drawn, program

SHAPES = torch.tensor(
    [
        [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]],
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]],
    ]
).float()
MOST = 2


def canvases(rows: int) -> tuple[Tensor, Tensor]:
    """Draws canvases, each object in one of nine fields, and the number of objects of each."""
    fields = torch.rand(rows, 9).argsort(-1)[:, :MOST]
    counts = torch.randint(0, MOST + 1, (rows,))
    x = torch.zeros(rows, 9, 4, 4)
    for k in range(MOST):
        there = counts > k
        shapes = SHAPES[torch.randint(0, len(SHAPES), (rows,))]
        x[there, fields[there, k]] = shapes[there]
    x = x.reshape(rows, 3, 3, 4, 4).transpose(2, 3)
    return x.reshape(rows, 1, 12, 12), counts


@pytest.fixture(scope="module")
def found():
    """What a trained guide finds on canvases that it has not seen."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    mlp = partial(networks.MLP, hidden=[64])
    vae = VAE((1, 4, 4), 4, name="object", plate=None, encoder=mlp, decoder=mlp)
    locator = networks.MLP((1, 12, 12), (5,), hidden=[128, 64])
    model, guide = program(vae, locator, mlp((1, 12, 12), (1,)), steps=MOST)
    adam = pyro.optim.Adam(lambda name: {"lr": 3e-2 if name.startswith("baseline") else 3e-3})
    svi = SVI(model, guide, adam, TraceGraph_ELBO())
    x, _ = canvases(2000)
    with pyro.validation_enabled(False):
        for _ in range(420):
            svi.step(x[torch.randint(0, len(x), (128,))])
    x, counts = canvases(1000)
    with torch.no_grad():
        trace = pyro.poutine.trace(guide).get_trace(x)
    return vae, x, counts, trace


@pytest.mark.long
def test_objects_are_counted(found):
    """The standard error of the share over 1,000 canvases is at most 0.01; by chance it is 1/3."""
    _, _, counts, trace = found
    assert (trace.nodes["_RETURN"]["value"] == counts).double().mean() > 0.9


@pytest.mark.long
def test_canvases_are_drawn_from_their_objects(found):
    """Against the spread of pixels; an object left out or misplaced costs at least half of it."""
    vae, x, _, trace = found
    value = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}
    with torch.no_grad():
        total = sum(
            drawn(vae, value[f"object.z_{k}"], value[f"present_{k}"], value[f"where_{k}"], x)
            for k in range(MOST)
        )
    assert (total - x).square().mean() < 0.1 * x.var()
