"""The evidence lower bound."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.objectives.base import Objective, Values
from pyro_vae.objectives.closed import closed_terms, require_closed
from pyro_vae.objectives.traces import Pair, keep_dims, plates

__all__ = ["ELBO"]


class Term(NamedTuple):
    """One site's part in the bound: masked, not scaled, of the shape of its plates."""

    name: str
    value: Tensor
    scale: float | Tensor
    plates: frozenset[int]


class Terms(NamedTuple):
    """The terms of one run: log densities that are gained, and rates that are paid."""

    log_likelihood: list[Term]
    rate: list[Term]


class ELBO(Objective):
    r"""The evidence lower bound, with the KL weighted by beta.

    .. math::
        \mathcal{L}_\beta = \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)]
        - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    The loss is minus its sum over the data, each site times the scale of its plates. The KL of a
    site is in closed form where one is known and valid (:func:`~pyro_vae.objectives.kl_report`
    says where and why) and sampled otherwise, as :class:`pyro.infer.Trace_ELBO` does. It is
    a bound on the evidence for beta = 1, and a looser one for more.

    References:
        | Auto-encoding variational Bayes (Kingma and Welling, 2013),
          https://arxiv.org/abs/1312.6114
        | beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl

    Arguments:
        num_particles: The number of samples for each datum.
        beta: The weight of the KL, a number or a scalar tensor; zero is allowed.
        analytic: True: closed forms, and an error where there is none; False: always sampled;
            None: closed forms where there are any.
        max_plate_nesting: As of :class:`~pyro_vae.objectives.Objective`.
        vectorize_particles: As of :class:`~pyro_vae.objectives.Objective`.
        retain_graph: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``num_particles`` is not a positive integer or ``beta`` is negative; when
            called, if a latent site of the guide is not reparameterized, a latent site is missing
            in model or guide, or ``analytic`` is True and a closed form is missing.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae = VAE((1, 8, 8), 2)
        >>> x = torch.ones(5, 1, 8, 8)
        >>> ELBO(beta=0.5, analytic=True).values(vae.model, vae.guide, x).rate["vae.z"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        num_particles: int = 1,
        *,
        beta: float | Tensor = 1.0,
        analytic: bool | None = None,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        super().__init__(
            num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        if analytic not in (True, False, None):
            raise ValueError(f"Expected analytic to be True, False or None, got {analytic!r}")
        self.beta = check_beta(beta)
        self.analytic = analytic

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the bound, summed over the data, as a scalar tensor."""
        pairs, _ = self._run(model, guide, args, kwargs)
        loss: Tensor | float = 0.0
        for pair in pairs:
            terms = self._terms(pair)
            loss = loss - total(terms.log_likelihood) + self.beta * total(terms.rate)
        return torch.as_tensor(loss) / self.num_particles

    def values(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Values:
        """Returns the bound and its terms for each datum."""
        pairs, dim = self._run(model, guide, args, kwargs)
        runs = [self._terms(pair) for pair in pairs]
        everything = [term for terms in runs for term in (*terms.log_likelihood, *terms.rate)]
        data = frozenset.intersection(
            *(t.plates for t in everything if t.plates),
            frozenset(d for t in everything for d in t.plates),
        )
        gained = average([gather(terms.log_likelihood, data, dim) for terms in runs])
        paid = average([gather(terms.rate, data, dim) for terms in runs])
        objective = None
        if all(data <= term.plates for term in everything):
            objective = torch.as_tensor(sum(gained.values()) - self.beta * sum(paid.values()))
        return Values(objective, gained, paid, None)

    def _terms(self, pair: Pair) -> Terms:
        """Returns the terms of one run, closed forms where they are wanted and known."""
        closed = {} if self.analytic is False else closed_terms(pair)
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


def check_beta(beta: float | Tensor) -> float | Tensor:
    """Returns beta, or raises a ``ValueError`` if it is a negative number or not a scalar."""
    if isinstance(beta, Tensor):
        if beta.dim():
            raise ValueError(f"Expected beta to be a scalar, got shape {tuple(beta.shape)}")
        return beta
    if not 0 <= beta < float("inf"):
        raise ValueError(f"Expected beta to be zero or more, got {beta}")
    return float(beta)


def site_term(trace: Any, name: str, value: Tensor | None = None) -> Term:
    """Returns a site's log density, or another value, masked as the site is."""
    site = trace.nodes[name]
    value = site["unscaled_log_prob"] if value is None else value
    return Term(name, scale_and_mask(value, mask=site["mask"]), site["scale"], plates(site))


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


def gather(terms: list[Term], data: frozenset[int], dim: int | None) -> dict[str, Tensor]:
    """Returns the terms by site, for each datum, averaged over vectorized particles."""
    out: dict[str, Tensor] = {}
    for term in terms:
        value = keep_dims(term.value, data & term.plates, dim)
        value = value if dim is None else value.mean(0)
        out[term.name] = out[term.name] + value if term.name in out else value
    return out


def average(runs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean over runs, name by name."""
    return {name: torch.stack([run[name] for run in runs]).mean(0) for name in runs[0]}
