"""The base class of objectives that are sums of log likelihoods and rates."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.closed_form_kl import (
    closed_form_terms,
    rates_per_dimension,
    require_closed_form,
)
from pyro_vae.objectives.core.objective import (
    Objective,
    RunOptions,
    Values,
    check_choice,
)
from pyro_vae.objectives.core.sites import Pair
from pyro_vae.objectives.core.terms import Term, average_runs, group_by_site, negate, site_term

__all__ = ["Additive", "Terms", "common_plates"]


class Terms(NamedTuple):
    """The log likelihood and rate terms of one run."""

    log_likelihood: list[Term]
    rate: list[Term]


class Additive(Objective):
    """The base class of objectives that are sums of log likelihoods and rates.

    Arguments:
        num_particles: The number of samples for each datum.
        analytic: Whether KLs are in closed form. True: an error where there is no closed form;
            False: always sampled; None: closed form where available.
        run: As of :class:`~pyro_vae.objectives.Objective`.
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        analytic: bool | None = None,
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, **run)
        self.analytic = check_choice("analytic", analytic, (True, False, None))

    def values(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Values:
        """Returns the terms for each datum, and their weighted sum if it is defined."""
        pairs, dim = self._run_particles(model, guide, args, kwargs)
        runs = [self._compute_terms(pair) for pair in pairs]
        all_terms = [term for terms in runs for term in (*terms.log_likelihood, *terms.rate)]
        data_frames = common_plates(all_terms)
        data = frozenset(dim for dim, _ in data_frames)
        log_likelihoods = average_runs(
            [group_by_site(terms.log_likelihood, data, dim) for terms in runs]
        )
        rates = average_runs([group_by_site(terms.rate, data, dim) for terms in runs])
        objective = None
        apart = not data_frames and any(term.frames for term in all_terms)
        if not apart and all(data_frames <= term.frames for term in all_terms):
            objective = self._objective_per_datum(log_likelihoods, rates)
        by_dimension = [
            rates_per_dimension(pair, closed=self._uses_closed_form()) for pair in pairs
        ]
        per_dimension = average_runs([group_by_site(terms, None, dim) for terms in by_dimension])
        return Values(objective, log_likelihoods, rates, None, per_dimension)

    def _objective_per_datum(
        self, log_likelihoods: dict[str, Tensor], rates: dict[str, Tensor]
    ) -> Tensor | None:
        """Returns the objective per datum, or ``None`` if it is not a sum over data."""
        return None

    def _uses_closed_form(self) -> bool:
        """Whether closed forms are used where available."""
        return self.analytic is not False

    def _compute_terms(self, pair: Pair) -> Terms:
        closed = closed_form_terms(pair) if self._uses_closed_form() else {}
        if self.analytic:
            require_closed_form(
                {name: reason for name, (kl, reason) in closed.items() if kl is None}
            )
        log_likelihoods = [site_term(pair.model, name) for name in pair.observed_sites()]
        log_likelihoods += [negate(site_term(pair.guide, name)) for name in pair.guide_factors()]
        rates = [site_term(pair.guide, name) for name in pair.auxiliary_sites()]
        for name in pair.latent_sites():
            kl = closed.get(name, (None, ""))[0]
            if kl is None:
                rates.append(site_term(pair.guide, name))
                rates.append(negate(site_term(pair.model, name)))
            else:
                rates.append(site_term(pair.guide, name, kl))
        return Terms(log_likelihoods, rates)


def common_plates(terms: list[Term]) -> frozenset[tuple[int, str]]:
    """Returns the plates that all terms within plates have in common."""
    frames = [term.frames for term in terms if term.frames]
    return frozenset.intersection(*frames) if frames else frozenset()
