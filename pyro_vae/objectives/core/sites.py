"""The sites in the traces of a model and its guide."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.distribution import Distribution
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor

from pyro_vae.kl import unwrap_layers

__all__ = [
    "PARTICLES",
    "AnyTrace",
    "Pair",
    "check_vectorized",
    "compute_log_probs",
    "dims_without_plate",
    "is_point",
    "is_sampled",
    "iter_sites",
    "remove_deterministic",
    "sampled_sites",
    "subsample_sites",
    "sum_except_dims",
]

PARTICLES = "num_particles_vectorized"
"""The name of the plate of particles, as in Pyro's own objectives."""


AnyTrace = Any
"""A ``pyro.poutine.Trace``; Pyro types every key of its nodes as optional."""


@dataclass(frozen=True)
class Pair:
    """The traces of one run of the guide and of the model against it.

    If samples were detached, ``samples`` holds them, and both traces hold the leaves.
    ``plate_sites`` holds the sites of plates, whose values are the rows of a batch.
    """

    model: AnyTrace
    guide: AnyTrace
    samples: dict[str, Tensor]
    plate_sites: dict[str, Any]

    @cached_property
    def latent_sites(self) -> list[str]:
        """The names of the sites sampled by the guide and scored by the model."""
        return [name for name, _ in iter_sites(self.guide) if name in self.model.nodes]

    @cached_property
    def auxiliary_sites(self) -> list[str]:
        """The names of the sites that only the guide has, except factors."""
        return [
            name
            for name, site in iter_sites(self.guide)
            if name not in self.model.nodes and not site["is_observed"]
        ]

    @cached_property
    def guide_factors(self) -> list[str]:
        """The names of the factors of the guide."""
        return [
            name
            for name, site in iter_sites(self.guide)
            if name not in self.model.nodes and site["is_observed"]
        ]

    @cached_property
    def observed_sites(self) -> list[str]:
        """The names of the sites that the model observes, factors included."""
        return [name for name, site in iter_sites(self.model) if name not in self.guide.nodes]

    def site(self, name: str) -> Any:
        """Returns a site of the model, or of the guide if the model has no site of that name."""
        return (self.model if name in self.model.nodes else self.guide).nodes[name]

    def check(self, objective: str, *, with_gradient: bool = True) -> None:
        """Raises a ``ValueError`` if the reparameterized gradient of an objective is undefined."""
        for name in self.latent_sites:
            sides = [
                side
                for side, trace in (("model", self.model), ("guide", self.guide))
                if trace.nodes[name]["is_observed"]
            ]
            if sides:
                raise ValueError(
                    f"Expected a site of both model and guide to be latent, got {name!r} observed "
                    f"in the {' and the '.join(sides)}: leave it out of the guide where it is "
                    f"observed"
                )
        for name, site in iter_sites(self.model):
            if not site["is_observed"] and name not in self.guide.nodes:
                raise ValueError(
                    f"Expected every latent site of the model in the guide, got {name!r} in the "
                    f"model only: sample it in the guide, or for a discrete site use "
                    f"pyro.infer.TraceEnum_ELBO"
                )
        for name in self.auxiliary_sites:
            if not self.guide.nodes[name]["infer"].get("is_auxiliary"):
                raise ValueError(
                    f"Expected every site of the guide in the model, got {name!r} in the guide "
                    f"only: the objective would not be a bound (infer={{'is_auxiliary': True}} "
                    f"marks a site whose values reach the model through others)"
                )
            following = list(self.guide.nodes)[list(self.guide.nodes).index(name) + 1 :]
            if not any(
                is_point(self.guide.nodes[n]["fn"]) for n in following if n in self.latent_sites
            ):
                raise ValueError(
                    f"Expected an auxiliary site to be followed by a latent site that is a "
                    f"function of it, a Delta, got {name!r} without one: no term of the model "
                    f"balances its density, and the objective would not be a bound"
                )
        if with_gradient:
            self._check_reparameterized(objective)

    def _check_reparameterized(self, objective: str) -> None:
        for name in self.latent_sites + self.auxiliary_sites:
            fn = self.guide.nodes[name]["fn"]
            core = unwrap_layers(fn)[-1]
            expected = (
                f"Expected reparameterized sites in the guide for {objective}, got {name!r} from "
                f"{type(core).__name__}, "
            )
            if not fn.has_rsample:
                raise ValueError(
                    f"{expected}which has no rsample, so that it would get a gradient of zero: use "
                    f"pyro.infer.Trace_ELBO (objective=trace_elbo), TraceGraph_ELBO or, for a "
                    f"discrete site, TraceEnum_ELBO (objective=trace_enum_elbo)"
                )
            if _is_partly_reparameterized(core):
                raise ValueError(
                    f"{expected}whose rsample gives a part of the gradient only: use "
                    f"pyro.infer.Trace_ELBO, which adds the score term"
                )
        for name in self.guide_factors:
            if not self.guide.nodes[name]["fn"].has_rsample:
                raise ValueError(
                    f"Expected factors of the guide that are differentiable functions of its "
                    f"samples for {objective}, got {name!r} without has_rsample=True: use "
                    f"pyro.factor(..., has_rsample=True) if it is one, else pyro.infer.Trace_ELBO"
                )


def iter_sites(trace: AnyTrace) -> Iterator[tuple[str, Any]]:
    """Yields the sites that were sampled or observed."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample":
            yield name, site


def sampled_sites(trace: AnyTrace) -> list[str]:
    """Returns the names of the sites that a guide has sampled."""
    return [name for name, site in iter_sites(trace) if is_sampled(site)]


def subsample_sites(trace: AnyTrace) -> dict[str, Any]:
    """Returns the sites of the plates of a trace, whose values are the rows of a batch."""
    return {name: site for name, site in iter_sites(trace) if site_is_subsample(site)}


def remove_deterministic(trace: AnyTrace) -> AnyTrace:
    """Returns a copy without the sites of ``pyro.deterministic``, which have no density."""
    trace = trace.copy()
    for name, site in list(iter_sites(trace)):
        if site["infer"].get("_deterministic"):
            trace.remove_node(name)
    return trace


def compute_log_probs(trace: AnyTrace, nesting: Any, check: bool) -> None:
    """Computes all log densities, and checks their shapes if asked to."""
    trace.compute_log_prob()
    if check:
        for _, site in iter_sites(trace):
            check_site_shape(site, nesting)


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass, possibly inside of wrappers."""
    return isinstance(unwrap_layers(fn)[-1], dist.Delta)


def _is_partly_reparameterized(core: Any) -> bool:
    """Whether a distribution adds a score term, as ``pyro.distributions.Rejector`` does."""
    if isinstance(core, torch.distributions.TransformedDistribution):
        return _is_partly_reparameterized(unwrap_layers(core.base_dist)[-1])
    default = Distribution.score_parts
    return getattr(type(core), "score_parts", default) is not default


def is_sampled(site: Any) -> bool:
    """Whether a site is sampled: not observed, not a subsample, and not deterministic."""
    return not (
        site["is_observed"] or site_is_subsample(site) or site["infer"].get("_deterministic")
    )


def check_vectorized(name: str, site: Any, objective: str) -> None:
    """Raises a ``ValueError`` for a site in a sequential plate."""
    loops = [frame.name for frame in site["cond_indep_stack"] if not frame.vectorized]
    if loops and PARTICLES not in loops:
        raise ValueError(
            f"Expected vectorized plates for {objective}, got {name!r} in the loop over "
            f"{loops[0]!r}: open it by `with pyro.plate(...)`"
        )


def dims_without_plate(site: Any) -> list[int]:
    """Returns the dimensions of a log density with several elements but without a plate."""
    shape = site["unscaled_log_prob"].shape
    plate_dims = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    return [dim for dim in range(-len(shape), 0) if shape[dim] > 1 and dim not in plate_dims]


def sum_except_dims(
    value: Tensor, dims: frozenset[int], particle_dim: int | None, event_dim: int = 0
) -> Tensor:
    """Sums a log density over all batch dimensions except some plates and the particles.

    Returns:
        A tensor with the dimensions of the particles, if any, of the plates from left to right, and
        the ``event_dim`` rightmost of ``value``.
    """
    keep = sorted(d - event_dim for d in (dims if particle_dim is None else dims | {particle_dim}))
    summed = [dim for dim in range(-value.dim(), -event_dim) if dim not in keep]
    return value.sum(summed) if summed else value
