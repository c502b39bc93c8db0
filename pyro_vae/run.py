"""One run: build, train, judge, write."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pyro_vae import baseline, config, evaluate, objectives, report, story
from pyro_vae.checkpoint import save_weights
from pyro_vae.commands import check_interrupted
from pyro_vae.data import Data, Rows
from pyro_vae.epochs import own_randomness
from pyro_vae.files import hold_folder, strict_json, write_whole
from pyro_vae.guard import guard_process_state
from pyro_vae.keeper import write_history
from pyro_vae.progress import Progress, show_always
from pyro_vae.run_checks import Prepared, check_settings, check_training
from pyro_vae.run_folder import RunFolder, check_out
from pyro_vae.sweeps.identity import run_id
from pyro_vae.training import FitResult
from pyro_vae.vae import VAE

__all__ = ["Run", "run"]


class Run(NamedTuple):
    """Everything that a run has made before it is written down."""

    cfg: DictConfig
    data: Data
    vae: VAE
    objective: Any
    result: FitResult


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
    print(story.summary(metrics, folder.out))
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
    write(place / "metrics.json", strict_json(metrics))
    report.write(story.tell(made, metrics), place)
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
        "objective": held_out_objective(made),
        "kl_closed_form": {name: term.closed_form for name, term in kl.items()},
        "kl_reason": {name: term.reason for name, term in kl.items()},
        "mixture_log_evidence": mixture_evidence(made),
        "mixture_components": cfg.evaluate.baseline_components,
        "mixture_rows": min(len(made.data.x.train), cfg.evaluate.baseline_rows),
        **protocol(made),
    })  # fmt: skip


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
        units = active(vae, x, mask)
        progress.advance()
        kl = rates(vae, x, mask)
    return finite_figures({
        "log_evidence": mean(evidence.log_evidence),
        "log_evidence_se": standard_error(evidence.log_evidence),
        "log_evidence_rows": len(evidence.log_evidence),
        "log_evidence_particles": num_particles,
        "log_evidence_monte_carlo_se": monte_carlo_error(evidence.standard_error),
        "effective_sample_size_min": evidence.effective_sample_size.min().item(),
        "elbo": mean(bound.elbo),
        "elbo_se": standard_error(bound.elbo),
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


def active(vae: VAE, x: Tensor, mask: Tensor | None) -> int | None:
    """Returns the number of active units, or ``None`` for one row, over which no mean varies."""
    return int(evaluate.active_units(vae, x, mask=mask).sum()) if len(x) > 1 else None


def protocol(made: Run) -> dict[str, Any]:
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


def rates(vae: VAE, x: Tensor, mask: Tensor | None) -> list[float] | None:
    """Returns the rate of each dimension, or ``None`` for a prior without known marginals."""
    try:
        return evaluate.kl_per_dimension(vae, x, mask=mask).tolist()
    except ValueError:
        return None


@torch.no_grad()
def held_out_objective(made: Run) -> float:
    """Returns what training maximized, on the test rows in evaluation mode."""
    total, test = 0.0, made.data.test
    with Progress("objective", len(test.x), "rows") as progress:
        for start in range(0, len(test.x), 1000):
            x, mask = test.batch(slice(start, start + 1000))
            loss = made.objective.differentiable_loss(made.vae.model, made.vae.guide, x, mask=mask)
            total -= float(loss)
            progress.advance(len(x))
    return total / len(test.x)


def mixture_evidence(made: Run) -> float | None:
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


def mean(values: Tensor) -> float:
    """Returns the mean over rows."""
    return values.double().mean().item()


def standard_error(values: Tensor) -> float:
    """Returns the standard error of the mean over rows, NaN for one row."""
    if len(values) < 2:
        return math.nan
    return (values.double().std() / math.sqrt(len(values))).item()


def monte_carlo_error(errors: Tensor) -> float:
    """Returns the standard error of a mean of independent estimates from that of each."""
    return (errors.double().pow(2).sum().sqrt() / len(errors)).item()


def write(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    write_whole(path, text.encode())
