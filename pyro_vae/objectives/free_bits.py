"""The ELBO with free bits."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.additive import Additive
from pyro_vae.objectives.core.batch_means import count_data, divide_by_size
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_choice, check_scalar
from pyro_vae.objectives.core.sites import Pair, check_vectorized
from pyro_vae.objectives.core.terms import (
    Term,
    compute_terms,
    dimension_terms,
    is_known_equal,
    site_term,
    sum_terms,
)

__all__ = ["FreeBits"]


class FreeBits(Additive):
    r"""The ELBO, in which a rate below a threshold costs as much as the threshold.

    With :math:`\mathrm{KL}_{nj}` the rate of datum n in dimension j (``per="dimension"``) or at
    latent site j (``per="site"``), B data in a batch, and :math:`N = \sum_n s_n`,

    .. math::
        \sum_n s_n\, \mathbb{E}_q[\log p(x_n \mid z_n)] - P, \qquad
        P_{\text{batch}} = N \sum_j \max\Big( \lambda, \frac1B \sum_n \mathrm{KL}_{nj} \Big), \qquad
        P_{\text{datum}} = \sum_n s_n \sum_j \max(\lambda, \mathrm{KL}_{nj})

    Below the threshold the rate has no gradient, which keeps dimensions active that the KL would
    otherwise collapse.

    **Batch dependence.** ``of="datum"`` is a sum over data. ``of="batch"``, as in the paper, is
    not: by Jensen's inequality the expected penalty of a batch is at least that of the data. The
    excess vanishes as B grows, at the rate :math:`B^{-1/2}` where a mean is at the threshold and
    much faster elsewhere.

    The loss is never below that of the ELBO.

    References:
        | Improved variational inference with inverse autoregressive flow (Kingma et al., 2016),
          https://arxiv.org/abs/1606.04934

    Arguments:
        num_particles: The number of samples for each datum; rates are means over them.
        nats: :math:`\lambda`, the free nats in each dimension or at each site.
        per: ``"dimension"``, which needs guide and model to factorize over dimensions, or
            ``"site"``.
        of: ``"batch"``, the threshold applies to the mean over the batch, or ``"datum"``.
        analytic: As of :class:`~pyro_vae.objectives.ELBO`.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If an argument is out of range; when called, as
            :class:`~pyro_vae.objectives.ELBO` does, and if a site does not factorize.

    Example:
        >>> from pyro_vae import VAE
        >>> vae, x = VAE((1, 8, 8), 2), torch.ones(5, 1, 8, 8)
        >>> objective = FreeBits(nats=100.0)
        >>> loss = objective.differentiable_loss(vae.model, vae.guide, x)
        >>> bool(loss > 5 * 2 * 100.0)
        True
    """

    facts: ClassVar = Facts(
        "E log p(x given z) - sum_j max(l, KL_j)",
        "log p(x), below",
        "yes, on batches of that size",
        "where available; `analytic=True` requires it",
        '`of="datum"`: yes; `of="batch"`: no, depends on the batch\'s mean KL',
        "Kingma et al. 2016",
    )

    def __init__(
        self,
        num_particles: int = 1,
        *,
        nats: float | Tensor = 0.1,
        per: str = "dimension",
        of: str = "batch",
        analytic: bool | None = None,
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, analytic=analytic, **run)
        self.nats = check_scalar("nats", nats, least=0.0)
        self.per = check_choice("per", per, ("dimension", "site"))
        self.of = check_choice("of", of, ("batch", "datum"))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the objective, summed over the data, as a scalar tensor."""
        pairs, dim = self._run_particles(model, guide, args, kwargs)
        runs = [compute_terms(pair, self.analytic) for pair in pairs]
        loss = -torch.as_tensor(sum(sum_terms(terms.log_likelihood) for terms in runs))
        loss = loss / self.num_particles
        rate_terms = [
            self._rate_terms(pair, terms.rate) for pair, terms in zip(pairs, runs, strict=True)
        ]
        for name in rate_terms[0]:
            rates = torch.stack([_mean_rate(terms[name], dim) for terms in rate_terms]).mean(0)
            loss = loss + self._compute_penalty(rates, rate_terms[0][name][0], pairs[0])
        return loss

    def _rate_terms(self, pair: Pair, rates: list[Term]) -> dict[str, list[Term]]:
        """Returns the rate terms of each latent site, by dimension with ``per="dimension"``."""
        for name in pair.latent_sites + pair.auxiliary_sites:
            _check_same_scale_and_mask(pair, name)
        by_site: dict[str, list[Term]] = {}
        for term in rates:
            by_site.setdefault(term.name, []).append(term)
        if self.per == "site":
            return by_site
        return {name: self._dimension_terms(pair, name) for name in by_site}

    def _dimension_terms(self, pair: Pair, name: str) -> list[Term]:
        terms = dimension_terms(pair, name, self._uses_closed_form())
        if terms is None:
            raise ValueError(
                f"Expected guide and model to factorize over the dimensions of {name!r} for "
                f"per='dimension', got {type(pair.guide.nodes[name]['fn']).__name__} and "
                f"{type(pair.model.nodes[name]['fn']).__name__}: use per='site'"
            )
        return terms

    def _compute_penalty(self, rates: Tensor, term: Term, pair: Pair) -> Tensor:
        """Returns the penalty of the rates of one site, ``(*batch, *event)``."""
        site = pair.guide.nodes[term.name]
        if self.of == "datum":
            above = torch.maximum(rates, torch.as_tensor(self.nats, dtype=rates.dtype))
            return _scaled_sum(site_term(pair.guide, term.name, above, term.event_dim)).sum()
        check_vectorized(term.name, site, "free bits of a batch's mean")
        size = count_data([site], term.frames)
        mean = divide_by_size(_scaled_sum(term._replace(value=rates)), size)
        return size * torch.maximum(mean, torch.as_tensor(self.nats, dtype=rates.dtype)).sum()


def _check_same_scale_and_mask(pair: Pair, name: str) -> None:
    """Raises a ``ValueError`` for a site whose terms do not form a single KL."""
    if name not in pair.model.nodes:
        raise ValueError(
            f"Expected no auxiliary sites for free bits, got {name!r}, which has no separate rate: "
            f"use ELBO"
        )
    q, p = pair.guide.nodes[name], pair.model.nodes[name]
    scales = [q["scale"], p["scale"]]
    if any(isinstance(scale, Tensor) for scale in scales):
        raise ValueError(
            f"Expected numbers as scales for free bits, got a tensor at {name!r}: use ELBO"
        )
    if not (is_known_equal(*scales) and is_known_equal(q["mask"], p["mask"])):
        raise ValueError(
            f"Expected the same scale and mask in guide and model at {name!r} for free bits, got "
            f"others or tensors that cannot be compared: a threshold applies to one KL. Use ELBO"
        )


def _mean_rate(terms: list[Term], dim: int | None) -> Tensor:
    """Returns the rates of a site, the mean over particles with their dimension kept."""
    rate = torch.stack([term.value for term in terms]).sum(0)
    return rate if dim is None else rate.mean(dim - terms[0].event_dim, keepdim=True)


def _scaled_sum(term: Term) -> Tensor:
    """Returns the scaled sum of a term over its batch, of the shape of an event."""
    value = term.value * term.scale
    batch = tuple(range(value.dim() - term.event_dim))
    return value.sum(batch) if batch else value
