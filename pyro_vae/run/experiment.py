"""Builds, trains and evaluates a VAE from a configuration, and writes the results."""

import textwrap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pyro_vae import config, objectives
from pyro_vae.console.commands import check_interrupted
from pyro_vae.data import Batch, Data
from pyro_vae.data.checksum import hash_rows
from pyro_vae.data.sparse_rows import is_sparse
from pyro_vae.evaluate import Evidence, baseline
from pyro_vae.evaluate.held_out import write_held_out
from pyro_vae.evaluate.metrics import (
    check_finite_metrics,
    compute_metrics,
    describe_protocol,
    mean_over_rows,
    score_rows,
)
from pyro_vae.files.atomic import hold_folder, strict_json, write_whole
from pyro_vae.guard import guard_process_state
from pyro_vae.masking import fill_missing
from pyro_vae.objectives.core.enumeration import mark_enumerated
from pyro_vae.progress import Progress, announce, show_always
from pyro_vae.report.trained_run import TrainedRun
from pyro_vae.run.checks import (
    PreparedRun,
    check_settings,
    check_size_factor,
    check_training,
    is_fit,
)
from pyro_vae.run.cost import CostTracker
from pyro_vae.run.folder import RunFolder, check_out
from pyro_vae.run.tracking import Tracking, describe_run, track_run
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.sweeps.job_id import run_id
from pyro_vae.trackers.build import build_tracker
from pyro_vae.training.checkpointer import write_history
from pyro_vae.training.single import Tracker
from pyro_vae.vae.serialization import save_weights
from pyro_vae.vae.vae import VAE

__all__ = ["run"]


@guard_process_state
def run(
    cfg: DictConfig,
    *,
    name: str | None = None,
    files: Mapping[str, str] | None = None,
    tracker: Tracker | None = None,
    group: str | None = None,
) -> float:
    """Trains and evaluates the VAE of a configuration, and writes the results to ``cfg.out``.

    It changes process-wide state: Pyro's parameter store is cleared, the random state seeded, and
    the number of threads set. A finished run in ``cfg.out`` is unchanged until the new results are
    complete.

    Arguments:
        cfg: A composed configuration, ``pyro_vae.config.compose``.
        name: The name of the configuration; by default :func:`pyro_vae.sweeps.run_id` of it.
        files: Further texts to write to the folder, by their names.
        tracker: A tracker of the training, besides those of the configuration.
        group: The name of the study of a sweep, for the tracker of the configuration.

    Returns:
        The held-out log evidence, in nats per datum.

    Raises:
        ValueError: If the configuration is invalid, or ``cfg.out`` holds another run and neither
            ``cfg.resume`` nor ``cfg.overwrite`` is true. This is raised before any work.
    """
    check_settings(cfg)
    name = run_id(cfg) if name is None else name
    cfg = _choose_mixed(cfg)
    folder = RunFolder(
        check_out(cfg), name, resume=cfg.resume, overwrite=cfg.get("overwrite", False)
    )
    folder.check()
    run_tracker = build_tracker(cfg.get("tracker"))
    ready = _prepare(cfg)
    check_training(ready)
    with hold_folder(folder.out):
        folder.recover()
        # Checked again, because another process may have written to the folder.
        folder.check()
        if folder.checkpoint is not None:
            check_training(ready, folder.checkpoint)
        work_folder = folder.open({**(files or {}), **_first_files(ready)})
        try:
            describe = partial(describe_run, cfg, work_folder, name, group)
            with show_always(), track_run(run_tracker, describe) as tracking:
                metrics = _train_and_write(ready, work_folder, tracker, tracking)
        except BaseException:
            folder.abandon(work_folder)
            raise
        folder.close(work_folder)
    from pyro_vae.report.content import format_run_summary

    print(format_run_summary(metrics, folder.out))
    return metrics["log_evidence"]


def _prepare(cfg: DictConfig) -> PreparedRun:
    """Resets the process state, and builds all objects of a run."""
    pyro.clear_param_store()
    pyro.set_rng_seed(cfg.seed)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    data = config.build(cfg.data)
    if not isinstance(data, Data):
        raise ValueError(
            f"Expected data to build a pyro_vae.data.Data, got {type(data).__name__} of "
            f"{cfg.data.get('_target_')}{': leave out _partial_' * ('_partial_' in cfg.data)}"
        )
    if not len(data.x.test):
        raise ValueError(f"Expected '{data.name}' to have test rows, got none: set data.test")
    vae = _build_vae(cfg, data)
    check_size_factor(data, vae)
    objective, optimizer = config.build(cfg.objective), config.build(cfg.optimizer)
    vae, data = vae.to(cfg.device), data.to(cfg.device)
    return PreparedRun(cfg, data, vae, objective, optimizer, config.build(cfg.train))


def _choose_mixed(cfg: DictConfig) -> DictConfig:
    """Returns the configuration with ``data.mixed`` set by the likelihood, if it is not given."""
    if "mixed" not in cfg.data or cfg.data.mixed is not None or not _has_columns(cfg):
        return cfg
    cfg = cfg.copy()
    cfg.data.mixed = True
    return cfg


def _has_columns(cfg: DictConfig) -> bool:
    """Whether the likelihood takes the columns of the data, because none are given."""
    likelihood = cfg.vae.get("likelihood")
    return isinstance(likelihood, DictConfig) and likelihood.get("columns", 0) is None


def _build_vae(cfg: DictConfig, data: Data) -> VAE:
    """Builds the VAE for the shape, covariates and columns of the data."""
    sizes: dict[str, Any] = {"event_shape": tuple(data.event_shape)}
    if data.covariate_columns is not None:
        sizes["covariate_dim"] = data.covariate_columns.dim
    if not _has_columns(cfg):
        if data.schema is not None:
            raise ValueError(
                f"Expected vae/likelihood=columns for a table of mixed columns, got "
                f"{cfg.vae.likelihood.get('_target_')}"
            )
        return config.build(cfg.vae, **sizes)
    if data.schema is None:
        raise ValueError(
            f"Expected a table (data=table) for vae/likelihood=columns, got '{data.name}' without "
            f"kinds of columns"
        )
    cfg = cfg.copy()
    cfg.vae.likelihood.columns = data.schema.to_list()
    return config.build(cfg.vae, **sizes)


def _first_files(ready: PreparedRun) -> dict[str, str]:
    """Returns the files that describe a run before it begins."""
    return {
        "config.yaml": OmegaConf.to_yaml(config.resolve_references(ready.cfg)),
        "data.json": strict_json(ready.data.preparation.to_dict()),
    }


def _train_and_write(
    ready: PreparedRun, folder: Path, tracker: Tracker | None, tracking: Tracking | None
) -> dict[str, Any]:
    """Trains and evaluates, writes all results to a folder, and returns the metrics."""
    cfg, data, vae, objective, optimizer, train = ready
    if data.schema is not None:
        announce(f"{data.source}\n{textwrap.indent(data.schema.describe(), '  ')}")
    if is_fit(train):
        settings = train.keywords
        # The tracker of the run comes first, because others may end the training after an epoch.
        trackers = [
            other for other in (tracking, settings.get("tracker"), tracker) if other is not None
        ]
        cost = CostTracker(settings.get("epochs", 100), vae, data.test, cfg.evaluate, trackers)
        train = partial(train, tracker=cost)
    elif tracker is not None:
        raise ValueError(
            f"Expected train to be pyro_vae.fit for hydra/sweeper/pruner, got "
            f"{cfg.train._target_}: set hydra/sweeper/pruner=none"
        )
    result = train(
        vae,
        data.train,
        valid=data.valid if len(data.x.valid) else None,
        objective=objective,
        optimizer=optimizer,
        seed=cfg.seed,
        out=folder,
        resume=cfg.resume,
    )
    # A training ended early by a signal is not a result.
    check_interrupted()
    # Written again, because fit tolerates a failed write but a finished run has its weights.
    save_weights(vae, vae.state_dict(), folder / "model.safetensors")
    write_history(result.history, folder / "history.csv")
    run = TrainedRun(cfg, data, vae, objective, result)
    metrics, evidence = evaluate_trained_run(run)
    # Written before the report, whose failure must not lose the metrics.
    write_held_out(folder, data, evidence)
    _write(folder / "metrics.json", strict_json(metrics))
    # Imported late, because Matplotlib is not needed before.
    from pyro_vae.report.content import build_report
    from pyro_vae.report.page import write

    write(build_report(run, metrics, evidence), folder)
    if tracking is not None:
        tracking.finish(result.history, metrics)
    return metrics


def evaluate_trained_run(run: TrainedRun) -> tuple[dict[str, Any], Evidence]:
    """Returns the final metrics on held-out data in nats per datum, and the evidence by row."""
    cfg, vae, (x, mask, _, covariates) = run.cfg, run.vae, run.data.test
    # Seeded, so a later evaluation of the run can draw the same samples.
    with fork_and_seed_rng(x.device, cfg.seed):
        evidence = score_rows(vae, x, mask, covariates, **cfg.evaluate)
        metrics = compute_metrics(vae, x, mask, covariates, evidence=evidence, **cfg.evaluate)
    kl = objectives.kl_report(
        vae.model, vae.guide, **_name_arguments(run.data.test.batch(slice(2)))
    )
    metrics = check_finite_metrics({
        **metrics,
        "objective": _held_out_objective(run),
        "kl_closed_form": {name: term.closed_form for name, term in kl.items()},
        "kl_reason": {name: term.reason for name, term in kl.items()},
        "caveats": [
            part.caveat for part in (vae.prior, vae.posterior) if getattr(part, "caveat", None)
        ],
        "mixture_log_evidence": _mixture_log_evidence(run),
        "mixture_components": cfg.evaluate.baseline_components,
        "mixture_rows": min(len(run.data.x.train), cfg.evaluate.baseline_rows),
        **_protocol(run),
    })  # fmt: skip
    return metrics, evidence


def _protocol(run: TrainedRun) -> dict[str, Any]:
    """Returns the protocol of the metrics, which any comparison needs."""
    return {
        **describe_protocol(run.data, run.vae),
        "test_sha256": hash_rows(run.data.test),
        "epochs": len(run.result.history),
        "best_epoch": run.result.best_epoch,
        "steps": run.result.steps,
        "seconds": run.result.seconds,
        "engine": run.result.engine,
        "seed": run.cfg.seed,
        "threads": torch.get_num_threads(),
        "device": str(run.cfg.device),
        "torch": torch.__version__,
    }


@torch.no_grad()
def _held_out_objective(run: TrainedRun) -> float:
    """Returns the training objective on the test rows, in evaluation mode."""
    total, test = 0.0, run.data.test
    guide = mark_enumerated(run.objective, run.vae.guide)
    with Progress("objective", len(test.x), "rows") as progress:
        for start in range(0, len(test.x), 1000):
            batch = test.batch(slice(start, start + 1000))
            # Without gradients TraceEnum_ELBO has no differentiable loss.
            enumerates = guide is not run.vae.guide
            loss = (run.objective.loss if enumerates else run.objective.differentiable_loss)(
                run.vae.model, guide, **_name_arguments(batch)
            )
            total -= float(loss)
            progress.advance(len(batch.x))
    return total / len(test.x)


def _mixture_log_evidence(run: TrainedRun) -> float | None:
    """Returns the held-out log evidence of a mixture of the same likelihood, if available."""
    components = run.cfg.evaluate.baseline_components
    if not components:
        return None
    if run.data.covariates is not None or is_sparse(run.data.x.train):
        return None
    evaluation, train = run.cfg.evaluate, run.data.train
    valid = run.data.valid if len(run.data.valid.x) else train
    rows = slice(evaluation.baseline_rows)
    order = torch.Generator(train.x.device).manual_seed(run.cfg.seed)
    test = _mark_missing(run.data.test.batch(slice(None)))
    # The metrics leave out rows of which nothing is observed.
    test = test[~test.flatten(1).isnan().all(1)]
    fit = baseline.mixture(
        run.vae.likelihood,
        _mark_missing(train.batch(rows, order)),
        _mark_missing(valid.batch(rows)),
        test[: evaluation.evidence_rows],
        components=components,
    )
    return None if fit is None else mean_over_rows(fit.log_evidence)


def _mark_missing(batch: Batch) -> Tensor:
    """Returns rows with NaN for missing values."""
    return batch.x if batch.mask is None else fill_missing(batch.x, batch.mask, torch.nan)


def _name_arguments(batch: Batch) -> dict[str, Any]:
    """Returns a batch as arguments of model and guide, without those that are ``None``."""
    return {name: value for name, value in batch._asdict().items() if value is not None}


def _write(path: Path, text: str) -> None:
    write_whole(path, text.encode())
