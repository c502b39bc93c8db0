"""Reading sites off the traces of a model and its guide."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.distribution import Distribution
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.kl import layers

__all__ = [
    "PARTICLES",
    "AnyTrace",
    "Pair",
    "bare_dims",
    "check_vectorized",
    "drawn_sites",
    "frames",
    "is_drawn",
    "is_point",
    "keep_dims",
    "sites",
]

PARTICLES = "num_particles_vectorized"
"""The name of the plate of particles, as in Pyro's own objectives."""


AnyTrace = Any
"""A ``pyro.poutine.Trace``, whose nodes Pyro types as if each of their keys might be missing."""


class Pair(NamedTuple):
    """The traces of one run of the guide and of the model against it.

    Where the run was cut, ``drawn`` holds the samples, and both traces the leaves. ``subsampled``
    holds the sites of plates, which tell the rows of a batch.
    """

    model: AnyTrace
    guide: AnyTrace
    drawn: dict[str, Tensor]
    subsampled: dict[str, Any]

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

    def site(self, name: str) -> Any:
        """Returns a site of the model, or of the guide where the model has none of that name."""
        return (self.model if name in self.model.nodes else self.guide).nodes[name]

    def check(self, objective: str) -> None:
        """Raises a ``ValueError`` for a pair whose gradient no reparameterization gives."""
        for name in self.latent():
            where = [
                side
                for side, trace in (("model", self.model), ("guide", self.guide))
                if trace.nodes[name]["is_observed"]
            ]
            if where:
                raise ValueError(
                    f"Expected a site of both model and guide to be latent, got {name!r} observed "
                    f"in the {' and the '.join(where)}: leave it out of the guide where it is "
                    f"observed"
                )
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
            later = list(self.guide.nodes)[list(self.guide.nodes).index(name) + 1 :]
            if not any(is_point(self.guide.nodes[n]["fn"]) for n in later if n in self.latent()):
                raise ValueError(
                    f"Expected an auxiliary site to be followed by a latent site that is a "
                    f"function of it, a Delta, got {name!r} without one: nothing in the model pays "
                    f"for its density, and the objective would be no bound"
                )
        self._check_reparameterized(objective)

    def _check_reparameterized(self, objective: str) -> None:
        for name in self.latent() + self.auxiliary():
            fn = self.guide.nodes[name]["fn"]
            if not fn.has_rsample:
                raise ValueError(
                    f"Expected reparameterized sites in the guide for {objective}, got {name!r} "
                    f"from {type(layers(fn)[-1]).__name__}, which has no rsample, so that it would "
                    f"get a gradient of zero: use pyro.infer.Trace_ELBO, TraceGraph_ELBO or, for a "
                    f"discrete site, TraceEnum_ELBO"
                )
            if _is_partly_reparameterized(fn):
                raise ValueError(
                    f"Expected reparameterized sites in the guide for {objective}, got {name!r} "
                    f"from {type(layers(fn)[-1]).__name__}, whose rsample gives a part of the "
                    f"gradient only: use pyro.infer.Trace_ELBO, which adds the score term"
                )
        for name in self.guide_factors():
            if not self.guide.nodes[name]["fn"].has_rsample:
                raise ValueError(
                    f"Expected factors of the guide that are differentiable functions of its "
                    f"samples for {objective}, got {name!r} without has_rsample=True: use "
                    f"pyro.factor(..., has_rsample=True) if it is one, else pyro.infer.Trace_ELBO"
                )


def sites(trace: AnyTrace) -> Iterator[tuple[str, Any]]:
    """Yields the sites that were sampled or observed."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            yield name, site


def drawn_sites(trace: AnyTrace) -> list[str]:
    """Returns the names of the sites that a trace of a guide has drawn."""
    return [name for name, site in sites(trace) if is_drawn(site)]


def is_point(fn: Any) -> bool:
    """Tells whether a distribution is a point mass, within any wrappers."""
    return isinstance(layers(fn)[-1], dist.Delta)


def _is_partly_reparameterized(fn: Any) -> bool:
    """Whether a distribution adds a score term, as ``pyro.distributions.Rejector`` does."""
    core = layers(fn)[-1]
    if isinstance(core, torch.distributions.TransformedDistribution):
        return _is_partly_reparameterized(core.base_dist)
    default = Distribution.score_parts
    return getattr(type(core), "score_parts", default) is not default


def is_drawn(site: Any) -> bool:
    """Tells whether a site holds a sample, and not an observation, an index or a mere value."""
    return not (
        site["is_observed"] or site_is_subsample(site) or site["infer"].get("_deterministic")
    )


def check_vectorized(name: str, site: Any, objective: str) -> None:
    """Raises a ``ValueError`` for a site in a plate that is run sequentially."""
    loops = [frame.name for frame in site["cond_indep_stack"] if not frame.vectorized]
    if loops and PARTICLES not in loops:
        raise ValueError(
            f"Expected vectorized plates for {objective}, got {name!r} in the loop over "
            f"{loops[0]!r}: open it by `with pyro.plate(...)`"
        )


def bare_dims(site: Any) -> list[int]:
    """Returns the dimensions of a log density that have several elements and no plate."""
    shape = site["unscaled_log_prob"].shape
    held = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    return [dim for dim in range(-len(shape), 0) if shape[dim] > 1 and dim not in held]


def frames(site: Any) -> frozenset[tuple[int, str]]:
    """Returns dimension and name of each of a site's plates, particles left out."""
    return frozenset(
        (frame.dim, frame.name)
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.name != PARTICLES
    )


def _plates(site: Any) -> frozenset[int]:
    """Returns the dimensions of a site's plates, particles left out."""
    return frozenset(dim for dim, _ in frames(site))


def keep_dims(
    value: Tensor, dims: frozenset[int], particle_dim: int | None, event_dim: int = 0
) -> Tensor:
    """Sums a log density over all batch dimensions but some plates and the particles.

    Returns:
        A tensor whose dimensions are the particles, if any, the plates from left to right, and the
        ``event_dim`` rightmost of ``value``.
    """
    kept = sorted(d - event_dim for d in (dims if particle_dim is None else dims | {particle_dim}))
    if kept:
        value = value.reshape((1,) * (-kept[0] - value.dim()) + tuple(value.shape))
    summed = [dim for dim in range(-value.dim(), -event_dim) if dim not in kept]
    return value.sum(summed) if summed else value
