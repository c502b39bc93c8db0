"""The log evidence of a VAE by importance sampling, in nats, one value per row."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from pyro_vae.data.sparse_rows import is_sparse
from pyro_vae.display.text import describe_fields, describe_mean, describe_range
from pyro_vae.evaluate.chunks import (
    MAX_ELEMENTS,
    RowResults,
    check_vae,
    choose_size,
    count_rows,
    encode_chunks,
    most_rows,
    split_evenly,
)
from pyro_vae.evaluate.scoring import (
    LOG_LIKELIHOOD,
    LOG_POSTERIOR,
    LOG_PRIOR,
    Engine,
    Precision,
    Scorer,
    weigh_rows,
)
from pyro_vae.finite import check_finite
from pyro_vae.guard import guard_process_state
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_choice, check_flag, check_positive, check_size

__all__ = ["Evidence", "evidence_by_particles", "log_evidence"]

_FIRST_SAMPLES = 250
"""The number of samples after which the precision is first estimated, roughly."""

_ROUNDING = 1e-6
"""The error in nats that is due to rounding."""


class Evidence(NamedTuple):
    """Estimates of log p(x) with their Monte Carlo errors, each ``(N,)``.

    Attributes:
        log_evidence: The estimates in nats.
        standard_error: Their standard errors in nats, by the delta method; NaN for one particle.
        effective_sample_size: (sum w)^2 / sum w^2, between 1 and the number of particles. If it
            is small, the standard error is too small.
        num_particles: The number of samples that were drawn for each row.
    """

    log_evidence: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    num_particles: int

    def __repr__(self) -> str:
        return describe_fields(
            self,
            log_evidence=describe_mean(self.log_evidence),
            standard_error=describe_range(self.standard_error),
            effective_sample_size=describe_range(self.effective_sample_size),
        )


@overload
def log_evidence(
    vae: VAE,
    x: Tensor,
    num_particles: int = 5000,
    *,
    tolerance: float | None = None,
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
    tolerance: float | None = None,
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
    tolerance: float | None = None,
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
    tolerance: float | None = None,
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

    With a tolerance, K grows until the mean over rows is precise enough, so an estimate that
    converges early takes less time. It is precise enough if the standard error of the samples plus
    the bias is at most the tolerance, and at most a tenth of the standard error over rows. The bias
    is the mean difference between the estimate and those from its two halves. K is first checked at
    about 250, or later for few rows. A posterior that is much too narrow has weights with heavy
    tails and a small effective sample size. Bias and standard error are then underestimated, and K
    is too small for the tolerance. Use a fixed K to compare VAEs on the same rows: their biases are
    then more alike.

    References:
        | Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2015),
          https://arxiv.org/abs/1509.00519

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        x: Data of shape ``(N, *event_shape)``.
        num_particles: K, any positive integer; with a tolerance, the largest K.
        tolerance: The error of the mean over rows at which K is large enough, in nats; ``None``
            for a fixed K.
        proposal: ``"posterior"``, or ``"prior"`` for z from p(z) with weights p(x given z).
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: True where a value is observed, of the shape of ``x`` or ``(N,)``. The evidence is
            that of the observed values. It is zero for a row that a mask of rows excludes, and an
            estimate of zero for a row of which all elements are missing.
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
    tolerance = None if tolerance is None else check_positive("tolerance", tolerance)
    check_vae(vae)
    settings = _Settings(proposal, covariates, mask, max_elements, compile, precision, progress)
    counts, is_enough = [num_particles], None
    if tolerance is not None:
        at_once = _choose_sizes(vae, count_rows(x), num_particles, max_elements)[1]
        counts, is_enough = _plan_counts(at_once, num_particles), partial(_is_precise, tolerance)
    sums_by_count = _sum_weights(vae, x, counts, settings, is_enough)
    count, (log_sum, log_square_sum, *faults) = counts[len(sums_by_count) - 1], sums_by_count[-1]
    estimate = (log_sum - math.log(count)).to(x.dtype)
    check_finite("log evidence", estimate, _name_terms(faults))
    if not diagnostics:
        return estimate
    size, error = _find_error(count, log_sum, log_square_sum)
    return Evidence(estimate, error.to(x.dtype), size.to(x.dtype), count)


def _find_error(count: int, log_sum: Tensor, log_square_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the effective sample size and the standard error of each row."""
    size = torch.exp(2 * log_sum - log_square_sum).clamp(1, count)
    return size, ((count / size - 1) / (count - 1)).sqrt()


def _plan_counts(size: int, most: int) -> list[int]:
    """Returns growing numbers of samples, all but the last one even multiples of ``size``."""
    counts, count = [], float(_FIRST_SAMPLES)
    while count < most:
        counts.append(2 * size * max(1, round(count / (2 * size))))
        count *= 1.5
    return [*sorted({count for count in counts if count < most}), most]


def _is_precise(tolerance: float, count: int, halves: Sequence[Sequence[Tensor]]) -> bool:
    """Whether the mean log evidence is precise enough, from the sums of two halves of the samples.

    The bias is proportional to one over the number of samples, so it is the difference between the
    estimate from all samples and those from half of them.
    """
    log_sum, log_square_sum, *_ = _add_weights(*halves)
    error = _find_error(count, log_sum, log_square_sum)[1].square().sum().sqrt() / len(log_sum)
    bias = (log_sum - math.log(2) - (halves[0][0] + halves[1][0]) / 2).mean()
    limit = tolerance
    if len(log_sum) > 1:
        limit = min(tolerance, 0.1 * (log_sum.std() / math.sqrt(len(log_sum))).item())
    # Rows that are all excluded have neither an error nor a spread, except by rounding.
    limit = max(limit, _ROUNDING)
    # Terms that are not finite end the loop too, and raise an error after it.
    return not (error + bias).item() > limit


@guard_process_state
@torch.no_grad()
def evidence_by_particles(
    vae: VAE,
    x: Tensor,
    counts: Sequence[int],
    *,
    proposal: str,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Returns the estimates of :func:`log_evidence` from the first samples of one draw.

    Arguments:
        vae: The VAE.
        x: Data of shape ``(N, *event_shape)``.
        counts: Increasing numbers of samples.
        proposal: As in :func:`log_evidence`.
        covariates: As in :func:`log_evidence`.
        mask: As in :func:`log_evidence`.

    Returns:
        ``(len(counts), N)`` in nats.
    """
    check_vae(vae)
    settings = _Settings(proposal, covariates, mask, progress=False)
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


def _choose_sizes(vae: VAE, total: int, count: int, max_elements: int) -> tuple[int, int]:
    """Returns the numbers of rows and samples of one call."""
    most = most_rows(vae, max_elements)
    rows = split_evenly(total, min(100, most))
    return rows, choose_size(count, most // rows)


def _sum_weights(
    vae: VAE,
    x: Tensor,
    counts: Sequence[int],
    settings: _Settings,
    is_enough: Callable[..., bool] | None = None,
) -> list[list[Tensor]]:
    """Returns the results of :func:`weigh_rows` for all rows, for each number of samples.

    It ends early if ``is_enough`` is true for a number of samples and the results from its halves.
    """
    proposal, covariates, mask, max_elements, compile, precision, progress = settings
    total, most = count_rows(x), counts[-1]
    rows, at_once = _choose_sizes(vae, total, most, max_elements)
    scorer = Scorer(weigh_rows, vae, (rows, at_once), total * most, compile, precision)
    sums_by_count: list[list[Tensor]] = []
    halves: list[list[Tensor]] = [[], []]
    with Progress("log evidence", total, "rows", show=progress) as bar, eval_mode(vae):
        encode = partial(encode_chunks, vae, x, covariates, mask, rows, equal=True)
        # Sparse rows are encoded again each time, because dense ones may not fit into memory.
        once = None if len(counts) == 1 or is_sparse(x) else list(encode())
        for done, count in zip([0, *counts], counts, strict=False):
            sizes = [min(at_once, count - start) for start in range(done, count, at_once)]
            new = RowResults(total), RowResults(total)
            for chunk in encode() if once is None else once:
                sums: list[list[Tensor]] = [[], []]
                for call, size in enumerate(sizes):
                    sums[call % 2] = _add_weights(sums[call % 2], scorer(chunk, size, proposal))
                    bar.advance(len(chunk.x) * size / most)
                for part, half in zip(new, sums, strict=True):
                    part.add(half)
            halves = [_add_weights(h, part.tensors) for h, part in zip(halves, new, strict=True)]
            sums_by_count.append(_add_weights(*halves))
            if is_enough is not None and count < most and is_enough(count, halves):
                break
    return sums_by_count


def _add_weights(before: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """Returns the results of :func:`weigh_rows` for the samples of two calls."""
    if not before or not new:
        return list(before or new)
    sums = [torch.logaddexp(a, b) for a, b in zip(before[:2], new[:2], strict=True)]
    return sums + [a | b for a, b in zip(before[2:], new[2:], strict=True)]


def _name_terms(faults: Sequence[Tensor]) -> dict[str, Tensor]:
    names = (LOG_PRIOR, LOG_POSTERIOR, LOG_LIKELIHOOD)[-len(faults) :]
    return dict(zip(names, faults, strict=True))
