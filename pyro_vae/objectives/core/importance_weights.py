"""The log weights of each datum, and the terms that all data share."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.objectives.core.sites import (
    AnyTrace,
    Pair,
    bare_dims,
    check_vectorized,
    drawn_sites,
    frames,
    is_point,
    keep_dims,
    sites,
)
from pyro_vae.objectives.core.terms import Term, average, gather, negative, site_term, total

__all__ = ["Weights", "outer_sites", "weigh"]


class _Parts(NamedTuple):
    """Which sites belong to a datum, and which to several data together.

    Attributes:
        dims: The dimensions of the data plates.
        scale: The scale N / B of the data plates.
        latent: The latent sites of a datum, auxiliary ones of the guide included.
        observed: The observed sites of a datum, factors of the guide included.
        outer: The latent sites outside of some data plate.
        outer_observed: The observed sites outside of some data plate.
    """

    dims: frozenset[int]
    scale: float
    latent: list[str]
    observed: list[str]
    outer: list[str]
    outer_observed: list[str]


class Weights(NamedTuple):
    """The weights of each datum, and what data share.

    Attributes:
        log_p: log p of the sites of a datum, ``(particles, *plates)``, less the log density of
            point masses of the guide, which is a function of parameters and no score.
        log_q: log q of its other latent sites, ``(particles, *plates)``.
        scale: The scale N / B of the data plates.
        outer: What sites shared by data add to the loss; ``None`` where there are none.
        log_likelihood: For each observed site its log density, the mean over particles.
        rate: For each latent site log q - log p, the mean over particles.
    """

    log_p: Tensor
    log_q: Tensor
    scale: float
    outer: Tensor | None
    log_likelihood: dict[str, Tensor]
    rate: dict[str, Tensor]

    @property
    def log_weights(self) -> Tensor:
        """The logarithms of the weights."""
        return self.log_p - self.log_q


def weigh(pairs: list[Pair], dim: int | None) -> Weights:
    """Returns the weights of some runs, or of one with a dimension of particles.

    Raises:
        ValueError: If the weights of a datum would not be its own.
    """
    parts = _divide(pairs[0])
    runs = [_densities(pair, parts, dim) for pair in pairs]
    gained, log_p, log_q = (_stacked([run[i] for run in runs], dim) for i in range(3))
    zero = torch.zeros(())
    outer, likelihoods, rates = _shared(pairs, parts, dim)
    points = [log_q[n] for n in log_q if is_point(pairs[0].guide.nodes[n]["fn"])]
    scored = [log_q[n] for n in log_q if not is_point(pairs[0].guide.nodes[n]["fn"])]
    return Weights(
        sum(gained.values(), zero) + sum(log_p.values(), zero) - sum(points, zero),
        sum(scored, zero),
        parts.scale,
        outer,
        likelihoods | {name: value.mean(0) for name, value in gained.items()},
        rates | {name: (q - log_p.get(name, zero)).mean(0) for name, q in log_q.items()},
    )


def outer_sites(guide_trace: AnyTrace) -> frozenset[str]:
    """Returns the sites that a guide draws outside of plates in which it draws others."""
    names = drawn_sites(guide_trace)
    data = _datum_plates(guide_trace, names)
    return frozenset(name for name in names if frames(guide_trace.nodes[name]) < data)


def _datum_plates(guide_trace: AnyTrace, names: list[str]) -> frozenset[tuple[int, str]]:
    """Returns the innermost plates in which a guide draws: a datum is an element of them.

    A guide that draws all latent variables jointly, outside of every plate, has point masses alone
    within. Its particles differ only if the batch is one datum, which a scale forbids.
    """
    sites = [guide_trace.nodes[name] for name in names]
    innermost = max(map(frames, sites), key=len, default=frozenset())
    random = [frames(site) for site in sites if not is_point(site["fn"])]
    drawn = max(random, key=len, default=innermost)
    if not drawn < innermost:
        return innermost
    if all(isinstance(site["scale"], (int, float)) and site["scale"] == 1 for site in sites):
        return drawn
    inside = next(name for name in names if frames(guide_trace.nodes[name]) == innermost)
    warnings.warn(
        f"The guide draws nothing within the plates of {inside!r}, whose sites are scaled: all "
        f"particles are the same draw, and the bound is that of one. Use ELBO, or a guide that "
        f"draws each datum",
        stacklevel=2,
    )
    return innermost


def _divide(pair: Pair) -> _Parts:
    """Tells the sites of a datum from those that data share.

    Raises:
        ValueError: If the weights of a datum would not be its own.
    """
    latent = pair.latent() + pair.auxiliary()
    if not latent:
        raise ValueError("Expected a latent site for an importance-weighted bound, got none")
    places = {name: frames(pair.guide.nodes[name]) for name in latent}
    data = _datum_plates(pair.guide, latent)
    _check_nested(places, data)
    observed = pair.observed() + pair.guide_factors()
    inside = [name for name in observed if data <= frames(pair.site(name))]
    own = [name for name in latent if data <= places[name]]
    parts = _Parts(
        frozenset(dim for dim, _ in data),
        _common_scale(pair, own + inside),
        own,
        inside,
        [name for name in latent if name not in own],
        [name for name in observed if name not in inside],
    )
    _check_order(pair, parts)
    _check_shapes(pair)
    return parts


def _check_nested(places: dict[str, frozenset], data: frozenset) -> None:
    """Raises a ``ValueError`` unless all sites lie within the data plates or around them."""
    aside = [name for name, place in places.items() if not (place <= data or data <= place)]
    if aside:
        inside = [name for name, place in places.items() if data <= place]
        raise ValueError(
            f"Expected the plates of all latent sites to lie within each other, got {aside} in "
            f"other plates than {inside}: what a datum is cannot be told. Give each its own "
            f"objective, or use ELBO"
        )


def _check_shapes(pair: Pair) -> None:
    """Raises a ``ValueError`` for a batch without a plate, whose data would share their weights."""
    for trace in (pair.model, pair.guide):
        for name, site in sites(trace):
            if bare := bare_dims(site):
                shape = site["unscaled_log_prob"].shape
                raise ValueError(
                    f"Expected each batch dimension in a plate for an importance-weighted bound, "
                    f"got {name!r} with a log density of shape {tuple(shape)}, whose dimension "
                    f"{bare[0]} is in none: its data would have their weights in common. Open a "
                    f"pyro.plate, or make it an event by to_event"
                )


def _check_order(pair: Pair, parts: _Parts) -> None:
    """Raises a ``ValueError`` where what data share may depend on the samples of a datum.

    Given one draw of what comes before them the data are independent, and a bound for each makes
    a bound for all. That is lost where a shared site comes after a sample of a datum.
    """
    for trace, side in ((pair.guide, "guide"), (pair.model, "model")):
        names = [name for name in trace.nodes if trace.nodes[name]["type"] == "sample"]
        first = min(names.index(name) for name in parts.latent if name in names)
        late = [n for n in parts.outer + parts.outer_observed if n in names[first:]]
        if late:
            raise ValueError(
                f"Expected sites outside of the data plates before those within for an "
                f"importance-weighted bound, got {late[0]!r} after {names[first]!r} in the {side}: "
                f"its density may depend on the samples, and would be shared by the weights of "
                f"all data. Move it before the plate or into it, or use ELBO"
            )


def _common_scale(pair: Pair, names: list[str]) -> float:
    """Returns the one scale of the sites of a datum.

    Raises:
        ValueError: If there is more than one, or a plate is run sequentially.
    """
    scales: dict[str, Any] = {}
    for name in names:
        for trace, side in ((pair.model, "model"), (pair.guide, "guide")):
            if name in trace.nodes:
                scales[f"{name} in the {side}"] = trace.nodes[name]["scale"]
                check_vectorized(name, trace.nodes[name], "an importance-weighted bound")
    first = next(iter(scales.values()))
    if not all(isinstance(s, (int, float)) and s == first for s in scales.values()):
        raise ValueError(
            f"Expected one scale, a number, at all sites of a datum for an importance-weighted "
            f"bound, got {scales}: within the logarithm a scale raises the weights to a power. "
            f"Scale the loss instead, or use ELBO, whose beta weights the KL"
        )
    return float(first)


def _densities(
    pair: Pair, parts: _Parts, dim: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Returns log densities by datum: of what is observed, and p and q of what is latent."""

    def kept(term: Term) -> Tensor:
        return keep_dims(term.value, parts.dims, dim)

    gained = {
        name: kept(site_term(pair.model, name))
        if name in pair.model.nodes
        else -kept(site_term(pair.guide, name))
        for name in parts.observed
    }
    log_q = {name: kept(site_term(pair.guide, name)) for name in parts.latent}
    log_p = {
        name: kept(site_term(pair.model, name)) for name in parts.latent if name in pair.model.nodes
    }
    return gained, log_p, log_q


def _stacked(runs: list[dict[str, Tensor]], dim: int | None) -> dict[str, Tensor]:
    """Returns the values with particles leftmost, from one vectorized run or from several."""
    if dim is not None:
        return runs[0]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _shared(
    pairs: list[Pair], parts: _Parts, dim: int | None
) -> tuple[Tensor | None, dict[str, Tensor], dict[str, Tensor]]:
    """Returns what sites shared by data add to the loss, and their densities and rates."""
    if not parts.outer and not parts.outer_observed:
        return None, {}, {}
    gained = [[_outer_gain(pair, name) for name in parts.outer_observed] for pair in pairs]
    paid = [[term for name in parts.outer for term in _outer_rate(pair, name)] for pair in pairs]
    particles = 1 if dim is None else pairs[0].guide.nodes[parts.latent[0]]["value"].shape[0]
    loss = torch.as_tensor(sum(total(p) - total(g) for g, p in zip(gained, paid, strict=True)))
    likelihoods = average([gather(terms, None, dim) for terms in gained])
    rates = average([gather(terms, None, dim) for terms in paid])
    return loss / (len(pairs) * particles), likelihoods, rates


def _outer_gain(pair: Pair, name: str) -> Term:
    """Returns the log density of an observed site, minus that of a factor of the guide."""
    if name in pair.model.nodes:
        return site_term(pair.model, name)
    return negative(site_term(pair.guide, name))


def _outer_rate(pair: Pair, name: str) -> list[Term]:
    """Returns the terms of a rate."""
    terms = [site_term(pair.guide, name)]
    return [*terms, negative(site_term(pair.model, name))] if name in pair.model.nodes else terms
