"""The terms of a bound that is a sum over sites."""

from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.objectives.core.sites import frames, keep_dims

__all__ = ["Term", "average", "gather", "negative", "site_term", "total"]


class Term(NamedTuple):
    """One site's part in the bound: masked, not scaled, of the shape of its plates.

    A term with ``event_dim`` has a value for each element of an event, in dimensions to the right.
    """

    name: str
    value: Tensor
    scale: float | Tensor
    frames: frozenset[tuple[int, str]]
    event_dim: int = 0

    @property
    def plates(self) -> frozenset[int]:
        """The dimensions of the plates."""
        return frozenset(dim for dim, _ in self.frames)


def site_term(trace: Any, name: str, value: Tensor | None = None, event_dim: int = 0) -> Term:
    """Returns a site's log density, or another value, masked as the site is."""
    site = trace.nodes[name]
    value = site["unscaled_log_prob"] if value is None else value
    mask = site["mask"]
    if event_dim and isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * event_dim)
    masked = scale_and_mask(value, mask=mask)
    return Term(name, masked, site["scale"], frames(site), event_dim)


def negative(term: Term) -> Term:
    """Returns a term with its sign turned."""
    return term._replace(value=-term.value)


def total(terms: list[Term]) -> Tensor | float:
    """Returns the sum of terms over all their elements, each times its scale."""
    # A number is multiplied once, after the sum; a tensor may be one weight for each datum.
    return sum(
        (
            (term.value * term.scale).sum()
            if isinstance(term.scale, Tensor)
            else term.value.sum() * term.scale
            for term in terms
        ),
        0.0,
    )


def gather(terms: list[Term], data: frozenset[int] | None, dim: int | None) -> dict[str, Tensor]:
    """Returns the terms by site, averaged over vectorized particles.

    Arguments:
        terms: The terms.
        data: The plates that are kept; ``None`` keeps those of each.
        dim: The dimension of the particles, if they stand in one.
    """
    out: dict[str, Tensor] = {}
    for term in terms:
        kept = term.plates if data is None else data & term.plates
        value = keep_dims(term.value, kept, dim, term.event_dim)
        value = value if dim is None else value.mean(0)
        out[term.name] = out[term.name] + value if term.name in out else value
    return out


def average(runs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean over runs, name by name."""
    return {name: torch.stack([run[name] for run in runs]).mean(0) for name in runs[0]}
