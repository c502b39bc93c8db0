"""The log importance weights of each datum, and the loss of global sites."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.objectives.core.sites import (
    AnyTrace,
    Pair,
    check_vectorized,
    dims_without_plate,
    is_point,
    iter_sites,
    sampled_sites,
    sum_except_dims,
)
from pyro_vae.objectives.core.terms import (
    Term,
    average_runs,
    get_plates,
    group_by_site,
    negate,
    site_term,
    sum_terms,
)

__all__ = ["Weights", "compute_weights", "find_global_sites"]


class _SiteGroups(NamedTuple):
    """The local sites, one per datum, and the global sites, shared by several data.

    Attributes:
        dims: The dimensions of the data plates.
        scale: The scale N / B of the data plates.
        local_latents: The latent sites of a datum, auxiliary ones of the guide included.
        local_observed: The observed sites of a datum, factors of the guide included.
        global_latents: The latent sites outside of some data plate.
        global_observed: The observed sites outside of some data plate.
    """

    dims: frozenset[int]
    scale: float
    local_latents: list[str]
    local_observed: list[str]
    global_latents: list[str]
    global_observed: list[str]


class Weights(NamedTuple):
    """The weights of each datum, and the loss of global sites.

    Attributes:
        log_p: log p of the local sites, ``(particles, *plates)``, minus the log density of point
            masses of the guide, which is a function of parameters and has no score.
        log_q: log q of the other local latents, ``(particles, *plates)``.
        scale: The scale N / B of the data plates.
        global_loss: The part of the loss from global sites; ``None`` without global sites.
        log_likelihood: The log density of each observed site, the mean over particles.
        rate: log q - log p of each latent site, the mean over particles.
    """

    log_p: Tensor
    log_q: Tensor
    scale: float
    global_loss: Tensor | None
    log_likelihood: dict[str, Tensor]
    rate: dict[str, Tensor]

    @property
    def log_weights(self) -> Tensor:
        """The logarithms of the weights."""
        return self.log_p - self.log_q


def compute_weights(pairs: list[Pair], dim: int | None) -> Weights:
    """Returns the weights of several runs, or of one run with a dimension of particles.

    Raises:
        ValueError: If the weights of a datum would depend on other data.
    """
    groups = _split_sites(pairs[0])
    runs = [_compute_densities(pair, groups, dim) for pair in pairs]
    log_likelihood, log_p, log_q = (
        _stack_particles([run[i] for run in runs], dim) for i in range(3)
    )
    zero = torch.zeros(())
    global_loss, log_likelihoods, rates = _compute_global_loss(pairs, groups, dim)
    points = [log_q[n] for n in log_q if is_point(pairs[0].guide.nodes[n]["fn"])]
    scored = [log_q[n] for n in log_q if not is_point(pairs[0].guide.nodes[n]["fn"])]
    return Weights(
        sum(log_likelihood.values(), zero) + sum(log_p.values(), zero) - sum(points, zero),
        sum(scored, zero),
        groups.scale,
        global_loss,
        log_likelihoods | {name: value.mean(0) for name, value in log_likelihood.items()},
        rates | {name: (q - log_p.get(name, zero)).mean(0) for name, q in log_q.items()},
    )


def find_global_sites(guide_trace: AnyTrace) -> frozenset[str]:
    """Returns the sites that a guide samples outside of plates in which it samples others."""
    names = sampled_sites(guide_trace)
    data = _find_datum_plates(guide_trace, names)
    return frozenset(name for name in names if get_plates(guide_trace.nodes[name]) < data)


def _find_datum_plates(guide_trace: AnyTrace, names: list[str]) -> frozenset[tuple[int, str]]:
    """Returns the innermost plates in which a guide samples: a datum is an element of them.

    A joint guide samples all latents outside of every plate, and has only point masses inside. Its
    particles differ only if the whole batch is one datum, which a scale forbids.
    """
    sites = [guide_trace.nodes[name] for name in names]
    innermost = max(map(get_plates, sites), key=len, default=frozenset())
    random = [get_plates(site) for site in sites if not is_point(site["fn"])]
    sampled = max(random, key=len, default=innermost)
    if not sampled < innermost:
        return innermost
    if all(isinstance(site["scale"], (int, float)) and site["scale"] == 1 for site in sites):
        return sampled
    inside = next(name for name in names if get_plates(guide_trace.nodes[name]) == innermost)
    warnings.warn(
        f"The guide draws nothing within the plates of {inside!r}, whose sites are scaled: all "
        f"particles are the same draw, and the bound is that of one. Use ELBO, or a guide that "
        f"draws each datum",
        stacklevel=2,
    )
    return innermost


def _split_sites(pair: Pair) -> _SiteGroups:
    """Splits the sites into local and global ones.

    Raises:
        ValueError: If the weights of a datum would depend on other data.
    """
    latent = pair.latent_sites + pair.auxiliary_sites
    if not latent:
        raise ValueError("Expected a latent site for an importance-weighted bound, got none")
    plates = {name: get_plates(pair.guide.nodes[name]) for name in latent}
    data = _find_datum_plates(pair.guide, latent)
    _check_nested(plates, data)
    observed = pair.observed_sites + pair.guide_factors
    inside = [name for name in observed if data <= get_plates(pair.site(name))]
    local = [name for name in latent if data <= plates[name]]
    groups = _SiteGroups(
        frozenset(dim for dim, _ in data),
        _common_scale(pair, local + inside),
        local,
        inside,
        [name for name in latent if name not in local],
        [name for name in observed if name not in inside],
    )
    _check_order(pair, groups)
    _check_shapes(pair)
    return groups


def _check_nested(plates: dict[str, frozenset], data: frozenset) -> None:
    separate = [name for name, of in plates.items() if not (of <= data or data <= of)]
    if separate:
        inside = [name for name, of in plates.items() if data <= of]
        raise ValueError(
            f"Expected the plates of all latent sites to be nested, got {separate} in other "
            f"plates than {inside}: a datum is not defined. Give each its own objective, or use "
            f"ELBO"
        )


def _check_shapes(pair: Pair) -> None:
    for trace in (pair.model, pair.guide):
        for name, site in iter_sites(trace):
            if bare := dims_without_plate(site):
                shape = site["unscaled_log_prob"].shape
                raise ValueError(
                    f"Expected each batch dimension in a plate for an importance-weighted bound, "
                    f"got {name!r} with a log density of shape {tuple(shape)}, whose dimension "
                    f"{bare[0]} has no plate: its data would share their weights. Open a "
                    f"pyro.plate, or make it an event by to_event"
                )


def _check_order(pair: Pair, groups: _SiteGroups) -> None:
    """Raises a ``ValueError`` if a global site may depend on the samples of a datum.

    Given the global sites before them, the data are independent, and the sum of their bounds is a
    bound for all. This fails if a global site comes after a sample of a datum.
    """
    for trace, side in ((pair.guide, "guide"), (pair.model, "model")):
        names = [name for name in trace.nodes if trace.nodes[name]["type"] == "sample"]
        first = min(names.index(name) for name in groups.local_latents if name in names)
        late = [n for n in groups.global_latents + groups.global_observed if n in names[first:]]
        if late:
            raise ValueError(
                f"Expected sites outside of the data plates before those within for an "
                f"importance-weighted bound, got {late[0]!r} after {names[first]!r} in the {side}: "
                f"its density may depend on the samples, and would be shared by the weights of "
                f"all data. Move it before the plate or into it, or use ELBO"
            )


def _common_scale(pair: Pair, names: list[str]) -> float:
    """Returns the scale that all local sites have in common.

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


def _compute_densities(
    pair: Pair, groups: _SiteGroups, dim: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Returns the log densities per datum: log likelihoods, log p and log q of local sites."""

    def per_datum(term: Term) -> Tensor:
        return sum_except_dims(term.value, groups.dims, dim)

    log_likelihood = {
        name: per_datum(site_term(pair.model, name))
        if name in pair.model.nodes
        else -per_datum(site_term(pair.guide, name))
        for name in groups.local_observed
    }
    log_q = {name: per_datum(site_term(pair.guide, name)) for name in groups.local_latents}
    log_p = {
        name: per_datum(site_term(pair.model, name))
        for name in groups.local_latents
        if name in pair.model.nodes
    }
    return log_likelihood, log_p, log_q


def _stack_particles(runs: list[dict[str, Tensor]], dim: int | None) -> dict[str, Tensor]:
    """Returns the values with particles leftmost, of one vectorized run or of several runs."""
    if dim is not None:
        return runs[0]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _compute_global_loss(
    pairs: list[Pair], groups: _SiteGroups, dim: int | None
) -> tuple[Tensor | None, dict[str, Tensor], dict[str, Tensor]]:
    """Returns the loss of the global sites, and their log likelihoods and rates."""
    if not groups.global_latents and not groups.global_observed:
        return None, {}, {}
    log_likelihoods = [
        [_global_log_likelihood(pair, name) for name in groups.global_observed] for pair in pairs
    ]
    rate_terms = [
        [term for name in groups.global_latents for term in _global_rate_terms(pair, name)]
        for pair in pairs
    ]
    particles = (
        1 if dim is None else pairs[0].guide.nodes[groups.local_latents[0]]["value"].shape[0]
    )
    loss = torch.as_tensor(
        sum(sum_terms(p) - sum_terms(g) for g, p in zip(log_likelihoods, rate_terms, strict=True))
    )
    means = average_runs([group_by_site(terms, None, dim) for terms in log_likelihoods])
    rates = average_runs([group_by_site(terms, None, dim) for terms in rate_terms])
    return loss / (len(pairs) * particles), means, rates


def _global_log_likelihood(pair: Pair, name: str) -> Term:
    """Returns the log density of an observed site, negated for a factor of the guide."""
    if name in pair.model.nodes:
        return site_term(pair.model, name)
    return negate(site_term(pair.guide, name))


def _global_rate_terms(pair: Pair, name: str) -> list[Term]:
    terms = [site_term(pair.guide, name)]
    return [*terms, negate(site_term(pair.model, name))] if name in pair.model.nodes else terms
