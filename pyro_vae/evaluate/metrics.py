"""The metrics of held-out data, in nats per datum."""

import math
from typing import Any, Literal

from torch import Tensor

from pyro_vae import evaluate
from pyro_vae.data import Data
from pyro_vae.data.sparse_rows import take_rows
from pyro_vae.evaluate.evidence import Evidence
from pyro_vae.evaluate.scoring import Engine, Precision
from pyro_vae.progress import Progress
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_positive, describe_value

__all__ = [
    "AUTO_TOLERANCE",
    "check_finite_metrics",
    "check_tolerance",
    "compute_metrics",
    "describe_protocol",
    "mean_over_rows",
    "score_rows",
]

AUTO_TOLERANCE = 0.01
"""The error of the log evidence in nats that a single run allows."""


def check_tolerance(name: str, tolerance: Any) -> None:
    """Raises a ``ValueError`` unless a setting is a tolerance, ``"auto"`` or ``None``."""
    if tolerance is None or tolerance == "auto":
        return
    try:
        check_positive(name, tolerance)
    except ValueError:
        raise ValueError(
            f"Expected {name} to be a positive number of nats, auto or null, got "
            f"{describe_value(tolerance)}"
        ) from None


def compute_metrics(
    vae: VAE,
    x: Tensor,
    mask: Tensor | None,
    covariates: Tensor | None = None,
    *,
    num_particles: int,
    elbo_particles: int,
    evidence_rows: int | None,
    tolerance: float | Literal["auto"] | None = None,
    compile: Engine = "auto",
    precision: Precision = "float32",
    evidence: Evidence | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Returns the metrics of a VAE on data, in nats per datum.

    Rows without observed values are left out of the averages.

    Arguments:
        vae: The VAE.
        x: Data of shape ``(N, *event_shape)``.
        mask: True where a value is observed, of the shape of ``x`` or ``(N,)``, or ``None``.
        covariates: Covariates of shape ``(N, covariate_dim)``, or ``None``.
        num_particles: The number of samples per row for the log evidence.
        elbo_particles: The number of samples per row for the ELBO.
        evidence_rows: The number of first rows for the log evidence; ``None`` for all rows.
        tolerance: As of :func:`log_evidence`; ``"auto"`` for :data:`AUTO_TOLERANCE`.
        compile: As of :func:`log_evidence`.
        precision: As of :func:`log_evidence`.
        evidence: The result of :func:`score_rows` for the same rows and settings, if it is known.

    Raises:
        ValueError: If the mask excludes every row.
        FloatingPointError: If a metric is not finite.
    """
    engine: dict[str, Any] = {"compile": compile, "precision": precision}
    if evidence is None:
        evidence = score_rows(
            vae,
            x,
            mask,
            covariates,
            num_particles=num_particles,
            evidence_rows=evidence_rows,
            tolerance=tolerance,
            **engine,
        )
    x, mask, covariates = _drop_unobserved_rows(x, mask, covariates)
    first = slice(evidence_rows)
    bound = evaluate.elbo(
        vae, x, num_particles=elbo_particles, covariates=covariates, mask=mask, **engine
    )
    with Progress("latent dimensions", 2, "measures") as progress:
        units = _count_active_units(vae, x, covariates, mask)
        progress.advance()
        kl = _kl_per_dimension(vae, x, covariates, mask)
        progress.advance()
    return check_finite_metrics({
        "log_evidence": mean_over_rows(evidence.log_evidence),
        "log_evidence_se": _standard_error(evidence.log_evidence),
        "log_evidence_rows": len(evidence.log_evidence),
        "log_evidence_particles": evidence.num_particles,
        "log_evidence_monte_carlo_se": _monte_carlo_error(evidence.standard_error),
        "effective_sample_size_min": evidence.effective_sample_size.min().item(),
        "elbo": mean_over_rows(bound.elbo),
        "elbo_se": _standard_error(bound.elbo),
        "gap": mean_over_rows(evidence.log_evidence - bound.elbo[first]),
        "rate": mean_over_rows(bound.rate),
        "distortion": mean_over_rows(bound.distortion),
        "active_units": units,
        "kl_per_dimension": kl,
    })  # fmt: skip


def score_rows(
    vae: VAE,
    x: Tensor,
    mask: Tensor | None,
    covariates: Tensor | None = None,
    *,
    num_particles: int,
    evidence_rows: int | None,
    tolerance: float | Literal["auto"] | None = None,
    compile: Engine = "auto",
    precision: Precision = "float32",
    **_: Any,
) -> Evidence:
    """Returns the log evidence of the first rows that have observed values.

    The arguments are those of :func:`compute_metrics`.
    """
    x, mask, covariates = _drop_unobserved_rows(x, mask, covariates)
    first = slice(evidence_rows)
    evidence = evaluate.log_evidence(
        vae,
        x if evidence_rows is None else take_rows(x, first),
        num_particles,
        tolerance=AUTO_TOLERANCE if tolerance == "auto" else tolerance,
        covariates=None if covariates is None else covariates[first],
        mask=None if mask is None else mask[first],
        diagnostics=True,
        compile=compile,
        precision=precision,
    )
    assert isinstance(evidence, Evidence)
    return evidence


def _drop_unobserved_rows(
    x: Tensor, mask: Tensor | None, covariates: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if mask is None:
        return x, mask, covariates
    observed = mask.reshape(len(mask), -1).any(1)
    if not bool(observed.any()):
        raise ValueError(f"Expected mask to leave a row in, got none of {len(x)}")
    return x[observed], mask[observed], None if covariates is None else covariates[observed]


def check_finite_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the metrics, or raises a ``FloatingPointError`` that names one that is not finite.

    Standard errors may be NaN, because one row or one draw has none.
    """
    for name, value in metrics.items():
        if isinstance(value, float) and not name.endswith("_se") and not math.isfinite(value):
            raise FloatingPointError(
                f"The metric '{name}' of the held-out rows is not finite, got {value}: the weights "
                f"are those of the last checkpoint; train with a lower learning rate or clip_norm, "
                f"or in double precision"
            )
    return metrics


def _count_active_units(
    vae: VAE, x: Tensor, covariates: Tensor | None, mask: Tensor | None
) -> int | None:
    """Returns the number of active units, or ``None`` for a single row."""
    if len(x) < 2:
        return None
    return int(evaluate.active_units(vae, x, covariates=covariates, mask=mask).sum())


def _kl_per_dimension(
    vae: VAE, x: Tensor, covariates: Tensor | None, mask: Tensor | None
) -> list[float] | None:
    """Returns the KL of each dimension, or ``None`` for a prior without known marginals."""
    try:
        return evaluate.kl_per_dimension(vae, x, covariates=covariates, mask=mask).tolist()
    except ValueError:
        return None


def mean_over_rows(values: Tensor) -> float:
    """Returns the mean over rows, computed in double precision."""
    return values.double().mean().item()


def _standard_error(values: Tensor) -> float:
    """Returns the standard error of the mean over rows, NaN for one row."""
    if len(values) < 2:
        return math.nan
    return (values.double().std() / math.sqrt(len(values))).item()


def _monte_carlo_error(errors: Tensor) -> float:
    """Returns the standard error of a mean from the errors of its independent terms."""
    return (errors.double().pow(2).sum().sqrt() / len(errors)).item()


def describe_protocol(data: Data, vae: VAE) -> dict[str, Any]:
    """Returns the data and the likelihood on which metrics depend, and the size of the VAE."""
    sizes = {part: len(rows) for part, rows in data.x._asdict().items()}
    is_split = bool(sizes["valid"] or sizes["test"])
    return {
        "data": data.name,
        "binarize": data.binarize,
        "grey_scale": data.binarize == "none" and getattr(vae.likelihood, "grey_scale", False),
        "measure": getattr(vae.likelihood, "measure", None),
        "conditional_on": _list_conditions(data, vae),
        "units": "original" if data.scaling is None else "standardized",
        "rows": sizes if is_split else {"all": sizes["train"]},
        "latent_dim": vae.latent_dim,
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


def _list_conditions(data: Data, vae: VAE) -> list[str]:
    """Returns the quantities that the evidence is conditional on, by name."""
    condition = getattr(vae.likelihood, "condition", None)
    names = [] if data.covariate_columns is None else data.covariate_columns.names
    return ([] if condition is None else [condition]) + names
