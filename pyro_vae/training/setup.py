"""A training built from the arguments of ``fit``, all of which are checked first."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.data import Rows
from pyro_vae.objectives import ELBO, Schedule
from pyro_vae.training.argument_checks import (
    as_rows,
    check_data,
    check_factories,
    check_numbers,
    check_objective_schedules,
    check_precision,
    choose_engine,
)
from pyro_vae.training.batches import draw_batches
from pyro_vae.training.loop import MakeOptimizer, MakeSchedule, Training
from pyro_vae.training.network_checks import check_single_rows
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_seed

__all__ = ["DEFAULT_OPTIMIZER", "build_training"]

DEFAULT_OPTIMIZER = partial(torch.optim.Adam, lr=1e-3, fused=True)


def build_training(
    vae: VAE,
    train: Tensor | Rows,
    *,
    valid: Tensor | Rows | None,
    objective: Any,
    optimizer: MakeOptimizer | None,
    epochs: int,
    batch_size: int,
    lr_schedule: MakeSchedule | None,
    schedules: Mapping[str, Schedule] | None,
    clip_norm: float | None,
    patience: int | None,
    seed: int,
    compile: bool | str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Training:
    """Returns a training that has not started; the arguments are those of :func:`fit`.

    Raises:
        ValueError: If an argument is out of range, or the data cannot be scored.
    """
    objective = ELBO() if objective is None else objective
    train, valid = as_rows("train", train), None if valid is None else as_rows("valid", valid)
    epochs, batch_size, clip_norm, patience = check_numbers(epochs, batch_size, clip_norm, patience)
    steps = epochs * len(draw_batches(len(train.x), batch_size, torch.Generator()))
    check_data(vae, train, valid, patience)
    schedules = check_objective_schedules(
        objective, {} if schedules is None else schedules, steps, vae
    )
    check_single_rows(vae, train, batch_size, objective)
    optimizer = DEFAULT_OPTIMIZER if optimizer is None else optimizer
    check_factories(optimizer, lr_schedule)
    compile = check_precision(precision, compile)
    return Training(
        vae=vae,
        objective=objective,
        make_optimizer=optimizer,
        make_schedule=lr_schedule,
        schedules=schedules,
        train=train,
        valid=valid,
        epochs=epochs,
        batch_size=batch_size,
        clip_norm=clip_norm,
        patience=patience,
        seed=check_seed(seed),
        engine=choose_engine(compile, vae, objective, min(batch_size, len(train.x)), steps),
        strict=compile == "strict",
        precision=precision,
    )
