"""The base class of objectives that are sums of log likelihoods and rates."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.objective import (
    Objective,
    RunOptions,
    Values,
    check_choice,
)
from pyro_vae.objectives.core.terms import (
    average_runs,
    common_plates,
    compute_terms,
    group_by_site,
    rates_per_dimension,
)

__all__ = ["Additive"]


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
        closed = self._uses_closed_form()
        runs = [compute_terms(pair, self.analytic if closed else False) for pair in pairs]
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
        by_dimension = [rates_per_dimension(pair, closed=closed) for pair in pairs]
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
