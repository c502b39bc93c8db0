"""Checks the configuration of a run before anything is written."""

import copy
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from omegaconf import DictConfig

from pyro_vae.compiled.optimizer_step import check_optimizer
from pyro_vae.data import Data
from pyro_vae.evaluate.metrics import check_tolerance
from pyro_vae.evaluate.scoring import check_engine
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.training.argument_checks import check_outputs
from pyro_vae.training.loop import Training
from pyro_vae.training.resume_file import find_change, load_state
from pyro_vae.training.setup import build_training
from pyro_vae.training.single import fit
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_device, check_size

__all__ = ["PreparedRun", "check_settings", "check_size_factor", "check_training", "is_fit"]

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
    check_tolerance("evaluate.tolerance", cfg.evaluate.get("tolerance"))
    engine = cfg.evaluate.get("compile", "auto"), cfg.evaluate.get("precision", "float32")
    check_engine(*engine, prefix="evaluate.")
    check_size("seed", cfg.seed, least=0)
    if cfg.seed >= 2**32:
        raise ValueError(f"Expected seed to be an integer below 2**32, got {cfg.seed}")
    if cfg.threads is not None:
        check_size("threads", cfg.threads, least=1)
    for name in ("resume", "overwrite"):
        if not isinstance(cfg.get(name, False), bool):
            raise ValueError(f"Expected {name} to be true or false, got {cfg[name]!r}")
    check_device(cfg.device)


def check_size_factor(data: Data, vae: VAE) -> None:
    """Raises a ``ValueError`` unless data have the size factor that the likelihood takes."""
    uses_it = bool(getattr(vae.likelihood, "uses_size_factor", False))
    encoding = data.covariate_columns
    has_it = encoding is not None and encoding.has_size_factor
    if uses_it and not has_it:
        raise ValueError(
            f"Expected data.size_factor to name a column, which vae.likelihood.size_factor="
            f"covariate needs, got none in '{data.name}'"
        )
    if has_it and not uses_it:
        raise ValueError(
            "Expected vae.likelihood.size_factor=covariate with data.size_factor, got a "
            f"{type(vae.likelihood).__name__} likelihood that does not take it"
        )


def check_training(ready: PreparedRun, state: Path | None = None) -> None:
    """Raises a ``ValueError`` for a training that :func:`pyro_vae.fit` would refuse.

    Arguments:
        ready: The run; its training is checked only if it is a partial of :func:`pyro_vae.fit`.
        state: The resume state of the training to continue, or ``None``.
    """
    cfg, data, vae, objective, optimizer, train = ready
    if not is_fit(train):
        return
    valid = data.valid if len(data.x.valid) else None
    if state is not None:
        # Copies, because a restored state changes weights and the objective.
        vae, objective = copy.deepcopy((vae, objective))
    settings = _bind_arguments(
        train, vae, data.train, valid=valid, objective=objective, optimizer=optimizer, seed=cfg.seed
    )
    run = build_training(**{name: settings[name] for name in signature(build_training).parameters})
    check_outputs(settings["tracker"], settings["progress"], settings["checkpoint_seconds"])
    _check_optimizer(vae, optimizer, run.make_schedule)
    if state is not None:
        with fork_and_seed_rng(run.train.x.device, run.seed):
            run.start()
            _check_state(run, state)


def is_fit(train: Any) -> TypeGuard[partial]:
    """Whether a function is a partial of :func:`pyro_vae.fit`."""
    return isinstance(train, partial) and train.func is fit


def _bind_arguments(train: partial, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns all arguments of a call of a partial of :func:`pyro_vae.fit`, including defaults."""
    try:
        arguments = signature(fit).bind(*args, *train.args, **{**train.keywords, **kwargs})
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
    change = find_change(state["fingerprint"], run.fingerprint())
    if change is not None:
        name, other, own = change
        raise ValueError(
            f"Expected resume=true to continue the training in '{path.parent}', got a different "
            f"value of {name}: {_shorten(other)} there, {_shorten(own)} here: choose another "
            f"folder (out=FOLDER), or replace the run (overwrite=true)"
        )
    run.resume_from(state, path)


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
