"""Running a model against its guide, and reading sites off the two traces."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vae.networks import eval_mode

__all__ = ["PARTICLES", "Pair", "plate_nesting", "run_pair", "vectorized"]

PARTICLES = "num_particles_vectorized"
"""The name of the plate of particles, as in Pyro's own objectives."""


class Pair(NamedTuple):
    """The traces of one run of the guide and of the model against it."""

    model: Trace
    guide: Trace

    def latent(self) -> list[str]:
        """Returns the names of the sites sampled by the guide and scored by the model."""
        return [name for name, _ in sites(self.guide) if name in self.model.nodes]

    def auxiliary(self) -> list[str]:
        """Returns the names of the sites that the guide alone has, other than factors."""
        return [
            name
            for name, site in sites(self.guide)
            if name not in self.model.nodes and not site["is_observed"]
        ]

    def guide_factors(self) -> list[str]:
        """Returns the names of the factors of the guide."""
        return [
            name
            for name, site in sites(self.guide)
            if name not in self.model.nodes and site["is_observed"]
        ]

    def observed(self) -> list[str]:
        """Returns the names of the sites that the model observes, factors included."""
        return [name for name, site in sites(self.model) if name not in self.guide.nodes]

    def check(self, objective: str) -> None:
        """Raises a ``ValueError`` for a pair whose gradient no reparameterization gives."""
        for name, site in sites(self.model):
            if not site["is_observed"] and name not in self.guide.nodes:
                raise ValueError(
                    f"Expected every latent site of the model in the guide, got {name!r} in the "
                    f"model only: sample it in the guide, or for a discrete site use "
                    f"pyro.infer.TraceEnum_ELBO"
                )
        for name in self.auxiliary():
            if not self.guide.nodes[name]["infer"].get("is_auxiliary"):
                raise ValueError(
                    f"Expected every site of the guide in the model, got {name!r} in the guide "
                    f"only: the objective would be no bound (infer={{'is_auxiliary': True}} marks "
                    f"a site whose values reach the model through others)"
                )
        for name in self.latent() + self.auxiliary():
            fn = self.guide.nodes[name]["fn"]
            if not fn.has_rsample:
                raise ValueError(
                    f"Expected reparameterized sites in the guide for {objective}, got {name!r} "
                    f"from {type(fn).__name__}, which has no rsample, so that it would get a "
                    f"gradient of zero: use pyro.infer.Trace_ELBO, TraceGraph_ELBO or, for a "
                    f"discrete site, TraceEnum_ELBO"
                )


def sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Yields the sites with a density: not those of ``pyro.deterministic``."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            yield name, site


def run_pair(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    nesting: float = float("inf"),
) -> Pair:
    """Runs the guide, then the model against it, and computes all log densities."""
    return Pair(*get_importance_trace("flat", nesting, model, guide, args, kwargs))


def vectorized(fn: Callable[..., Any], num_particles: int, dim: int) -> Callable[..., Any]:
    """Returns a Pyro function that runs ``fn`` within a plate of particles."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(PARTICLES, num_particles, dim=dim):
            return fn(*args, **kwargs)

    return run


def plate_nesting(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> int:
    """Returns how deep the plates of a model and guide are, by a run that leaves no trace of it."""
    with undisturbed(model, guide), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
            *args, **kwargs
        )
    dims = [
        frame.dim
        for trace in (guide_trace, model_trace)
        for _, site in sites(prune_subsample_sites(trace))
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return -min(dims, default=0)


@contextmanager
def undisturbed(*functions: Callable[..., Any]) -> Iterator[None]:
    """Runs without gradient, without drawing on the random state, and in evaluation mode."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    modules = [function for function in functions if isinstance(function, nn.Module)]
    with torch.random.fork_rng(devices), eval_mode(*modules), torch.no_grad():
        yield


def plates(site: Any) -> frozenset[int]:
    """Returns the dimensions of a site's plates, particles left out."""
    return frozenset(
        frame.dim
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.name != PARTICLES
    )


def keep_dims(value: Tensor, dims: frozenset[int], particle_dim: int | None) -> Tensor:
    """Sums a log density over all dimensions but those of some plates and of the particles.

    Returns:
        A tensor whose dimensions are the particles, if any, then the plates from left to right.
    """
    kept = sorted(dims if particle_dim is None else dims | {particle_dim})
    if not kept:
        return value.sum()
    value = value.reshape((1,) * (-kept[0] - value.dim()) + tuple(value.shape))
    summed = [dim for dim in range(-value.dim(), 0) if dim not in kept]
    return value.sum(summed) if summed else value
