"""One run: build, train, judge, write."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from omegaconf import DictConfig, OmegaConf

from pyro_vae import config, objectives, report
from pyro_vae.console.commands import check_interrupted
from pyro_vae.data import Rows
from pyro_vae.evaluate import baseline
from pyro_vae.evaluate.metrics import finite_figures, mean, scores
from pyro_vae.files.atomic import hold_folder, strict_json, write_whole
from pyro_vae.guard import guard_process_state
from pyro_vae.progress import Progress, show_always
from pyro_vae.report import content
from pyro_vae.report.trained_run import Run
from pyro_vae.run.checks import Prepared, check_settings, check_training
from pyro_vae.run.folder import RunFolder, check_out
from pyro_vae.seeding import own_randomness
from pyro_vae.sweeps.job_id import run_id
from pyro_vae.training.checkpointer import write_history
from pyro_vae.vae.serialization import save_weights

__all__ = ["run"]


@guard_process_state
def run(
    cfg: DictConfig, *, name: str | None = None, files: Mapping[str, str] | None = None
) -> float:
    """Trains and judges what a configuration describes, and writes it to ``cfg.out``.

    This is a job of a process of its own: Pyro's parameter store is cleared, the random state
    seeded, and the number of threads set. A finished run in ``cfg.out`` stays as it is until the
    new results are complete.

    Arguments:
        cfg: A composed configuration, ``pyro_vae.config.compose``.
        name: The name of the configuration; by default :func:`pyro_vae.sweeps.run_id` of it.
        files: Further texts to write to the folder, by their names.

    Returns:
        The held-out log evidence, in nats per datum.

    Raises:
        ValueError: If the configuration describes what cannot be, or ``cfg.out`` holds another run
            and neither ``cfg.resume`` nor ``cfg.overwrite`` is true; before any work is done.
    """
    check_settings(cfg)
    name = run_id(cfg) if name is None else name
    folder = RunFolder(
        check_out(cfg), name, resume=cfg.resume, overwrite=cfg.get("overwrite", False)
    )
    folder.check()
    ready = _prepare(cfg)
    check_training(ready)
    with hold_folder(folder.out):
        folder.recover()
        # Again, because another process may have been at work.
        folder.check()
        if folder.checkpoint is not None:
            check_training(ready, folder.checkpoint)
        place = folder.open({**(files or {}), **_first_files(ready)})
        try:
            with show_always():
                metrics = _train_and_write(ready, place)
        except BaseException:
            folder.abandon(place)
            raise
        folder.close(place)
    print(content.summary(metrics, folder.out))
    return metrics["log_evidence"]


def _prepare(cfg: DictConfig) -> Prepared:
    """Builds everything that a run needs, in a process as good as new."""
    pyro.clear_param_store()
    pyro.set_rng_seed(cfg.seed)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    data = config.build(cfg.data)
    if not len(data.x.test):
        raise ValueError(
            f"Expected rows of '{data.name}' to be kept for the test, got none: give data.test"
        )
    vae = config.build(cfg.vae, event_shape=tuple(data.event_shape))
    objective, optimizer = config.build(cfg.objective), config.build(cfg.optimizer)
    vae, data = vae.to(cfg.device), data.to(cfg.device)
    return Prepared(cfg, data, vae, objective, optimizer, config.build(cfg.train))


def _first_files(ready: Prepared) -> dict[str, str]:
    """Returns the files that describe a run before it begins."""
    return {
        "config.yaml": OmegaConf.to_yaml(config.resolved(ready.cfg)),
        "data.json": strict_json(ready.data.preparation.to_dict()),
    }


def _train_and_write(ready: Prepared, place: Path) -> dict[str, Any]:
    """Trains and judges, writes all results to a folder, and returns the figures."""
    cfg, data, vae, objective, optimizer, train = ready
    result = train(
        vae,
        data.train,
        valid=data.valid if len(data.x.valid) else None,
        objective=objective,
        optimizer=optimizer,
        seed=cfg.seed,
        out=place,
        resume=cfg.resume,
    )
    # A training that a signal ended early is not a result.
    check_interrupted()
    # Once more, because a run whose weights could not be written is not finished.
    save_weights(vae, vae.state_dict(), place / "model.safetensors")
    write_history(result.history, place / "history.csv")
    made = Run(cfg, data, vae, objective, result)
    metrics = judge(made)
    # Before the pictures, so that none of them can cost the figures.
    _write(place / "metrics.json", strict_json(metrics))
    report.write(content.tell(made, metrics), place)
    return metrics


def judge(made: Run) -> dict[str, Any]:
    """Returns the final figures on held-out data, in nats per datum."""
    cfg, vae, (x, mask, _) = made.cfg, made.vae, made.data.test
    # Seeded anew, so that whoever judges the run later can draw the same.
    with own_randomness(x.device, cfg.seed):
        figures = scores(vae, x, mask, **cfg.evaluate)
    kl = objectives.kl_report(vae.model, vae.guide, x[:2], mask=None if mask is None else mask[:2])
    return finite_figures({
        **figures,
        "objective": _held_out_objective(made),
        "kl_closed_form": {name: term.closed_form for name, term in kl.items()},
        "kl_reason": {name: term.reason for name, term in kl.items()},
        "mixture_log_evidence": _mixture_evidence(made),
        "mixture_components": cfg.evaluate.baseline_components,
        "mixture_rows": min(len(made.data.x.train), cfg.evaluate.baseline_rows),
        **_protocol(made),
    })  # fmt: skip


def _protocol(made: Run) -> dict[str, Any]:
    """Returns what the figures were made by, without which none can be compared."""
    cfg, data, vae = made.cfg, made.data, made.vae
    return {
        "data": data.name,
        "binarize": data.binarize,
        "grey_scale": data.binarize == "none" and getattr(vae.likelihood, "grey_scale", False),
        "rows": {part: len(rows) for part, rows in data.x._asdict().items()},
        "latent_dim": vae.latent_dim,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "epochs": len(made.result.history),
        "best_epoch": made.result.best_epoch,
        "steps": made.result.steps,
        "seconds": made.result.seconds,
        "engine": made.result.engine,
        "seed": cfg.seed,
        "threads": torch.get_num_threads(),
        "device": str(cfg.device),
        "torch": torch.__version__,
    }


@torch.no_grad()
def _held_out_objective(made: Run) -> float:
    """Returns what training maximized, on the test rows in evaluation mode."""
    total, test = 0.0, made.data.test
    with Progress("objective", len(test.x), "rows") as progress:
        for start in range(0, len(test.x), 1000):
            x, mask = test.batch(slice(start, start + 1000))
            loss = made.objective.differentiable_loss(made.vae.model, made.vae.guide, x, mask=mask)
            total -= float(loss)
            progress.advance(len(x))
    return total / len(test.x)


def _mixture_evidence(made: Run) -> float | None:
    """Returns the held-out log evidence of a mixture of the same likelihood, if there is one."""
    components = made.cfg.evaluate.baseline_components
    if not components:
        return None
    if made.data.mask is not None:
        return None
    evaluation, (train, mask, dynamic), valid = made.cfg.evaluate, made.data.train, made.data.valid
    some = slice(evaluation.baseline_rows)
    order = torch.Generator(train.device).manual_seed(made.cfg.seed)
    fit = baseline.mixture(
        made.vae.likelihood,
        Rows(train[some], mask, dynamic).batch(slice(None), order)[0],
        (valid.x if len(valid.x) else train)[some],
        made.data.x.test[: evaluation.evidence_rows],
        components=components,
    )
    return None if fit is None else mean(fit.log_evidence)


def _write(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    write_whole(path, text.encode())
