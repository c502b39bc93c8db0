"""Trainings of several VAEs that make each step together."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled.ensemble import EnsembleStep
from pyro_vae.compiled.graph import Backend, NotCapturedError
from pyro_vae.compiled.optimizer_step import Update
from pyro_vae.progress import Progress
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.training.loop import (
    NotFiniteError,
    Training,
    draw_batches,
    store_scalars_as_tensors,
)
from pyro_vae.vae.recipe import find_differences

__all__ = ["State", "train_together"]

State = dict[str, Any]
"""Everything that a step of one VAE changes."""

_GROUP_SETTINGS = (
    "weight_decay", "eps", "nesterov", "decoupled_weight_decay", "amsgrad", "maximize",
    "differentiable", "dampening",
)  # fmt: skip
"""The settings of an optimizer that a graph holds; it reads the others at each step."""


def train_together(
    runs: Sequence[Training],
    states: Sequence[State],
    epochs: int,
    patience: int | None,
    backend: Backend,
    failures: dict[int, str],
) -> None:
    """Trains VAEs by one graph, up to the weights of their last epochs.

    Arguments:
        runs: The trainings, started.
        states: The states from which their steps start.
        epochs: The maximum number of epochs.
        patience: The number of epochs without improvement that ends a training.
        backend: As of :func:`pyro_vae.compile`.
        failures: Receives, by index, why a training ended early.

    Raises:
        NotCapturedError: If the VAEs cannot be trained by one graph.
    """
    began = time.perf_counter()
    names = _find_numbers(runs)
    generators = [torch.Generator().set_state(state["noise"]) for state in states]
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(store_scalars_as_tensors(run, names))
            run.vae.train()
        _check_similar(runs)
        members = [(run.vae, run.objective, run.optimizer) for run in runs]
        step = EnsembleStep(members, generators, runs[0].clip_norm, backend)
        loop = _EnsembleLoop(runs, step, failures)
        stack.callback(loop.end)
        with Progress("training", epochs, "epochs", at_once=True) as progress:
            for epoch in range(epochs):
                # Eager steps at doubling distances find what changes outside of the graph.
                loop.one_epoch(compare=epoch & (epoch - 1) == 0 or epoch == epochs - 1)
                progress.reach(epoch + 1)
                if not loop.stop_early(patience):
                    break
    for run in runs:
        run.seconds, run.engine = time.perf_counter() - began, "compiled-many"


def _find_numbers(runs: Sequence[Training]) -> list[str]:
    """Returns the names of the objectives' numbers that a graph has to read at each step."""
    names = {name for run in runs for name in run.schedules}
    for name in vars(runs[0].objective):
        values: list[Any] = [getattr(run.objective, name, None) for run in runs]
        numbers = [float(v) for v in values if isinstance(v, (int, float)) or _is_scalar(v)]
        # Integers alone may be sizes, such as the number of particles.
        if len(numbers) == len(runs) and not all(isinstance(v, int) for v in values):
            is_free = all(map(math.isfinite, numbers)) and len(set(numbers)) > 1
            names |= {name} if is_free else set()
    return sorted(name for name in names if all(hasattr(run.objective, name) for run in runs))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.dim()


def _check_similar(runs: Sequence[Training]) -> None:
    """Raises a ``NotCapturedError`` unless trainings differ only in numbers.

    Recipes and public settings are compared. A VAE that its recipe does not describe, or an
    objective of another package, may differ in ways that no comparison finds.
    """
    first = _read_settings(runs[0])
    for i, run in enumerate(runs):
        roles = [role for role, part in run.vae.recipe["parts"].items() if part is None]
        if roles:
            raise NotCapturedError(f"the recipe of VAE {i} does not describe its {roles[0]}")
        for path, text in find_differences(run.vae).items():
            raise NotCapturedError(f"VAE {i} differs from its recipe, {path}: {text}")
        if any(isinstance(v, Tensor) for m in run.vae.modules() for v in vars(m).values()):
            raise NotCapturedError(f"a module of VAE {i} holds a tensor outside of its buffers")
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in run.vae.parameters()):
            raise NotCapturedError(f"VAE {i} has a hook on a parameter")
        kind, optimizer = type(run.objective), run.optimizer
        if not kind.__module__.startswith("pyro_vae.objectives."):
            raise NotCapturedError(f"{kind.__name__} is not an objective of pyro_vae")
        if not Update(optimizer, None).is_capturable:
            name = type(optimizer).__name__
            raise NotCapturedError(f"the update of {name} cannot be part of a graph here")
        parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if parameters != [id(p) for p in run.vae.parameters() if p.requires_grad]:
            raise NotCapturedError(f"the parameters of optimizer {i} are not those of VAE {i}")
        for name, value in _read_settings(run).items():
            if value != first.get(name):
                raise NotCapturedError(
                    f"VAE {i} differs from the first in {name}: {value} and {first.get(name)}"
                )


def _read_settings(run: Training) -> dict[str, str]:
    """Returns what a graph holds of a recipe, an objective and an optimizer, by name."""
    recipe, parts = dict(run.vae.recipe), run.vae.recipe["parts"]
    settings = {name: repr(value) for name, value in {**recipe, **parts}.items() if name != "parts"}
    settings["objective"] = type(run.objective).__name__
    settings["optimizer"] = type(run.optimizer).__name__
    for name, value in vars(run.objective).items():
        if not name.startswith("_") and name != "max_plate_nesting":
            form = (value.shape, value.dtype) if isinstance(value, Tensor) else value
            settings[f"{name} of the objective"] = repr(form)
    for i, group in enumerate(run.optimizer.param_groups):
        settings[f"size of group {i}"] = repr(len(group["params"]))
        settings[f"use of momentum in group {i}"] = repr(bool(group.get("momentum")))
        settings |= {f"{name} of group {i}": repr(group.get(name)) for name in _GROUP_SETTINGS}
    return settings


class _EnsembleLoop:
    """The epochs of trainings that make each step together."""

    def __init__(
        self, runs: Sequence[Training], step: EnsembleStep, failures: dict[int, str]
    ) -> None:
        self.runs, self.step, self.failures = runs, step, failures
        self.orders: dict[int, Tensor] = {}

    def one_epoch(self, *, compare: bool) -> None:
        """Passes over the data once; ``compare`` verifies the first step against eager ones."""
        active = list(self.step.active)
        before = {
            i: {**self.runs[i].capture(), "noise": self.step.generators[i].get_state()}
            for i in active
        }
        for i in active:
            self.runs[i].vae.train()
        parts = [draw_batches(len(r.train.x), r.batch_size, r.order) for r in self.runs]
        totals = torch.zeros(len(self.runs), dtype=torch.float64)
        for number, rows in enumerate(zip(*parts, strict=True)):
            totals -= self.make_step(rows, first=number == 0, compare=compare)
        for i, total in zip(active, totals[active].tolist(), strict=True):
            if self.runs[i].record_epoch(total) is None:
                self.give_up(i, before[i])

    def make_step(self, rows: Sequence[Tensor], *, first: bool, compare: bool) -> Tensor:
        """Makes a step of each VAE on its rows, and returns the losses."""
        for run in self.runs:
            run.apply_schedules()
        batch = [run.get_batch(index) for run, index in zip(self.runs, rows, strict=True)]
        inputs = [torch.stack([x for x, _ in batch])]
        masks = [mask for _, mask in batch if mask is not None]
        inputs += [torch.stack(masks)] if masks else []
        if not self.step.stacks:
            self.step.stack(inputs)
        if first:
            self.step.check_unchanged()
        losses = self.step(*inputs, compare=compare and first)
        for i in self.step.active:
            self.runs[i].steps += 1
        return losses

    def give_up(self, i: int, before: State) -> None:
        """Ends a training that is no longer finite, and finds the cause."""
        self.leave(i)
        run = self.runs[i]
        with fork_and_seed_rng(run.train.x.device, run.seed):
            try:
                run.give_up(before)
            except NotFiniteError as error:
                self.failures[i] = str(error)

    def stop_early(self, patience: int | None) -> bool:
        """Ends the trainings whose patience is exhausted, and returns whether others go on."""
        for i in list(self.step.active):
            if self.runs[i].should_stop(patience):
                self.leave(i)
        return bool(self.step.active)

    def leave(self, i: int) -> None:
        """Ends one training; later steps do not change its VAE."""
        self.step.release(i)
        self.orders[i] = self.runs[i].order.get_state()

    def end(self) -> None:
        """Ends all trainings."""
        for i in list(self.step.active):
            self.leave(i)
        # Steps of others drew on; a VAE is calibrated on the rows that follow its last epoch.
        for i, state in self.orders.items():
            self.runs[i].order.set_state(state)
