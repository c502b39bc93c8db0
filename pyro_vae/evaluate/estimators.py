"""Estimators of the ELBO and the log evidence of a VAE, in nats, one value per row."""

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from pyro_vae.evaluate.chunks import MAX_ELEMENTS, Chunk, check_vae, choose_size, encode_chunks
from pyro_vae.evaluate.scoring import (
    KL,
    LOG_LIKELIHOOD,
    LOG_POSTERIOR,
    LOG_PRIOR,
    Engine,
    Precision,
    Scorer,
    bound_rows,
    weigh_rows,
)
from pyro_vae.finite import check_finite
from pyro_vae.guard import guard_process_state
from pyro_vae.kl import closed_form
from pyro_vae.progress import Progress
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import (
    check_choice,
    check_flag,
    check_size,
)

__all__ = ["Bound", "Evidence", "elbo", "log_evidence"]


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
    compile: Engine = "auto",
    precision: Precision = "float32",
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
    compile: Engine = "auto",
    precision: Precision = "float32",
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
    compile: Engine = "auto",
    precision: Precision = "float32",
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
    compile: Engine = "auto",
    precision: Precision = "float32",
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
        compile: Whether a compiled graph draws, decodes and scores; figures are the same up to
            rounding. ``"auto"`` compiles where that saves time, and ``"strict"`` raises an error
            if it fails. Rows and samples that are left over from chunks of equal size stay eager.
        precision: ``"bfloat16"`` for matmuls and convolutions in that precision, compiled.
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
    total, outputs = _count_rows(x), vae.likelihood.feature_shape.numel()
    rows = choose_size(total, min(100, max_elements // outputs))
    at_once = choose_size(num_particles, max_elements // (rows * outputs))
    scorer = Scorer(weigh_rows, vae, total * num_particles, compile, precision)
    with Progress("log evidence", total, "rows", show=progress) as bar:
        sums = [
            _sum_weights(scorer, chunk, num_particles, at_once, proposal, bar)
            for chunk in encode_chunks(vae, x, covariates, mask, rows)
        ]
    log_sum, log_square_sum, *faults = map(torch.cat, zip(*sums, strict=True))
    estimate = (log_sum - math.log(num_particles)).to(x.dtype)
    terms = (LOG_PRIOR, LOG_POSTERIOR, LOG_LIKELIHOOD)[-len(faults) :]
    check_finite("log evidence", estimate, dict(zip(terms, faults, strict=True)))
    if not diagnostics:
        return estimate
    size = torch.exp(2 * log_sum - log_square_sum).clamp(1, num_particles)
    spread = (num_particles / size - 1) / (num_particles - 1)
    return Evidence(estimate, spread.sqrt().to(x.dtype), size.to(x.dtype))


def _sum_weights(
    scorer: Scorer, chunk: Chunk, num_particles: int, at_once: int, proposal: str, bar: Progress
) -> list[Tensor]:
    """Returns the results of :func:`weigh_rows` for all samples of a chunk of rows."""
    total: list[Tensor] = []
    for start in range(0, num_particles, at_once):
        count = min(at_once, num_particles - start)
        log_sum, log_square_sum, *faults = scorer(chunk, count, proposal)
        if total:
            log_sum = torch.logaddexp(total[0], log_sum)
            log_square_sum = torch.logaddexp(total[1], log_square_sum)
            faults = [old | new for old, new in zip(total[2:], faults, strict=True)]
        total = [log_sum, log_square_sum, *faults]
        bar.advance(len(chunk.x) * count / num_particles)
    return total


def _count_rows(x: Tensor) -> int:
    # The type of x is checked later, when it is encoded.
    return len(x) if isinstance(x, Tensor) and x.dim() else 0


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
    compile: Engine = "auto",
    precision: Precision = "float32",
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
        compile: As in :func:`log_evidence`.
        precision: As in :func:`log_evidence`.
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
    scorer = Scorer(bound_rows, vae, _count_rows(x) * num_particles, compile, precision)
    with Progress("ELBO", _count_rows(x), "rows", show=progress) as bar:
        bound, faults = estimate_elbo(
            vae,
            x,
            num_particles=num_particles,
            covariates=covariates,
            mask=mask,
            max_elements=max_elements,
            scorer=scorer,
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
    scorer: Scorer | None = None,
    progress: Progress | None = None,
) -> tuple[Bound, dict[str, Tensor]]:
    """Returns the bound of :func:`elbo`, finite or not, and the rows with non-finite terms.

    Training restores the last good weights before it reports a bound that is not finite. The
    arguments are those of :func:`elbo`, and a scorer that is used again from call to call.
    """
    total, outputs = _count_rows(x), vae.likelihood.feature_shape.numel()
    size = choose_size(total, max_elements // (num_particles * outputs))
    scorer = scorer or Scorer(bound_rows, vae, total * num_particles, False, "float32")
    results, is_closed = [], False
    for chunk in encode_chunks(vae, x, covariates, mask, size):
        results.append(scorer(chunk, num_particles))
        is_closed = closed_form(chunk.q, chunk.prior)[0] is not None
        if progress is not None:
            progress.advance(len(chunk.x))
    rate, distortion, *faults = map(torch.cat, zip(*results, strict=True))
    terms = (KL, LOG_LIKELIHOOD) if is_closed else (LOG_PRIOR, LOG_POSTERIOR, LOG_LIKELIHOOD)
    bound = Bound(-distortion - rate, rate, distortion, is_closed)
    return bound, dict(zip(terms, faults, strict=True))
