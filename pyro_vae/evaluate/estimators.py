"""Estimators of the ELBO and the log evidence of a VAE, in nats, one value per row."""

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from pyro_vae.evaluate.chunks import MAX_ELEMENTS, Chunk, check_vae, encode_chunks
from pyro_vae.finite import check_finite, concatenate_faults, find_nonfinite_rows
from pyro_vae.guard import guard_process_state
from pyro_vae.kl import closed_form
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import (
    check_choice,
    check_flag,
    check_size,
)

__all__ = ["Bound", "Evidence", "elbo", "log_evidence"]

_LOG_LIKELIHOOD = "log p(x given z)"


class Bound(NamedTuple):
    """The evidence lower bound at beta = 1 and its parts, each ``(N,)`` in nats.

    Attributes:
        elbo: Minus the distortion minus the rate.
        rate: KL(q(z given x), p(z)).
        distortion: -E_q log p(x given z).
        closed_form: Whether the rate is in closed form rather than sampled.
    """

    elbo: Tensor
    rate: Tensor
    distortion: Tensor
    closed_form: bool


class Evidence(NamedTuple):
    """Estimates of log p(x) with their Monte Carlo errors, each ``(N,)``.

    Attributes:
        log_evidence: The estimates in nats.
        standard_error: Their standard errors in nats, by the delta method; NaN for one particle.
        effective_sample_size: (sum w)^2 / sum w^2, between 1 and the number of particles. If it
            is small, the standard error is too small.
    """

    log_evidence: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor


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

    Each row is encoded once. :math:`\hat p(x)` is unbiased. Its logarithm is below log p(x) on
    average and converges to it as K grows.

    References:
        | Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2015),
          https://arxiv.org/abs/1509.00519

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        x: Data of shape ``(N, *event_shape)``.
        num_particles: K, any positive integer.
        proposal: ``"posterior"``, or ``"prior"`` for z from p(z) with weights p(x given z).
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: True where a value is observed, of the shape of ``x`` or ``(N,)``. The evidence is
            that of the observed values, and zero for an excluded row.
        diagnostics: Whether to return the standard error and effective sample size too.
        max_elements: The most decoder outputs in memory at once.
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
    with Progress("log evidence", _count_rows(x), "rows", show=progress) as bar:
        sums = [
            _sum_weights(vae, chunk, num_particles, at_once, proposal, bar)
            for chunk in encode_chunks(vae, x, covariates, mask, rows)
        ]
    columns = list(zip(*sums, strict=True))
    log_sum, log_square_sum = torch.cat(columns[0]), torch.cat(columns[1])
    estimate = (log_sum - math.log(num_particles)).to(x.dtype)
    check_finite("log evidence", estimate, concatenate_faults(columns[2]))
    if not diagnostics:
        return estimate
    size = torch.exp(2 * log_sum - log_square_sum).clamp(1, num_particles)
    spread = (num_particles / size - 1) / (num_particles - 1)
    return Evidence(estimate, spread.sqrt().to(x.dtype), size.to(x.dtype))


def _sum_weights(
    vae: VAE, chunk: Chunk, num_particles: int, at_once: int, proposal: str, progress: Progress
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Returns the logarithms of the sum of weights and of the sum of their squares, per row.

    The third result maps each term to the rows in which it is not finite for some particle.
    """
    # The effective sample size subtracts large logarithms, which needs double precision.
    log_sum = chunk.x.new_full((len(chunk.x),), -math.inf, dtype=torch.float64)
    log_square_sum = log_sum.clone()
    faults: dict[str, Tensor] = {}
    with eval_mode(vae):
        for start in range(0, num_particles, at_once):
            shape = torch.Size((min(at_once, num_particles - start),))
            if proposal == "posterior":
                z = chunk.q.sample(shape)
                terms = _compute_rate_terms(chunk, z)
            else:
                prior = chunk.prior.expand(torch.Size((len(chunk.x),)))
                z, terms = prior.sample(shape), {}
            terms[_LOG_LIKELIHOOD] = chunk.log_likelihood(vae, z)
            for name, rows in find_nonfinite_rows(terms).items():
                faults[name] = rows | faults.get(name, False)
            log_w = torch.stack(list(terms.values())).double().sum(0)
            log_sum = torch.logaddexp(log_sum, log_w.logsumexp(0))
            log_square_sum = torch.logaddexp(log_square_sum, (2 * log_w).logsumexp(0))
            progress.advance(len(chunk.x) * len(z) / num_particles)
    return log_sum, log_square_sum, faults


def _count_rows(x: Tensor) -> int:
    # The type of x is checked later, when it is encoded.
    return len(x) if isinstance(x, Tensor) and x.dim() else 0


def _compute_rate_terms(chunk: Chunk, z: Tensor) -> dict[str, Tensor]:
    """Returns the two terms of the negative sampled rate, ``(particles, rows)``."""
    return {
        "log p(z)": chunk.zero_masked(chunk.prior.log_prob(z)),
        "log q(z given x)": -chunk.zero_masked(chunk.q.log_prob(z)),
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
    """Returns the evidence lower bound at beta = 1 with its rate and distortion, per row.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        x: Data of shape ``(N, *event_shape)``.
        num_particles: The number of samples for the distortion, and for a rate without closed
            form.
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
    with Progress("ELBO", _count_rows(x), "rows", show=progress) as bar:
        bound, faults = estimate_elbo(
            vae,
            x,
            num_particles=num_particles,
            covariates=covariates,
            mask=mask,
            max_elements=max_elements,
            progress=bar,
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
    """Returns the bound of :func:`elbo`, finite or not, and the rows with non-finite terms.

    Training restores the last good weights before it reports a bound that is not finite. The
    arguments are those of :func:`elbo`.
    """
    size = max(1, max_elements // (num_particles * vae.likelihood.feature_shape.numel()))
    rates, distortions, faults, kl = [], [], [], None
    for chunk in encode_chunks(vae, x, covariates, mask, size):
        with eval_mode(vae):
            z = chunk.q.sample(torch.Size((num_particles,)))
            kl, _ = closed_form(chunk.q, chunk.prior)
            terms = (
                _compute_rate_terms(chunk, z)
                if kl is None
                else {"KL(q(z given x), p(z))": -chunk.zero_masked(kl)[None]}
            )
            rates.append(-torch.stack(list(terms.values())).sum(0).mean(0))
            terms[_LOG_LIKELIHOOD] = chunk.log_likelihood(vae, z)
            distortions.append(-terms[_LOG_LIKELIHOOD].mean(0))
            faults.append(find_nonfinite_rows(terms))
        if progress is not None:
            progress.advance(len(chunk.x))
    rate, distortion = torch.cat(rates), torch.cat(distortions)
    return Bound(-distortion - rate, rate, distortion, kl is not None), concatenate_faults(faults)
