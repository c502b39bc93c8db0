"""The content of a run's report: its metrics, warnings, figures and settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_vae import report
from pyro_vae.collapse import ACTIVE_VARIANCE, LEAST_SAMPLE_SIZE, is_collapsed
from pyro_vae.data import Data
from pyro_vae.evaluate import Evidence
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder, Module
from pyro_vae.report import figures
from pyro_vae.report.latent_map import build_map
from pyro_vae.report.latents import Latents
from pyro_vae.report.table_content import (
    fit_columns,
    is_table,
    list_columns,
    list_outliers,
    warn_of_columns,
)
from pyro_vae.report.trained_run import TrainedRun

__all__ = ["build_report", "find_warnings", "format_condition", "format_run_summary"]

_MAX_COLUMNS = 50

_MAX_GAP = 0.1
"""The gap between log evidence and ELBO that causes a warning, as a fraction of the former."""


def build_report(
    run: TrainedRun, metrics: dict[str, Any], evidence: Evidence | None = None
) -> report.Report:
    """Returns the report of a run.

    Arguments:
        run: The run.
        metrics: Its metrics.
        evidence: The log evidence of its held-out rows, for the map and the least likely rows.
    """
    latents = Latents(run)
    fits = fit_columns(run) if is_table(run) else []
    tables = [list_columns(run, fits)] if fits else []
    if fits and evidence is not None:
        tables.append(list_outliers(run, evidence))
    return report.Report(
        tables=tables,
        title=_format_title(run),
        settings=_list_settings(run, metrics),
        metrics=_list_metrics(metrics),
        warnings=find_warnings(metrics) + warn_of_columns(fits),
        figures=figures.draw_figures(run, metrics, latents, fits),
        history=run.result.history,
        latent_map=build_map(run, latents, evidence),
    )


def _format_title(run: TrainedRun) -> str:
    vae = run.vae
    parts = [
        run.data.title,
        f"{_get_class_name(vae.likelihood)} likelihood",
        f"{_get_class_name(vae.prior)} prior",
        f"{_get_class_name(vae.posterior)} posterior",
    ]
    return " · ".join(parts)


def _get_class_name(part: torch.nn.Module) -> str:
    return type(part).__name__


def _list_settings(run: TrainedRun, metrics: dict[str, Any]) -> dict[str, str]:
    """Returns the settings of a run that the report shows, by their names."""
    vae, rows, optimizer = run.vae, metrics["rows"], run.cfg.optimizer
    return {
        "Data": f"{run.data.name}: {run.data.source}",
        **_describe_table(run.data),
        "Binarization": run.data.binarize,
        "Rows": f"{rows['train']} training, {rows['valid']} validation, {rows['test']} test",
        **_describe_covariates(run.data),
        "Event shape": " x ".join(map(str, vae.event_shape)),
        "Prior": repr(vae.prior),
        "Posterior": repr(vae.posterior),
        "Likelihood": repr(vae.likelihood),
        "Input transform": repr(vae.input_transform),
        "Encoder": _describe_network(vae.encoder),
        "Decoder": _describe_network(vae.decoder),
        "Latent dimensions": str(vae.latent_dim),
        "Parameters": f"{metrics['parameters']:,}",
        "Objective": f"{type(run.objective).__name__}, "
        f"{getattr(run.objective, 'num_particles', 1)} particle(s)",
        "KL of the ELBO": _describe_kl(run, metrics),
        "Optimizer": (
            f"{optimizer._target_.rsplit('.', 1)[-1]}, learning rate "
            f"{optimizer.get('lr', 'left at its default')}"
        ),
        "Training": (
            f"{metrics['epochs']} epochs, {metrics['steps']} steps of "
            f"{run.cfg.train.batch_size} rows, {metrics['seconds']:.1f} s; weights of epoch "
            f"{metrics['best_epoch']}"
        ),
        "Engine": metrics["engine"],
        "Seed": str(metrics["seed"]),
        "Threads": str(metrics["threads"]),
        "Device": metrics["device"],
        "PyTorch": metrics["torch"],
    }


def _describe_covariates(data: Data) -> dict[str, str]:
    columns = data.covariate_columns
    return {} if columns is None else {"Covariates": columns.describe()}


def _describe_table(data: Data) -> dict[str, str]:
    """Returns the settings of a table only: its columns, and the share of missing values."""
    settings = {}
    if data.columns is not None:
        shown = ", ".join(data.columns[:_MAX_COLUMNS])
        more = len(data.columns) - _MAX_COLUMNS
        settings["Columns"] = f"{shown} and {more:,} others" if more > 0 else shown
    if data.mask is not None:
        missing = 1 - data.mask.train.double().mean().item()
        settings["Missing"] = f"{missing:.1%} of the training values, left out of the likelihood"
    return settings


def _describe_kl(run: TrainedRun, metrics: dict[str, Any]) -> str:
    """Returns how the KL of each site is computed, and whether training sampled it."""
    terms = "; ".join(f"{k}: {reason}" for k, reason in metrics["kl_reason"].items())
    sampled = getattr(run.objective, "analytic", None) is False
    return terms + ("; sampled in training, because of analytic=False" if sampled else "")


def _describe_network(network: torch.nn.Module) -> str:
    """Returns the class of a network, and the widths of its layers or the number of its weights."""
    if not isinstance(network, (MLP, ConvEncoder, ConvDecoder)):
        count = sum(parameter.numel() for parameter in network.parameters())
        path = f" {network.path}" if isinstance(network, Module) else ""
        return f"{type(network).__name__}{path}, {count:,} weights"
    widths = [
        str(layer.weight.shape[0])
        for layer in network.modules()
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    return f"{type(network).__name__}, layers of {', '.join(widths)}"


def format_condition(metrics: Mapping[str, Any]) -> str:
    """Returns the condition of the evidence, such as `` given row sum``, or an empty text."""
    names = metrics.get("conditional_on") or ()
    return f" given {', '.join(names)}" if names else ""


def _list_metrics(metrics: dict[str, Any]) -> list[report.Metric]:
    """Returns the metrics with their explanations."""
    given = format_condition(metrics)
    particles = f"{metrics['log_evidence_particles']:,}"
    rows = [
        (f"Log evidence{given}", "log_evidence", "log_evidence_se", (
            f"log p(x{given}) of {metrics['log_evidence_rows']:,} held-out rows, by importance "
            f"sampling with {particles} samples per row. It measures how well the model predicts "
            f"new data. Higher is better."
        )),
        ("Mixture's log evidence", "mixture_log_evidence", None, (
            f"The same for a mixture of {metrics['mixture_components']} such likelihoods fitted "
            f"by EM to {metrics['mixture_rows']:,} training rows: a baseline that a VAE should "
            f"beat."
        )),
        (f"ELBO{given}", "elbo", "elbo_se", (
            "The lower bound on the log evidence at beta = 1, whatever the training objective."
        )),
        ("Gap", "gap", None, (
            "Log evidence minus ELBO on the same rows: the KL from the approximate to the true "
            "posterior."
        )),
        ("Rate", "rate", None, (
            "KL from posterior to prior: the information about a datum in its embedding."
        )),
        ("Distortion", "distortion", None, (
            "The negative expected log likelihood: the reconstruction loss."
        )),
        ("Objective", "objective", None, (
            "The training objective on all held-out rows; not comparable between objectives."
        )),
    ]  # fmt: skip
    listed_metrics = [
        report.Metric(name, metrics[key], "nats per datum", metrics.get(error or ""), meaning)
        for name, key, error, meaning in rows
        if not (key == "mixture_log_evidence" and (given or not metrics["mixture_components"]))
    ]
    meaning = (
        f"The number of the {metrics['latent_dim']} latent dimensions whose posterior mean has a "
        f"variance above {ACTIVE_VARIANCE:g} over the data, in units of the prior's variance where "
        f"z is bounded. Inactive dimensions are not an error."
    )
    listed_metrics.append(report.Metric("Active units", metrics["active_units"], "", None, meaning))
    return listed_metrics


def find_warnings(metrics: dict[str, Any]) -> list[str]:
    """Returns warnings about the validity of the metrics."""
    warnings = list(metrics.get("caveats", []))
    if metrics["grey_scale"]:
        warnings.append(
            "Grey values are scored by a Bernoulli's cross-entropy, which is not a likelihood. The "
            "evidence here cannot be compared with that of another likelihood."
        )
    if is_collapsed(metrics["active_units"], metrics["rate"]):
        warnings.append(
            f"Posterior collapse: the decoder almost ignores the latents (active units: "
            f"{format_active_units(metrics).strip()}; rate: {metrics['rate']:.2f} nats per datum). "
            f"A beta that rises from 0 over the first epochs often helps."
        )
    gap = metrics["gap"]
    if gap > _MAX_GAP * abs(metrics["log_evidence"]):
        warnings.append(
            f"The ELBO is {gap:.2f} nats below the log evidence: the posterior fits poorly, and "
            f"the ELBO is a poor approximation of the evidence."
        )
    for name, closed in metrics["kl_closed_form"].items():
        if not closed:
            warnings.append(f"The KL at {name} is sampled: {metrics['kl_reason'][name]}.")
    if metrics["effective_sample_size_min"] < LEAST_SAMPLE_SIZE:
        warnings.append(
            f"The smallest effective sample size of a row is only "
            f"{metrics['effective_sample_size_min']:.1f}: the log evidence may be too low "
            f"there, and its error too small."
        )
    mixture = metrics["mixture_log_evidence"]
    if mixture is not None and metrics["log_evidence"] < mixture:
        warnings.append("A mixture of the same likelihood predicts the held-out rows better.")
    return warnings


def format_active_units(metrics: Mapping[str, Any]) -> str:
    """Returns the number of active units as text; it is unknown for one row."""
    if metrics["active_units"] is None:
        return "    - (needs at least two rows)"
    return f"{metrics['active_units']:5d} of {metrics['latent_dim']}"


def format_run_summary(metrics: dict[str, Any], out: Path) -> str:
    """Returns the summary that a terminal shows at the end of a run."""
    mixture = metrics["mixture_log_evidence"]
    lines = [
        f"log evidence  {metrics['log_evidence']:9.3f} +- {metrics['log_evidence_se']:.3f} nats "
        f"per datum{format_condition(metrics)}, on held-out rows",
        f"ELBO          {metrics['elbo']:9.3f} (rate {metrics['rate']:.3f}, distortion "
        f"{metrics['distortion']:.3f})",
        f"active units  {format_active_units(metrics)}",
        f"training      {metrics['seconds']:7.1f}   s, {metrics['epochs']} epochs",
        f"report        {out / 'report.html'}",
    ]
    if mixture is not None:
        lines.insert(1, f"mixture       {mixture:9.3f} for {metrics['mixture_components']} "
                        f"components fitted by EM")  # fmt: skip
    return "\n".join(lines)
