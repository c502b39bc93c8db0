"""Checks the configuration of a run before anything is written."""

import copy
import inspect
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from pyro_vae.compiled.optimizer_step import check_optimizer
from pyro_vae.data import Data
from pyro_vae.progress import check_progress
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.training.argument_checks import (
    as_rows,
    check_data,
    check_factories,
    check_numbers,
    check_objective_schedules,
    check_precision,
    check_tracker,
    choose_engine,
)
from pyro_vae.training.loop import Training, draw_batches
from pyro_vae.training.network_checks import check_single_rows
from pyro_vae.training.resume_file import load_state
from pyro_vae.training.single import fit
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_device, check_size

__all__ = ["PreparedRun", "check_settings", "check_training"]

_LEAST = {
    "num_particles": 1,
    "elbo_particles": 1,
    "evidence_rows": 1,
    "baseline_components": 0,
    "baseline_rows": 1,
}
"""The least value of each setting of ``evaluate``."""


class PreparedRun(NamedTuple):
    """The configuration of a run and the objects built from it."""

    cfg: DictConfig
    data: Data
    vae: VAE
    objective: Any
    optimizer: Any
    train: Any


def check_settings(cfg: DictConfig) -> None:
    """Checks the settings that can be checked without data and VAE; raises a ``ValueError``."""
    for name, least in _LEAST.items():
        value = cfg.evaluate.get(name)
        if value is not None or name != "evidence_rows":
            check_size(f"evaluate.{name}", value, least=least)
    check_size("seed", cfg.seed, least=0)
    if cfg.seed >= 2**32:
        raise ValueError(f"Expected seed to be an integer below 2**32, got {cfg.seed}")
    if cfg.threads is not None:
        check_size("threads", cfg.threads, least=1)
    for name in ("resume", "overwrite"):
        if not isinstance(cfg.get(name, False), bool):
            raise ValueError(f"Expected {name} to be true or false, got {cfg[name]!r}")
    check_device(cfg.device)


def check_training(ready: PreparedRun, state: Path | None = None) -> None:
    """Raises a ``ValueError`` for a training that :func:`pyro_vae.fit` would refuse.

    Arguments:
        ready: The run; its training is checked only if it is a partial of :func:`pyro_vae.fit`.
        state: The resume state of the training to continue, or ``None``.
    """
    cfg, data, vae, objective, optimizer, train = ready
    if not (isinstance(train, partial) and train.func is fit):
        return
    settings = _bind_arguments(train)
    valid = data.valid if len(data.x.valid) else None
    rows, size = as_rows("train", data.train), settings["batch_size"]
    numbers = ("epochs", "batch_size", "clip_norm", "patience", "checkpoint_seconds")
    check_numbers(*(settings[name] for name in numbers))
    steps = settings["epochs"] * len(draw_batches(len(rows.x), size, torch.Generator()))
    schedules = check_objective_schedules(objective, settings["schedules"] or {}, steps)
    check_data(vae, rows, valid, settings["patience"])
    check_single_rows(vae, rows, size, objective)
    check_tracker(settings["tracker"])
    check_progress(settings["progress"])
    check_factories(optimizer, settings["lr_schedule"])
    compile = check_precision(settings["precision"], settings["compile"])
    engine = choose_engine(compile, vae, objective, min(size, len(rows.x)), steps)
    _check_optimizer(vae, optimizer, settings["lr_schedule"])
    if state is None:
        return
    # Copies, because a restored state changes weights and the objective.
    vae, objective = copy.deepcopy((vae, objective))
    clip = settings["clip_norm"]
    run = Training(vae, objective, schedules, rows, valid, size, clip, cfg.seed, engine)
    with fork_and_seed_rng(rows.x.device, cfg.seed):
        run.start(optimizer, settings["lr_schedule"])
        _check_state(run, state)


def _bind_arguments(train: partial) -> dict[str, Any]:
    """Returns all arguments of a partial of :func:`pyro_vae.fit`, including defaults."""
    try:
        arguments = inspect.signature(fit).bind_partial(*train.args, **train.keywords)
    except TypeError as error:
        raise ValueError(f"Expected train to be settings of pyro_vae.fit, {error}") from None
    arguments.apply_defaults()
    return arguments.arguments


def _check_optimizer(vae: VAE, optimizer: Any, lr_schedule: Any) -> None:
    """Raises a ``ValueError`` unless an optimizer and its schedule can be built."""
    try:
        result = optimizer([p for p in vae.parameters() if p.requires_grad])
        check_optimizer("the result of optimizer", result)
        if lr_schedule is not None:
            lr_schedule(result)
    except TypeError as error:
        raise ValueError(
            f"Expected optimizer and train.lr_schedule to have settings that PyTorch accepts: "
            f"{error}"
        ) from None


def _check_state(run: Training, path: Path) -> None:
    """Restores a training, or raises a ``ValueError`` for the state of another one."""
    state = load_state(path)
    for name, own in run.fingerprint().items():
        other = state["fingerprint"].get(name)
        if other != own:
            raise ValueError(
                f"Expected resume=true to continue the training in '{path.parent}', got a "
                f"different value of {name}: {_shorten(other)} there, {_shorten(own)} here: choose "
                f"another folder (out=FOLDER), or replace the run (overwrite=true)"
            )
    run.resume_from(state, path)


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
