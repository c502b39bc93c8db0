"""Estimators of the ELBO and the log evidence of a VAE, in nats, one value per row."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from pyro_vae.evaluate.chunks import MAX_ELEMENTS, check_vae, choose_size, encode_chunks
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
from pyro_vae.networks import eval_mode
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
            rounding. ``"auto"`` compiles a long evaluation of parts of this package, ``True`` any,
            and ``"strict"`` raises an error if it fails. Rows and samples that are left over from
            chunks of equal size stay eager.
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
    settings = _Settings(proposal, covariates, mask, max_elements, compile, precision, progress)
    ((log_sum, log_square_sum, *faults),) = _sum_weights(vae, x, [num_particles], settings)
    estimate = (log_sum - math.log(num_particles)).to(x.dtype)
    check_finite("log evidence", estimate, _name_terms(faults))
    if not diagnostics:
        return estimate
    size = torch.exp(2 * log_sum - log_square_sum).clamp(1, num_particles)
    spread = (num_particles / size - 1) / (num_particles - 1)
    return Evidence(estimate, spread.sqrt().to(x.dtype), size.to(x.dtype))


@guard_process_state
@torch.no_grad()
def evidence_by_particles(
    vae: VAE, x: Tensor, counts: Sequence[int], *, proposal: str, mask: Tensor | None
) -> Tensor:
    """Returns the estimates of :func:`log_evidence` from the first samples of one draw.

    Arguments:
        vae: The VAE.
        x: Data of shape ``(N, *event_shape)``.
        counts: Increasing numbers of samples.
        proposal: As in :func:`log_evidence`.
        mask: As in :func:`log_evidence`.

    Returns:
        ``(len(counts), N)`` in nats.
    """
    check_vae(vae)
    settings = _Settings(proposal, mask=mask, progress=False)
    estimates = []
    for count, sums in zip(counts, _sum_weights(vae, x, counts, settings), strict=True):
        log_sum, _, *faults = sums
        estimates.append((log_sum - math.log(count)).to(x.dtype))
        check_finite("log evidence", estimates[-1], _name_terms(faults))
    return torch.stack(estimates)


class _Settings(NamedTuple):
    """Arguments of :func:`log_evidence`."""

    proposal: str
    covariates: Tensor | None = None
    mask: Tensor | None = None
    max_elements: int = MAX_ELEMENTS
    compile: Engine = "auto"
    precision: Precision = "float32"
    progress: bool | None = None


def _sum_weights(
    vae: VAE, x: Tensor, counts: Sequence[int], settings: _Settings
) -> list[list[Tensor]]:
    """Returns the results of :func:`weigh_rows` for all rows, for each number of samples."""
    proposal, covariates, mask, max_elements, compile, precision, progress = settings
    total, outputs = _count_rows(x), vae.likelihood.feature_shape.numel()
    rows = choose_size(total, min(100, max_elements // outputs))
    at_once = choose_size(counts[-1], max_elements // (rows * outputs))
    scorer = Scorer(weigh_rows, vae, (rows, at_once), total * counts[-1], compile, precision)
    chunks = []
    with Progress("log evidence", total, "rows", show=progress) as bar, eval_mode(vae):
        for chunk in encode_chunks(vae, x, covariates, mask, rows):
            sums: list[Tensor] = []
            sums_by_count, done = [], 0
            for count in counts:
                while done < count:
                    size = min(at_once, count - done)
                    sums = _add_weights(sums, scorer(chunk, size, proposal))
                    done += size
                    bar.advance(len(chunk.x) * size / counts[-1])
                sums_by_count.append(sums)
            chunks.append(sums_by_count)
    by_count = zip(*chunks, strict=True)
    return [[torch.cat(parts) for parts in zip(*sums, strict=True)] for sums in by_count]


def _add_weights(before: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """Returns the results of :func:`weigh_rows` for the samples of two calls."""
    if not before:
        return list(new)
    sums = [torch.logaddexp(a, b) for a, b in zip(before[:2], new[:2], strict=True)]
    return sums + [a | b for a, b in zip(before[2:], new[2:], strict=True)]


def _name_terms(faults: Sequence[Tensor]) -> dict[str, Tensor]:
    names = (LOG_PRIOR, LOG_POSTERIOR, LOG_LIKELIHOOD)[-len(faults) :]
    return dict(zip(names, faults, strict=True))


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
    scorer = make_bound_scorer(vae, x, num_particles, max_elements, compile, precision)
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
    scorer = scorer or make_bound_scorer(vae, x, num_particles, max_elements, False)
    results, is_closed = [], False
    with eval_mode(vae):
        for chunk in encode_chunks(vae, x, covariates, mask, scorer.full_size[0]):
            results.append(scorer(chunk, num_particles))
            is_closed = closed_form(chunk.q, chunk.prior)[0] is not None
            if progress is not None:
                progress.advance(len(chunk.x))
    rate, distortion, *faults = map(torch.cat, zip(*results, strict=True))
    names = (KL, LOG_LIKELIHOOD) if is_closed else (LOG_PRIOR, LOG_POSTERIOR, LOG_LIKELIHOOD)
    bound = Bound(-distortion - rate, rate, distortion, is_closed)
    return bound, dict(zip(names, faults, strict=True))


def make_bound_scorer(
    vae: VAE,
    x: Tensor,
    num_particles: int,
    max_elements: int,
    compile: Engine,
    precision: Precision = "float32",
    calls: int = 1,
) -> Scorer:
    """Returns the scorer of a number of calls of :func:`estimate_elbo` on the same rows.

    The other arguments are those of :func:`elbo`.
    """
    total, outputs = _count_rows(x), vae.likelihood.feature_shape.numel()
    rows = choose_size(total, max_elements // (num_particles * outputs))
    full_size, samples = (rows, num_particles), calls * total * num_particles
    return Scorer(bound_rows, vae, full_size, samples, compile, precision)
