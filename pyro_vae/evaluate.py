"""Judging a trained VAE: pure functions from data to nats, one value a row."""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, overload

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.collapse import ACTIVE_VARIANCE
from pyro_vae.finite import check_finite, check_weights, joined, not_finite, valid_parameters
from pyro_vae.guard import guard_process_state
from pyro_vae.kl import closed_form
from pyro_vae.masks import factorizes, fill, mask_elements, split_mask
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.vae import VAE
from pyro_vae.validation import (
    check_choice,
    check_flag,
    check_number,
    check_size,
    check_tensor,
    describe_value,
)

__all__ = [
    "Bound",
    "Evidence",
    "active_units",
    "elbo",
    "kl_per_dimension",
    "log_evidence",
    "posterior_means",
]

LOG_LIKELIHOOD = "log p(x given z)"

MAX_ELEMENTS = 2**22
"""How many numbers of decoder output are held at once: 16 MiB in single precision."""


class Bound(NamedTuple):
    """The evidence lower bound at beta = 1 and its parts, each ``(N,)`` in nats.

    Attributes:
        elbo: Minus the distortion minus the rate.
        rate: KL(q(z given x), p(z)).
        distortion: -E_q log p(x given z).
        closed_form: Whether the rate is in closed form; it is sampled otherwise.
    """

    elbo: Tensor
    rate: Tensor
    distortion: Tensor
    closed_form: bool


class Evidence(NamedTuple):
    """Estimates of log p(x) and how far to trust them, each ``(N,)``.

    Attributes:
        log_evidence: In nats.
        standard_error: Of that, by the delta method, in nats; NaN for a single particle.
        effective_sample_size: (sum w)^2 / sum w^2, between 1 and the number of particles. Where
            it is small the standard error is too small.
    """

    log_evidence: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor


class Chunk(NamedTuple):
    """Some rows of the data, and the distributions that do not depend on a sample."""

    x: Tensor
    covariates: Tensor | None
    rows: Tensor | None
    elements: Tensor | None
    q: dist.TorchDistribution
    prior: dist.TorchDistribution

    def log_likelihood(self, vae: VAE, z: Tensor) -> Tensor:
        """Returns log p(x given z), ``(particles, rows)``."""
        with valid_parameters("p(x given z)"):
            p = vae.decode(z, self.covariates)
        if self.elements is not None and (self.rows is None or factorizes(p)):
            p = mask_elements(p, self.elements)
        return self.present(p.log_prob(self.x))

    def present(self, value: Tensor) -> Tensor:
        """Returns values by row, zero for the rows that a mask takes out."""
        return value if self.rows is None else torch.where(self.rows, value, 0.0)


@overload
def log_evidence(
    vae: VAE,
    x: Tensor,
    num_particles: int = 5000,
    *,
    proposal: str = "posterior",
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
    diagnostics: Literal[False] = False,
    max_elements: int = MAX_ELEMENTS,
    progress: bool | None = None,
) -> Tensor: ...


@overload
def log_evidence(
    vae: VAE,
    x: Tensor,
    num_particles: int = 5000,
    *,
    proposal: str = "posterior",
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
    diagnostics: Literal[True],
    max_elements: int = MAX_ELEMENTS,
    progress: bool | None = None,
) -> Evidence: ...


@overload
def log_evidence(
    vae: VAE,
    x: Tensor,
    num_particles: int = 5000,
    *,
    proposal: str = "posterior",
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
    diagnostics: bool,
    max_elements: int = MAX_ELEMENTS,
    progress: bool | None = None,
) -> Tensor | Evidence: ...


@guard_process_state
@torch.no_grad()
def log_evidence(
    vae: VAE,
    x: Tensor,
    num_particles: int = 5000,
    *,
    proposal: str = "posterior",
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
    diagnostics: bool = False,
    max_elements: int = MAX_ELEMENTS,
    progress: bool | None = None,
) -> Tensor | Evidence:
    r"""Estimates log p(x) by importance sampling.

    .. math::
        \log \hat p(x) = \log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}

    Each row is encoded once. :math:`\hat p(x)` is unbiased, so that its logarithm is below
    log p(x) on average, and rises to it with K.

    References:
        | Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2015),
          https://arxiv.org/abs/1509.00519

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        x: Data of shape ``(N, *event_shape)``.
        num_particles: K, any positive integer.
        proposal: ``"posterior"``, or ``"prior"``: z from p(z), whose weights are p(x given z).
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: True where a value is observed, of the shape of ``x`` or ``(N,)``; the evidence is
            that of the observed values, and zero for a row that is taken out.
        diagnostics: Whether to return the standard error and effective sample size too.
        max_elements: How many numbers of decoder output are held at once.
        progress: ``True`` shows progress, as a bar in a terminal or notebook and as lines at
            intervals elsewhere; ``False`` does not; ``None`` shows bars only.

    Returns:
        ``(N,)`` in nats, or an :class:`Evidence`.

    Raises:
        ValueError: If an argument is out of range or the data cannot be scored.
        FloatingPointError: If the estimate of a row is not finite; names the rows and the term.

    Example:
        >>> vae = VAE((1, 8, 8), 2)
        >>> log_evidence(vae, torch.ones(5, 1, 8, 8), num_particles=100).shape
        torch.Size([5])
    """
    num_particles = check_size("num_particles", num_particles, least=1)
    check_choice("proposal", proposal, ("posterior", "prior"))
    max_elements = check_size("max_elements", max_elements, least=1)
    diagnostics = check_flag("diagnostics", diagnostics)
    check_vae(vae)
    rows = max(1, min(100, max_elements // vae.likelihood.feature_shape.numel()))
    at_once = max(1, max_elements // (rows * vae.likelihood.feature_shape.numel()))
    with Progress("log evidence", _rows(x), "rows", show=progress) as shown:
        sums = [
            weight_sums(vae, part, num_particles, at_once, proposal, shown)
            for part in chunks(vae, x, covariates, mask, rows)
        ]
    columns = list(zip(*sums, strict=True))
    log_sum, log_square_sum = torch.cat(columns[0]), torch.cat(columns[1])
    estimate = (log_sum - math.log(num_particles)).to(x.dtype)
    check_finite("log evidence", estimate, joined(columns[2]))
    if not diagnostics:
        return estimate
    size = torch.exp(2 * log_sum - log_square_sum).clamp(1, num_particles)
    spread = (num_particles / size - 1) / (num_particles - 1)
    return Evidence(estimate, spread.sqrt().to(x.dtype), size.to(x.dtype))


def weight_sums(
    vae: VAE, chunk: Chunk, num_particles: int, at_once: int, proposal: str, progress: Progress
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Returns the logarithms of the sum of weights and of the sum of their squares, by row.

    The third result gives for each term the rows in which it is not finite for some particle.
    """
    # Double precision, as twice the logarithms of large weights are subtracted from each other.
    log_sum = chunk.x.new_full((len(chunk.x),), -math.inf, dtype=torch.float64)
    log_square_sum = log_sum.clone()
    faults: dict[str, Tensor] = {}
    with eval_mode(vae):
        for start in range(0, num_particles, at_once):
            shape = torch.Size((min(at_once, num_particles - start),))
            if proposal == "posterior":
                z = chunk.q.sample(shape)
                terms = _rate_terms(chunk, z)
            else:
                prior = chunk.prior.expand(torch.Size((len(chunk.x),)))
                z, terms = prior.sample(shape), {}
            terms[LOG_LIKELIHOOD] = chunk.log_likelihood(vae, z)
            for name, bad in not_finite(terms).items():
                faults[name] = bad | faults.get(name, False)
            log_w = torch.stack(list(terms.values())).double().sum(0)
            log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
            log_square_sum = torch.logaddexp(log_square_sum, (2 * log_w).logsumexp(0))
            progress.advance(len(chunk.x) * len(z) / num_particles)
    return log_sum, log_square_sum, faults


def _rows(x: Tensor) -> int:
    # Checked later.
    return len(x) if isinstance(x, Tensor) and x.dim() else 0


def _rate_terms(chunk: Chunk, z: Tensor) -> dict[str, Tensor]:
    """Returns the two terms of minus the sampled rate, ``(particles, rows)``."""
    return {
        "log p(z)": chunk.present(chunk.prior.log_prob(z)),
        "log q(z given x)": -chunk.present(chunk.q.log_prob(z)),
    }


@guard_process_state
@torch.no_grad()
def elbo(
    vae: VAE,
    x: Tensor,
    num_particles: int = 1,
    *,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
    max_elements: int = MAX_ELEMENTS,
    progress: bool | None = None,
) -> Bound:
    """Returns the evidence lower bound at beta = 1 with its rate and distortion, by row.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        x: Data of shape ``(N, *event_shape)``.
        num_particles: The number of samples for the distortion, and for the rate where it has no
            closed form.
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: As in :func:`log_evidence`.
        max_elements: As in :func:`log_evidence`.
        progress: As in :func:`log_evidence`.

    Raises:
        ValueError: If an argument is out of range or the data cannot be scored.
        FloatingPointError: If the bound of a row is not finite; names the rows and the term.

    Example:
        >>> vae = VAE((1, 8, 8), 2)
        >>> elbo(vae, torch.ones(5, 1, 8, 8)).closed_form
        True
    """
    num_particles = check_size("num_particles", num_particles, least=1)
    max_elements = check_size("max_elements", max_elements, least=1)
    check_vae(vae)
    with Progress("ELBO", _rows(x), "rows", show=progress) as shown:
        bound, faults = estimate_elbo(
            vae,
            x,
            num_particles=num_particles,
            covariates=covariates,
            mask=mask,
            max_elements=max_elements,
            progress=shown,
        )
    check_finite("ELBO", bound.elbo, faults)
    return bound


@torch.no_grad()
def estimate_elbo(
    vae: VAE,
    x: Tensor,
    *,
    num_particles: int = 1,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
    max_elements: int = MAX_ELEMENTS,
    progress: Progress | None = None,
) -> tuple[Bound, dict[str, Tensor]]:
    """Returns the bound of :func:`elbo`, finite or not, and the rows in which terms are not.

    For training, which restores the last good weights before it reports a bound that is not
    finite. Arguments as in :func:`elbo`.
    """
    size = max(1, max_elements // (num_particles * vae.likelihood.feature_shape.numel()))
    rates, distortions, faults, kl = [], [], [], None
    for chunk in chunks(vae, x, covariates, mask, size):
        with eval_mode(vae):
            z = chunk.q.sample(torch.Size((num_particles,)))
            kl, _ = closed_form(chunk.q, chunk.prior)
            terms = (
                _rate_terms(chunk, z)
                if kl is None
                else {"KL(q(z given x), p(z))": -chunk.present(kl)[None]}
            )
            rates.append(-torch.stack(list(terms.values())).sum(0).mean(0))
            terms[LOG_LIKELIHOOD] = chunk.log_likelihood(vae, z)
            distortions.append(-terms[LOG_LIKELIHOOD].mean(0))
            faults.append(not_finite(terms))
        if progress is not None:
            progress.advance(len(chunk.x))
    rate, distortion = torch.cat(rates), torch.cat(distortions)
    return Bound(-distortion - rate, rate, distortion, kl is not None), joined(faults)


@guard_process_state
@torch.no_grad()
def posterior_means(
    vae: VAE, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Returns the means of q(z given x), ``(N, latent_dim)``; arguments as in :func:`elbo`."""
    check_vae(vae)
    means = torch.cat([chunk.q.mean for chunk in chunks(vae, x, covariates, mask, 10_000)])
    check_finite("posterior mean", means.sum(-1), {})
    return means


@guard_process_state
def active_units(
    vae: VAE,
    x: Tensor,
    *,
    threshold: float = ACTIVE_VARIANCE,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Tells which latent dimensions depend on the data.

    .. math:: \mathrm{Var}_x\, \mathbb{E}_{q(z \mid x)}[z_d] > \mathrm{threshold}

    References:
        | Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2015),
          https://arxiv.org/abs/1509.00519

    Arguments:
        vae: The VAE.
        x: Data of shape ``(N, *event_shape)``, of two rows or more.
        threshold: The variance above which a dimension is active.
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: As in :func:`log_evidence`.

    Returns:
        A boolean tensor of shape ``(latent_dim,)``.

    Raises:
        ValueError: If there are fewer than two rows, over which nothing can vary.
    """
    threshold = check_number("threshold", threshold, least=0.0, infinite=True)
    means = posterior_means(vae, x, covariates=covariates, mask=mask)
    if mask is not None and mask.dim() == 1:
        means = means[mask]
    if len(means) < 2:
        raise ValueError(
            f"Expected x to have two rows or more that the mask leaves in, got {len(means)}: a "
            f"unit is active if its posterior mean varies over rows"
        )
    return means.var(0) > threshold


@guard_process_state
@torch.no_grad()
def kl_per_dimension(
    vae: VAE,
    x: Tensor,
    num_particles: int = 10,
    *,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Returns the KL of each latent dimension's marginals, averaged over the data, in nats.

    .. math:: \mathbb{E}_x \mathrm{KL}(q(z_d \mid x) \,\|\, p(z_d))

    The dimensions sum to the rate if both posterior and prior factorize.

    Arguments:
        vae: The VAE.
        x: Data of shape ``(N, *event_shape)``.
        num_particles: The number of samples for each row where there is no closed form.
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: As in :func:`log_evidence`.

    Returns:
        A tensor of shape ``(latent_dim,)``.

    Raises:
        ValueError: If a distribution has no marginals that are known here, or the mask takes every
            row out.
        FloatingPointError: If the KL of a row is not finite.
    """
    num_particles = check_size("num_particles", num_particles, least=1)
    check_vae(vae)
    kls = []
    for chunk in chunks(vae, x, covariates, mask, 1000):
        q, p = marginals(chunk.q), marginals(chunk.prior)
        kl, _ = closed_form(q, p)
        if kl is None:
            z = q.sample(torch.Size((num_particles,)))
            kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
        kls.append(kl if chunk.rows is None else kl[chunk.rows])
    kl = torch.cat(kls)
    if not len(kl):
        raise ValueError(f"Expected mask to leave a row in, got none of {len(x)}")
    check_finite("KL by dimension", kl.sum(-1), {})
    return kl.double().mean(0).to(x.dtype)


def check_vae(vae: Any) -> None:
    """Raises an error unless a VAE with finite weights is given."""
    if not isinstance(vae, VAE):
        raise ValueError(f"Expected vae to be a VAE, got {describe_value(vae)}")
    check_weights(vae)


def marginals(d: dist.TorchDistribution) -> dist.TorchDistribution:
    """Returns the distributions of the single dimensions, as one of batch shape ``(*, dim)``."""
    if isinstance(d, torch.distributions.Independent):
        return d.base_dist
    if isinstance(d, torch.distributions.MultivariateNormal):
        return dist.Normal(d.mean, d.variance.sqrt())
    if isinstance(d, torch.distributions.MixtureSameFamily):
        parts = marginals(d.component_distribution)
        if isinstance(parts, torch.distributions.Normal):
            # From (*batch, components, dim) to (*batch, dim, components).
            parts = dist.Normal(parts.loc.transpose(-1, -2), parts.scale.transpose(-1, -2))
            logits = d.mixture_distribution.logits.unsqueeze(-2).expand(parts.batch_shape)
            return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
    raise ValueError(f"Expected a distribution whose marginals are known, got {d}")


def chunks(
    vae: VAE, x: Tensor, covariates: Tensor | None, mask: Tensor | None, size: int
) -> Iterator[Chunk]:
    """Checks the data, then yields them in parts, each encoded once."""
    check_tensor("x", x)
    if x.dim() != len(vae.event_shape) + 1:
        raise ValueError(
            f"Expected x of shape (N, {', '.join(map(str, vae.event_shape))}), got {tuple(x.shape)}"
        )
    vae.check(x, mask)
    if covariates is not None:
        _check_covariates(covariates, x)
    rows, elements = split_mask(mask, x, vae.event_shape)
    with eval_mode(vae):
        shared = vae.prior_distribution() if covariates is None else None
    for start in range(0, len(x), size):
        some = slice(start, start + size)
        given = None if covariates is None else covariates[some]
        seen = None if elements is None else elements[some]
        present = fill(x[some], seen)
        with eval_mode(vae), valid_parameters("q(z given x) or p(z)"):
            q = vae.encode(present, given)
            prior = vae.prior_distribution(given) if shared is None else shared
        yield Chunk(present, given, None if rows is None else rows[some], seen, q, prior)


def _check_covariates(covariates: Tensor, x: Tensor) -> None:
    check_tensor("covariates", covariates)
    if covariates.dim() != 2 or covariates.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"Expected covariates of shape ({len(x)}, covariate_dim), got {tuple(covariates.shape)}"
        )
    if not bool(torch.isfinite(covariates).all()):
        raise ValueError("Expected covariates to be finite, got NaN or infinite values")
