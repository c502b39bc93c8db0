"""The terms of a bound that is a sum over sites."""

from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.objectives.core.sites import get_plates, sum_except_dims

__all__ = ["Term", "average_runs", "group_by_site", "negate", "site_term", "sum_terms"]


class Term(NamedTuple):
    """The contribution of one site to a bound: masked, not scaled, of the shape of its plates.

    With ``event_dim``, the value has one element for each element of an event, in the rightmost
    dimensions.
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
    """Returns the log density of a site, or another value, with the mask of the site."""
    site = trace.nodes[name]
    value = site["unscaled_log_prob"] if value is None else value
    mask = site["mask"]
    if event_dim and isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * event_dim)
    masked = scale_and_mask(value, mask=mask)
    return Term(name, masked, site["scale"], get_plates(site), event_dim)


def negate(term: Term) -> Term:
    """Returns a term with the opposite sign."""
    return term._replace(value=-term.value)


def sum_terms(terms: list[Term]) -> Tensor | float:
    """Returns the sum of terms over all their elements, each times its scale."""
    # A scale that is a tensor may weight each datum differently.
    return sum(
        (
            (term.value * term.scale).sum()
            if isinstance(term.scale, Tensor)
            else term.value.sum() * term.scale
            for term in terms
        ),
        0.0,
    )


def group_by_site(
    terms: list[Term], data: frozenset[int] | None, dim: int | None
) -> dict[str, Tensor]:
    """Returns the terms by site, averaged over vectorized particles.

    Arguments:
        terms: The terms.
        data: The plate dimensions to keep; ``None`` keeps all plates of each term.
        dim: The dimension of vectorized particles, if there is one.
    """
    out: dict[str, Tensor] = {}
    for term in terms:
        dims = term.plates if data is None else data & term.plates
        value = sum_except_dims(term.value, dims, dim, term.event_dim)
        value = value if dim is None else value.mean(0)
        out[term.name] = out[term.name] + value if term.name in out else value
    return out


def average_runs(runs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean over runs, name by name."""
    return {name: torch.stack([run[name] for run in runs]).mean(0) for name in runs[0]}
