"""Attend, infer, repeat: objects found one after the other, each drawn by the same VAE."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import VAE, networks
from scenarios.scenario import NO_GRADIENT_BY_PATH, Scenario

NOISE = 0.2


def program(
    vae: VAE, locator: nn.Module, baseline: nn.Module, *, steps: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns model and guide of canvases of at most ``steps`` objects; both return their number.

    Arguments:
        vae: An object, as large as the window in which it is looked at.
        locator: Five features of what is left of a canvas: whether there is an object, and where.
        baseline: The loss to be expected from there on, given the same.
        steps: The number of times that the VAE is called.
    """

    def model(canvas: Tensor) -> Tensor:
        total, present, count = canvas.new_zeros(()), canvas.new_ones(()), 0
        with pyro.plate("canvases", len(canvas)):
            for step in range(steps):
                present = pyro.sample(f"present_{step}", dist.Bernoulli(0.5 * present))
                with poutine.mask(mask=present.bool()):
                    p = dist.Normal(canvas.new_zeros(2), 0.5).to_event(1)
                    where = pyro.sample(f"where_{step}", p)
                code = poutine.block(vae.model, hide=[f"{vae.name}.x_{step}"])
                z = code(suffix=step, mask=present.bool())
                total = total + drawn(vae, z, present, where, canvas)
                count = count + present
            pyro.sample("canvas", dist.Normal(total, NOISE).to_event(3), obs=canvas)
        return count

    def guide(canvas: Tensor) -> Tensor:
        pyro.module("locator", locator)
        pyro.module("baseline", baseline)
        left, present, count = canvas, canvas.new_ones(()), 0
        with pyro.plate("canvases", len(canvas)):
            for step in range(steps):
                seen, loc, scale = networks.apply_network(locator, left, 3).split([1, 2, 2], -1)
                expected = networks.apply_network(baseline, left.detach(), 3).squeeze(-1)
                present = pyro.sample(
                    f"present_{step}",
                    dist.Bernoulli(seen.squeeze(-1).sigmoid() * present),
                    infer={"baseline": {"baseline_value": expected}},
                )
                with poutine.mask(mask=present.bool()):
                    q = dist.Normal(loc.tanh(), 0.6 * scale.sigmoid() + 1e-3).to_event(1)
                    where = pyro.sample(f"where_{step}", q)
                window = look(shown(present, left), where, vae.event_shape[-1])
                # As wide as the window also where both values of presence are enumerated.
                z = vae.guide(window, suffix=step, mask=present.bool().expand(window.shape[:-3]))
                left = left - drawn(vae, z, present, where, canvas)
                count = count + present
        return count

    return model, guide


def drawn(vae: VAE, z: Tensor, present: Tensor, where: Tensor, canvas: Tensor) -> Tensor:
    """Returns an object in its place on an empty canvas, or nothing."""
    window, side = vae.decode(z).mean, canvas.shape[-1]
    zoom = side / window.shape[-1]
    return shown(present, warp(window, -zoom * where, zoom, side))


def shown(present: Tensor, image: Tensor) -> Tensor:
    """Returns an image, or nothing."""
    return present[..., None, None, None] * image


def look(canvas: Tensor, where: Tensor, size: int) -> Tensor:
    """Returns the window of a canvas centred at a place, each coordinate from -1 to 1."""
    return warp(canvas, where, size / canvas.shape[-1], size)


def warp(image: Tensor, shift: Tensor, zoom: float, side: int) -> Tensor:
    """Samples images of shape ``(*batch, 1, *, *)`` on a shifted and scaled grid."""
    batch = torch.broadcast_shapes(image.shape[:-3], shift.shape[:-1])
    flat = image.expand(*batch, *image.shape[-3:]).reshape(-1, *image.shape[-3:])
    scale = zoom * torch.eye(2).expand(len(flat), 2, 2)
    theta = torch.cat([scale, shift.expand(*batch, 2).reshape(-1, 2, 1)], -1)
    grid = nn.functional.affine_grid(theta, [len(flat), 1, side, side], align_corners=False)
    out = nn.functional.grid_sample(flat, grid, align_corners=False)
    return out.reshape(*batch, 1, side, side)


def make() -> Scenario:
    """Returns a small instance."""
    mlp = partial(networks.MLP, hidden=[16])
    vae = VAE((1, 3, 3), 2, name="object", plate=None, encoder=mlp, decoder=mlp)
    locator, baseline = mlp((1, 6, 6), (5,)), mlp((1, 6, 6), (1,))
    model, guide = program(vae, locator, baseline, steps=2)
    codes = ("object.z_0", "object.z_1", "where_0", "where_1")
    return Scenario(
        model,
        guide,
        (torch.rand(4, 1, 6, 6),),
        # TraceGraph_ELBO alone trains the baseline, and it has no part in the bound.
        nn.ModuleList([vae, locator]),
        (*codes, "present_0", "present_1"),
        discrete=True,
        initial=lambda: {name: torch.zeros(4, 2) for name in codes},
        fails=NO_GRADIENT_BY_PATH,
    )
