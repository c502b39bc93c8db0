"""What a report says of a run: its figures, its warnings, its pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_vae import report
from pyro_vae.collapse import ACTIVE_VARIANCE, is_collapsed
from pyro_vae.data import Data
from pyro_vae.report import figures as pictures
from pyro_vae.report.trained_run import Run

__all__ = ["summary", "tell", "warnings"]

_LOOSE = 0.1
"""The share of the log evidence above which the gap to the ELBO is worth a warning."""


def tell(made: Run, metrics: dict[str, Any]) -> report.Report:
    """Returns the report of a run."""
    return report.Report(
        title=_title(made),
        settings=_settings(made, metrics),
        figures=_figures(metrics),
        warnings=warnings(metrics),
        pictures=pictures.pictures(made, metrics),
        history=made.result.history,
    )


def _title(made: Run) -> str:
    """Returns what was trained on what."""
    vae = made.vae
    parts = [
        made.data.title,
        f"{_part_name(vae.likelihood)} likelihood",
        f"{_part_name(vae.prior)} prior",
        f"{_part_name(vae.posterior)} posterior",
    ]
    return " · ".join(parts)


def _part_name(part: torch.nn.Module) -> str:
    """Returns the name of a part's class."""
    return type(part).__name__


def _settings(made: Run, metrics: dict[str, Any]) -> dict[str, str]:
    """Returns what was trained on what, name by name."""
    vae, rows, optimizer = made.vae, metrics["rows"], made.cfg.optimizer
    return {
        "Data": f"{made.data.name}: {made.data.source}",
        **_table(made.data),
        "Binarization": made.data.binarize,
        "Rows": f"{rows['train']} training, {rows['valid']} validation, {rows['test']} test",
        "Event shape": " x ".join(map(str, vae.event_shape)),
        "Prior": repr(vae.prior),
        "Posterior": repr(vae.posterior),
        "Likelihood": repr(vae.likelihood),
        "Encoder": _network_name(vae.encoder),
        "Decoder": _network_name(vae.decoder),
        "Latent dimensions": str(vae.latent_dim),
        "Parameters": f"{metrics['parameters']:,}",
        "Objective": f"{type(made.objective).__name__}, "
        f"{getattr(made.objective, 'num_particles', 1)} particle(s)",
        "KL of the ELBO": _kl_term(made, metrics),
        "Optimizer": (
            f"{optimizer._target_.rsplit('.', 1)[-1]}, learning rate "
            f"{optimizer.get('lr', 'by default')}"
        ),
        "Training": (
            f"{metrics['epochs']} epochs, {metrics['steps']} steps of "
            f"{made.cfg.train.batch_size} rows, {metrics['seconds']:.1f} s; weights of epoch "
            f"{metrics['best_epoch']}"
        ),
        "Engine": metrics["engine"],
        "Seed": str(metrics["seed"]),
        "Threads": str(metrics["threads"]),
        "Device": metrics["device"],
        "PyTorch": metrics["torch"],
    }


def _table(data: Data) -> dict[str, str]:
    """Returns what is said of a table only: its columns, and how much of it is missing."""
    said = {}
    if data.columns is not None:
        said["Columns"] = ", ".join(data.columns)
    if data.mask is not None:
        missing = 1 - data.mask.train.double().mean().item()
        said["Missing"] = f"{missing:.1%} of the training values, left out of the likelihood"
    return said


def _kl_term(made: Run, metrics: dict[str, Any]) -> str:
    """Returns how the KL of each site is computed, and whether training did otherwise."""
    terms = "; ".join(f"{k}: {reason}" for k, reason in metrics["kl_reason"].items())
    sampled = getattr(made.objective, "analytic", None) is False
    return terms + ("; sampled in training, as analytic=False asks" if sampled else "")


def _network_name(network: torch.nn.Module) -> str:
    """Returns a network's class and the widths of its layers."""
    widths = [
        str(layer.weight.shape[0])
        for layer in network.modules()
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    return f"{type(network).__name__}, layers of {', '.join(widths)}"


def _figures(metrics: dict[str, Any]) -> list[report.Figure]:
    """Returns the figures with what each means."""
    particles = f"{metrics['log_evidence_particles']:,}"
    rows = [
        ("Log evidence", "log_evidence", "log_evidence_se", (
            f"log p(x) of {metrics['log_evidence_rows']:,} held-out rows, by importance sampling "
            f"with {particles} samples a row: how well the model predicts data it has not seen. "
            f"Higher is better."
        )),
        ("Mixture's log evidence", "mixture_log_evidence", None, (
            f"The same for a mixture of {metrics['mixture_components']} such likelihoods fitted "
            f"by EM to {metrics['mixture_rows']:,} training rows: what a VAE has to beat. Not "
            f"computed where values are missing."
        )),
        ("ELBO", "elbo", "elbo_se", (
            "The lower bound on the log evidence at beta = 1, whatever was optimized."
        )),
        ("Gap", "gap", None, (
            "Log evidence minus ELBO on the same rows: how far the posterior is from the true "
            "one, in KL."
        )),
        ("Rate", "rate", None, (
            "KL of posterior to prior: how much a code says about its datum."
        )),
        ("Distortion", "distortion", None, (
            "Minus the expected log likelihood: what is lost between datum and reconstruction."
        )),
        ("Objective", "objective", None, (
            "What was optimized, on all held-out rows; not comparable between objectives."
        )),
    ]  # fmt: skip
    listed = [
        report.Figure(name, metrics[key], "nats per datum", metrics.get(error or ""), meaning)
        for name, key, error, meaning in rows
        if not (key == "mixture_log_evidence" and not metrics["mixture_components"])
    ]
    meaning = (
        f"Of {metrics['latent_dim']} latent dimensions, those whose posterior mean varies over "
        f"the data by more than {ACTIVE_VARIANCE:g} in variance. Others are not needed, which is "
        f"not an error."
    )
    listed.append(report.Figure("Active units", metrics["active_units"], "", None, meaning))
    return listed


def warnings(metrics: dict[str, Any]) -> list[str]:
    """Returns what a reader of the figures should know before trusting them."""
    found = []
    if metrics["grey_scale"]:
        found.append(
            "Grey values are scored by a Bernoulli's cross-entropy, which is no likelihood: what "
            "is called evidence here compares with no other likelihood's."
        )
    if is_collapsed(metrics["active_units"], metrics["rate"]):
        found.append(
            f"Posterior collapse: the decoder all but ignores the latents (active units: "
            f"{active_units(metrics).strip()}; rate: {metrics['rate']:.2f} nats per datum). A "
            f"beta that rises from 0 over the first epochs often helps."
        )
    gap = metrics["gap"]
    if gap > _LOOSE * abs(metrics["log_evidence"]):
        found.append(
            f"The ELBO lies {gap:.2f} nats below the log evidence: the posterior is a loose fit, "
            f"and the ELBO a poor stand-in for the evidence."
        )
    for name, closed in metrics["kl_closed_form"].items():
        if not closed:
            found.append(f"The KL at {name} is sampled: {metrics['kl_reason'][name]}.")
    if metrics["effective_sample_size_min"] < 10:
        found.append(
            f"For some row the importance weights are worth only "
            f"{metrics['effective_sample_size_min']:.1f} samples: the log evidence may be too low "
            f"there, and its error too small."
        )
    mixture = metrics["mixture_log_evidence"]
    if mixture is not None and metrics["log_evidence"] < mixture:
        found.append("A plain mixture of the same likelihood predicts the held-out rows better.")
    return found


def active_units(metrics: Mapping[str, Any]) -> str:
    """Returns the number of active units as text; one row has none."""
    if metrics["active_units"] is None:
        return "    - (two rows or more are needed)"
    return f"{metrics['active_units']:5d} of {metrics['latent_dim']}"


def summary(metrics: dict[str, Any], out: Path) -> str:
    """Returns the figures that a terminal shows at the end of a run."""
    mixture = metrics["mixture_log_evidence"]
    lines = [
        f"log evidence  {metrics['log_evidence']:9.3f} +- {metrics['log_evidence_se']:.3f} nats "
        f"per datum, held out",
        f"ELBO          {metrics['elbo']:9.3f} (rate {metrics['rate']:.3f}, distortion "
        f"{metrics['distortion']:.3f})",
        f"active units  {active_units(metrics)}",
        f"training      {metrics['seconds']:7.1f}   s, {metrics['epochs']} epochs",
        f"report        {out / 'report.html'}",
    ]
    if mixture is not None:
        lines.insert(1, f"mixture       {mixture:9.3f} for {metrics['mixture_components']} "
                        f"components fitted by EM")  # fmt: skip
    return "\n".join(lines)
