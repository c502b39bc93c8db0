"""Trainings of several VAEs that make each step together."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled.ensemble.alike import look_at, tensors_of
from pyro_vae.compiled.ensemble.steps import ManySteps
from pyro_vae.compiled.graph import NotCapturedError
from pyro_vae.compiled.inspection import kept
from pyro_vae.progress import Progress
from pyro_vae.seeding import own_randomness
from pyro_vae.training.loop import (
    MakeOptimizer,
    MakeSchedule,
    NotFiniteError,
    Training,
    batches,
    in_tensors,
)
from pyro_vae.training.single import FitResult, result_of, settling
from pyro_vae.training.snapshot import copied

__all__ = ["State", "started", "together"]


State = dict[str, Any]
"""All that a step of one VAE changes."""


def started(run: Training, make: MakeOptimizer, lr_schedule: MakeSchedule | None) -> State:
    """Starts a training, and returns the state from which its steps start."""
    with own_randomness(run.train.x.device, run.seed):
        run.start(partial(_with_own_numbers, make), lr_schedule)
        return run.capture()


def _with_own_numbers(
    make: MakeOptimizer, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Makes an optimizer whose numbers, where they are tensors, are no other optimizer's."""
    optimizer = make(parameters)
    for group in getattr(optimizer, "param_groups", ()):
        numbers = {name: value for name, value in group.items() if name != "params"}
        group.update(copied(numbers))
    return optimizer


def together(
    runs: Sequence[Training], states: Sequence[State], epochs: int, patience: int | None
) -> list[FitResult]:
    """Trains VAEs by one graph.

    Arguments:
        runs: The trainings, started.
        states: The states from which their steps start.
        epochs: The epochs at most.
        patience: The epochs without a better one that end a training.

    Raises:
        NotCapturedError: If there is none, or no longer; all is then as before.
    """
    put_back = _saved(runs, states)
    try:
        return _trained_together(runs, states, epochs, patience)
    except NotCapturedError:
        put_back()
        raise


def _saved(runs: Sequence[Training], states: Sequence[State]) -> Callable[[], None]:
    """Returns a function that puts all that training changes back to what it is now."""
    things = [thing for run in runs for thing in look_at(run.vae, run.objective).things]
    # State dicts lack buffers that are not persistent.
    things += [t for run in runs for t in (*run.vae.buffers(), *tensors_of(run.objective))]
    put_back_things = kept(things)
    fields = [{**vars(run), "history": list(run.history)} for run in runs]

    def put_back() -> None:
        put_back_things()
        for run, state, known in zip(runs, states, fields, strict=True):
            vars(run).update(known)
            with own_randomness(run.train.x.device, run.seed):
                run.put_back(state)

    return put_back


def _trained_together(
    runs: Sequence[Training], states: Sequence[State], epochs: int, patience: int | None
) -> list[FitResult]:
    """Trains VAEs by one graph, from the first step to the last.

    Raises:
        NotCapturedError: If there is none, or no longer.
    """
    began = time.perf_counter()
    names = _numbers_that_differ(runs)
    generators = [torch.Generator().set_state(state["noise"]) for state in states]
    failures: dict[int, str] = {}
    try:
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(in_tensors(run, names))
                run.vae.train()
            crowd = _Crowd(runs, generators, failures)
            stack.callback(crowd.end)
            crowd.train(epochs, patience)
        for i, run in enumerate(runs):
            run.seconds, run.engine = time.perf_counter() - began, "compiled-many"
            _finish(run, best=i not in failures)
    except NotCapturedError:
        raise
    except BaseException as error:
        vars(error)["fit_result"] = _results_of(runs, failures)
        for i, run in enumerate(runs):
            with settling(run):
                _finish(run, best=i not in failures)
        raise
    return _results_of(runs, failures)


def _finish(run: Training, *, best: bool) -> None:
    """Leaves a VAE with the best weights, or the last, calibrated, in evaluation mode."""
    with own_randomness(run.train.x.device, run.seed):
        run.finish(best=best)


def _results_of(runs: Sequence[Training], failures: Mapping[int, str]) -> list[FitResult]:
    """Returns the result of each training."""
    return [result_of(run, failures.get(i)) for i, run in enumerate(runs)]


class _Crowd:
    """Trainings that make each step together.

    Arguments:
        runs: The trainings, started.
        generators: Where the noise of each comes from.
        failures: Takes, by place, why a training ended before its time.

    Attributes:
        going: The places of those that are not at their end.

    Raises:
        NotCapturedError: If the optimizers' updates, or what differs, cannot be part of a graph.
    """

    def __init__(
        self,
        runs: Sequence[Training],
        generators: Sequence[torch.Generator],
        failures: dict[int, str],
    ) -> None:
        self.runs = runs
        self.generators = generators
        self.steps = ManySteps(
            [run.vae for run in runs],
            [run.objective for run in runs],
            [run.optimizer for run in runs],
            generators,
            clip_norm=runs[0].clip_norm,
        )
        self.failures = failures
        self.orders: dict[int, Tensor] = {}

    @property
    def going(self) -> list[int]:
        """Returns the places of those that are not at their end."""
        return list(self.steps.going)

    def train(self, epochs: int, patience: int | None) -> None:
        """Passes over the data until all are at their end.

        Raises:
            NotCapturedError: If a step is not, or no longer, what the eager one is.
        """
        self.steps.stack()
        with Progress("training", epochs, "epochs", at_once=True) as shown:
            for epoch in range(epochs):
                # At step 1 and at doubling distances: state outside of a graph may change.
                self.one_epoch(compare=epoch & (epoch - 1) == 0 or epoch == epochs - 1)
                shown.reach(epoch + 1)
                for i in self.going:
                    if self.runs[i].waited(patience):
                        self.leave(i)
                if not self.going:
                    break

    def one_epoch(self, *, compare: bool) -> None:
        """Passes over the data once with each VAE.

        Arguments:
            compare: Whether to compare the first step with eager ones.
        """
        self.steps.check_settled()
        going = self.going
        before = {i: self.captured(i) for i in going}
        for i in going:
            self.runs[i].vae.train()
        parts = [batches(len(r.train.x), r.batch_size, r.order) for r in self.runs]
        totals = torch.zeros(len(self.runs), dtype=torch.float64)
        for number, rows in enumerate(zip(*parts, strict=True)):
            totals -= self.step(rows, compare=compare and number == 0)
        for i, total in zip(going, totals[going].tolist(), strict=True):
            if self.runs[i].end_of_epoch(total) is None:
                self.give_up(i, before[i])

    def step(self, rows: Sequence[Tensor], *, compare: bool) -> Tensor:
        """Makes a step of each VAE on rows of its own, and returns the losses."""
        for run in self.runs:
            run.set_scheduled()
        batch = [run.presented(index) for run, index in zip(self.runs, rows, strict=True)]
        inputs = [torch.stack([x for x, _ in batch])]
        masks = [mask for _, mask in batch if mask is not None]
        inputs += [torch.stack(masks)] if masks else []
        losses = self.steps(*inputs, compare=compare)
        for i in self.steps.going:
            self.runs[i].steps += 1
        return losses

    def captured(self, i: int) -> State:
        """Returns a copy of all that a step of one VAE changes."""
        return {**self.runs[i].capture(), "noise": self.generators[i].get_state()}

    def give_up(self, i: int, before: dict[str, Any]) -> None:
        """Lets one training end that is no longer finite, and finds out why."""
        self.leave(i)
        run = self.runs[i]
        with own_randomness(run.train.x.device, run.seed):
            try:
                run.give_up(before)
            except NotFiniteError as error:
                self.failures[i] = str(error)

    def leave(self, i: int) -> None:
        """Lets one training end; the steps to come no longer change its VAE."""
        self.steps.release(i)
        self.orders[i] = self.runs[i].order.get_state()

    def end(self) -> None:
        """Lets all end."""
        for i in self.going:
            self.leave(i)
        # The steps of others drew on, but a VAE is calibrated on the rows that follow its own.
        for i, state in self.orders.items():
            self.runs[i].order.set_state(state)


def _numbers_that_differ(runs: Sequence[Training]) -> list[str]:
    """Returns the names of the objectives' numbers that a graph has to read anew for each."""
    objectives = [vars(run.objective) for run in runs]
    names = {name for run in runs for name in run.schedules}
    names |= {n for n in objectives[0] if _differ([own.get(n) for own in objectives])}
    # Where one has no such number, the objectives differ in more than numbers.
    return sorted(name for name in names if all(hasattr(run.objective, name) for run in runs))


def _differ(values: Sequence[Any]) -> bool:
    """Tells whether values are numbers that can be read anew, and not all the same."""
    numbers = [v.item() if isinstance(v, Tensor) and not v.dim() else v for v in values]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        return False
    # Whole numbers alone may be sizes, such as the number of particles.
    return any(isinstance(n, float) for n in numbers) and len(set(numbers)) > 1
