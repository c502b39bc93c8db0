"""Which KL terms are in closed form, and why the others are sampled."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pyro_vae.guard import guard_process_state
from pyro_vae.objectives.core.terms import closed_form_terms, require_closed_form
from pyro_vae.objectives.core.tracing import no_side_effects, run_pair

__all__ = ["KLTerm", "kl_report"]


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
    changes to random state, gradients, parameters and running statistics. Sites whose draws have no
    gradient are reported too.

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
        pair = run_pair("kl_report", model, guide, args, kwargs, with_gradient=False)
        terms = closed_form_terms(pair)
    report = {name: KLTerm(kl is not None, reason) for name, (kl, reason) in terms.items()}
    if strict:
        require_closed_form(
            {name: term.reason for name, term in report.items() if not term.closed_form}
        )
    return report
