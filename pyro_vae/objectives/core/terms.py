"""The terms of a bound that is a sum over sites: log densities, and KLs in closed form."""

from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.kl import closed_form
from pyro_vae.objectives.core.sites import PARTICLES, Pair, is_point, sum_except_dims

__all__ = [
    "Term",
    "Terms",
    "average_runs",
    "closed_form_terms",
    "common_plates",
    "compute_terms",
    "dimension_terms",
    "get_plates",
    "group_by_site",
    "is_known_equal",
    "negate",
    "rates_per_dimension",
    "require_closed_form",
    "site_term",
    "sum_terms",
]


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


class Terms(NamedTuple):
    """The log likelihood and rate terms of one run."""

    log_likelihood: list[Term]
    rate: list[Term]


def compute_terms(pair: Pair, analytic: bool | None) -> Terms:
    """Returns the log likelihoods and rates of all sites.

    Arguments:
        pair: The traces.
        analytic: Whether KLs are in closed form. True: an error where there is no closed form;
            False: always sampled; None: closed form where available.
    """
    closed = {} if analytic is False else closed_form_terms(pair)
    if analytic:
        require_closed_form({name: reason for name, (kl, reason) in closed.items() if kl is None})
    log_likelihoods = [site_term(pair.model, name) for name in pair.observed_sites]
    log_likelihoods += [negate(site_term(pair.guide, name)) for name in pair.guide_factors]
    rates = [site_term(pair.guide, name) for name in pair.auxiliary_sites]
    for name in pair.latent_sites:
        kl = closed.get(name, (None, ""))[0]
        if kl is None:
            rates.append(site_term(pair.guide, name))
            rates.append(negate(site_term(pair.model, name)))
        else:
            rates.append(site_term(pair.guide, name, kl))
    return Terms(log_likelihoods, rates)


def closed_form_terms(pair: Pair) -> dict[str, tuple[Tensor | None, str]]:
    """Returns the KL in closed form of each latent site, or ``None``, and the reason."""
    return {name: _closed_form_term(pair, name) for name in pair.latent_sites}


def require_closed_form(sampled: dict[str, str]) -> None:
    """Raises a ``ValueError`` if any site is sampled; maps sites to reasons."""
    if sampled:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in sampled.items())
        raise ValueError(f"Expected a closed-form KL at every latent site, got {reasons}")


def _closed_form_term(pair: Pair, name: str) -> tuple[Tensor | None, str]:
    q_site, p_site = pair.guide.nodes[name], pair.model.nodes[name]
    if not is_known_equal(q_site["scale"], p_site["scale"]):
        return None, "the scales of guide and model differ or cannot be compared"
    if not is_known_equal(q_site["mask"], p_site["mask"]):
        return None, "the masks of guide and model differ or cannot be compared"
    if is_point(q_site["fn"]):
        return None, "the guide has a point mass here, whose term is its density alone"
    parent = _find_misplaced_parent(pair, name)
    if parent is not None:
        return None, (
            f"{parent!r} comes after this site in the guide but before it in the model, so that "
            f"the KL given one draw is not the KL"
        )
    return closed_form(q_site["fn"], p_site["fn"])


def _find_misplaced_parent(pair: Pair, name: str) -> str | None:
    """Returns a site that comes after this one in the guide but before it in the model."""
    in_guide = pair.latent_sites + pair.auxiliary_sites
    in_guide = [site for site in pair.guide.nodes if site in in_guide]
    in_model = list(pair.model.nodes)
    later = in_guide[in_guide.index(name) + 1 :]
    earlier = in_model[: in_model.index(name)]
    return next((site for site in later if site in earlier), None)


def is_known_equal(a: Any, b: Any) -> bool:
    """Whether two scales or masks are known to be equal without reading a tensor."""
    if a is b:
        return True
    return isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b


def site_term(trace: Any, name: str, value: Tensor | None = None, event_dim: int = 0) -> Term:
    """Returns the log density of a site, or another value, with the mask of the site."""
    site = trace.nodes[name]
    value = site["unscaled_log_prob"] if value is None else value
    mask = site["mask"]
    if event_dim and isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * event_dim)
    masked = scale_and_mask(value, mask=mask)
    return Term(name, masked, site["scale"], get_plates(site), event_dim)


def get_plates(site: Any) -> frozenset[tuple[int, str]]:
    """Returns the dimension and name of each plate of a site, except that of particles."""
    return frozenset(
        (frame.dim, frame.name)
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.name != PARTICLES
    )


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


def common_plates(terms: list[Term]) -> frozenset[tuple[int, str]]:
    """Returns the plates that all terms within plates have in common."""
    frames = [term.frames for term in terms if term.frames]
    return frozenset.intersection(*frames) if frames else frozenset()


def rates_per_dimension(pair: Pair, *, closed: bool) -> list[Term]:
    """Returns the rate of each dimension at the sites that factorize over dimensions.

    Arguments:
        pair: The traces.
        closed: Whether to use closed forms where available.
    """
    return [
        term for name in pair.latent_sites for term in dimension_terms(pair, name, closed) or ()
    ]


def dimension_terms(pair: Pair, name: str, closed: bool) -> list[Term] | None:
    """Returns the rate terms of each dimension, or ``None`` if a site does not factorize."""
    site = pair.guide.nodes[name]
    q, p = _elements(site["fn"]), _elements(pair.model.nodes[name]["fn"])
    if q is None or p is None or q.batch_shape != p.batch_shape:
        return None
    event_dim = site["fn"].event_dim
    if closed and _closed_form_term(pair, name)[0] is not None:
        kl, _ = closed_form(q, p)
        if kl is not None:
            return [site_term(pair.guide, name, kl, event_dim)]
    density = q.log_prob(site["value"])
    return [
        site_term(pair.guide, name, density, event_dim),
        negate(site_term(pair.model, name, p.log_prob(site["value"]), event_dim)),
    ]


def _elements(fn: Any) -> Any:
    """Returns the distribution of the elements of an event, or ``None`` if they are dependent."""
    if not fn.event_dim:
        return fn
    if isinstance(fn, torch.distributions.Independent) and not fn.base_dist.event_shape:
        return fn.base_dist
    return None
