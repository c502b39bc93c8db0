"""What the objectives share that weigh log likelihoods against rates."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.closed_form_kl import (
    closed_terms,
    rates_per_dimension,
    require_closed,
)
from pyro_vae.objectives.core.objective import (
    Objective,
    RunOptions,
    Values,
    check_choice,
)
from pyro_vae.objectives.core.sites import Pair
from pyro_vae.objectives.core.terms import Term, average, gather, negative, site_term

__all__ = ["Additive", "Terms", "shared_plates"]


class Terms(NamedTuple):
    """The terms of one run: log densities that are gained, and rates that are paid."""

    log_likelihood: list[Term]
    rate: list[Term]


class Additive(Objective):
    """What the objectives have in common that weigh log likelihoods against rates.

    Arguments:
        num_particles: The number of samples for each datum.
        analytic: True: closed forms, and an error where there is none; False: always sampled;
            None: closed forms where there are any.
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
        """Returns the terms for each datum, and their weighted sum where there is one."""
        pairs, dim = self._run(model, guide, args, kwargs)
        runs = [self._terms(pair) for pair in pairs]
        everything = [term for terms in runs for term in (*terms.log_likelihood, *terms.rate)]
        data_frames = shared_plates(everything)
        data = frozenset(dim for dim, _ in data_frames)
        gained = average([gather(terms.log_likelihood, data, dim) for terms in runs])
        paid = average([gather(terms.rate, data, dim) for terms in runs])
        objective = None
        apart = not data_frames and any(term.frames for term in everything)
        if not apart and all(data_frames <= term.frames for term in everything):
            objective = self._objective(gained, paid)
        by_dimension = [rates_per_dimension(pair, closed=self._closed()) for pair in pairs]
        rates = average([gather(terms, None, dim) for terms in by_dimension])
        return Values(objective, gained, paid, None, rates)

    def _objective(self, gained: dict[str, Tensor], paid: dict[str, Tensor]) -> Tensor | None:
        """Returns what is maximized for each datum, or ``None`` if data cannot be told apart."""
        return None

    def _closed(self) -> bool:
        """Tells whether closed forms are used where there are any."""
        return self.analytic is not False

    def _terms(self, pair: Pair) -> Terms:
        """Returns the terms of one run, closed forms where they are wanted and known."""
        closed = closed_terms(pair) if self._closed() else {}
        if self.analytic:
            require_closed({name: reason for name, (kl, reason) in closed.items() if kl is None})
        gained = [site_term(pair.model, name) for name in pair.observed()]
        gained += [negative(site_term(pair.guide, name)) for name in pair.guide_factors()]
        paid = [site_term(pair.guide, name) for name in pair.auxiliary()]
        for name in pair.latent():
            kl = closed.get(name, (None, ""))[0]
            if kl is None:
                paid.append(site_term(pair.guide, name))
                paid.append(negative(site_term(pair.model, name)))
            else:
                paid.append(site_term(pair.guide, name, kl))
        return Terms(gained, paid)


def shared_plates(terms: list[Term]) -> frozenset[tuple[int, str]]:
    """Returns the plates that all terms stand in, of those that stand in any."""
    every = [term.frames for term in terms if term.frames]
    return frozenset.intersection(*every) if every else frozenset()
