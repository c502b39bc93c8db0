"""The metrics of held-out data, each one number in nats per datum."""

import math
from typing import Any

from torch import Tensor

from pyro_vae import evaluate
from pyro_vae.progress import Progress
from pyro_vae.vae.vae import VAE

__all__ = ["finite_figures", "mean", "scores"]


def scores(
    vae: VAE,
    x: Tensor,
    mask: Tensor | None,
    *,
    num_particles: int,
    elbo_particles: int,
    evidence_rows: int | None,
    **_: Any,
) -> dict[str, Any]:
    """Returns what a VAE makes of data, in nats per datum.

    Arguments:
        vae: The VAE.
        x: Data of shape ``(N, *event_shape)``.
        mask: True where a value is observed, of the shape of ``x`` or ``(N,)``, or ``None``.
        num_particles: Samples for each row of the log evidence.
        elbo_particles: Samples for each row of the ELBO.
        evidence_rows: At most so many rows, the first, for the log evidence; ``None``: all.

    Rows of which nothing is observed are not averaged over.

    Raises:
        ValueError: If the mask leaves no row in.
        FloatingPointError: If a figure is not finite.
    """
    if mask is not None:
        seen = mask.reshape(len(mask), -1).any(1)
        if not bool(seen.any()):
            raise ValueError(f"Expected mask to leave a row in, got none of {len(x)}")
        x, mask = x[seen], mask[seen]
    few = slice(evidence_rows)
    evidence = evaluate.log_evidence(
        vae,
        x[few],
        num_particles,
        mask=None if mask is None else mask[few],
        diagnostics=True,
    )
    assert isinstance(evidence, evaluate.Evidence)
    bound = evaluate.elbo(vae, x, num_particles=elbo_particles, mask=mask)
    with Progress("latent dimensions", 2, "measures") as progress:
        units = _active(vae, x, mask)
        progress.advance()
        kl = _rates(vae, x, mask)
    return finite_figures({
        "log_evidence": mean(evidence.log_evidence),
        "log_evidence_se": _standard_error(evidence.log_evidence),
        "log_evidence_rows": len(evidence.log_evidence),
        "log_evidence_particles": num_particles,
        "log_evidence_monte_carlo_se": _monte_carlo_error(evidence.standard_error),
        "effective_sample_size_min": evidence.effective_sample_size.min().item(),
        "elbo": mean(bound.elbo),
        "elbo_se": _standard_error(bound.elbo),
        "gap": mean(evidence.log_evidence - bound.elbo[few]),
        "rate": mean(bound.rate),
        "distortion": mean(bound.distortion),
        "active_units": units,
        "kl_per_dimension": kl,
    })  # fmt: skip


def finite_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures, or raises a ``FloatingPointError`` that names one that is not finite.

    Standard errors may be missing, as those of one row or one draw are.
    """
    for name, value in figures.items():
        if isinstance(value, float) and not name.endswith("_se") and not math.isfinite(value):
            raise FloatingPointError(
                f"The figure '{name}' of the held-out rows is not finite, got {value}: the weights "
                f"are those of the last checkpoint; train with a lower learning rate or clip_norm, "
                f"or in double precision"
            )
    return figures


def _active(vae: VAE, x: Tensor, mask: Tensor | None) -> int | None:
    """Returns the number of active units, or ``None`` for one row, over which no mean varies."""
    return int(evaluate.active_units(vae, x, mask=mask).sum()) if len(x) > 1 else None


def _rates(vae: VAE, x: Tensor, mask: Tensor | None) -> list[float] | None:
    """Returns the rate of each dimension, or ``None`` for a prior without known marginals."""
    try:
        return evaluate.kl_per_dimension(vae, x, mask=mask).tolist()
    except ValueError:
        return None


def mean(values: Tensor) -> float:
    """Returns the mean over rows."""
    return values.double().mean().item()


def _standard_error(values: Tensor) -> float:
    """Returns the standard error of the mean over rows, NaN for one row."""
    if len(values) < 2:
        return math.nan
    return (values.double().std() / math.sqrt(len(values))).item()


def _monte_carlo_error(errors: Tensor) -> float:
    """Returns the standard error of a mean of independent estimates from that of each."""
    return (errors.double().pow(2).sum().sqrt() / len(errors)).item()
