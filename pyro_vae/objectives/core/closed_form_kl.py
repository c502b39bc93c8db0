"""KL terms in closed form, and the reasons why other terms are sampled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.guard import guard_process_state
from pyro_vae.kl import closed_form
from pyro_vae.objectives.core.sites import Pair, is_point
from pyro_vae.objectives.core.terms import Term, negate, site_term
from pyro_vae.objectives.core.tracing import no_side_effects, run_pair

__all__ = ["KLTerm", "closed_form_terms", "dimension_terms", "kl_report", "rates_per_dimension"]


class KLTerm(NamedTuple):
    """How the KL term of one latent site is computed.

    Attributes:
        closed_form: Whether it is computed in closed form; it is sampled otherwise.
        reason: The reason, in one line.
    """

    closed_form: bool
    reason: str


@guard_process_state
def kl_report(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    strict: bool = False,
    **kwargs: Any,
) -> dict[str, KLTerm]:
    """Reports for each latent site whether its KL is in closed form or sampled, and why.

    The report describes :class:`~pyro_vae.objectives.ELBO`. It runs model and guide once, without
    changes to random state, gradients, parameters and running statistics.

    Arguments:
        model: A Pyro model.
        guide: Its guide.
        args: The positional arguments of both.
        strict: Whether a sampled term raises an error.
        kwargs: The keyword arguments of both.

    Raises:
        ValueError: If ``strict`` and a term is sampled.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE, priors
        >>> vae = VAE((1, 8, 8), 2)
        >>> kl_report(vae.model, vae.guide, torch.ones(5, 1, 8, 8))
        {'vae.z': KLTerm(closed_form=True, reason='closed form for Normal and Normal')}
        >>> vae = VAE((1, 8, 8), 2, prior=priors.Mixture)
        >>> kl_report(vae.model, vae.guide, torch.ones(5, 1, 8, 8))["vae.z"].closed_form
        False
    """
    with no_side_effects():
        pair = run_pair("kl_report", model, guide, args, kwargs)
        terms = closed_form_terms(pair)
    report = {name: KLTerm(kl is not None, reason) for name, (kl, reason) in terms.items()}
    if strict:
        require_closed_form(
            {name: term.reason for name, term in report.items() if not term.closed_form}
        )
    return report


def closed_form_terms(pair: Pair) -> dict[str, tuple[Tensor | None, str]]:
    """Returns the KL in closed form of each latent site, or ``None``, and the reason."""
    return {name: _closed_form_term(pair, name) for name in pair.latent_sites()}


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


def rates_per_dimension(pair: Pair, *, closed: bool) -> list[Term]:
    """Returns the rate of each dimension at the sites that factorize over dimensions.

    Arguments:
        pair: The traces.
        closed: Whether to use closed forms where available.
    """
    return [
        term for name in pair.latent_sites() for term in dimension_terms(pair, name, closed) or ()
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


def _find_misplaced_parent(pair: Pair, name: str) -> str | None:
    """Returns a site that comes after this one in the guide but before it in the model."""
    in_guide = pair.latent_sites() + pair.auxiliary_sites()
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
