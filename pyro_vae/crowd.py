"""Trainings of several VAEs that make each step together."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.compiled.alike import tensors_of
from pyro_vae.compiled.graph import NotCapturedError
from pyro_vae.compiled.many import ManySteps
from pyro_vae.epochs import (
    MakeOptimizer,
    MakeSchedule,
    NotFiniteError,
    Training,
    batches,
    in_tensors,
    own_randomness,
)
from pyro_vae.training import FitResult, result_of

__all__ = ["started", "together"]


def started(
    run: Training, make: MakeOptimizer, lr_schedule: MakeSchedule | None
) -> torch.Generator:
    """Starts a training and returns where its noise comes from."""
    device = run.train.x.device
    with own_randomness(device, run.seed):
        run.start(make, lr_schedule)
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
        return generator


def together(
    runs: Sequence[Training],
    generators: Sequence[torch.Generator],
    epochs: int,
    patience: int | None,
) -> list[FitResult]:
    """Trains VAEs by one graph.

    Raises:
        NotCapturedError: If there is none; all is then as before.
    """
    put_back = saved(runs, generators)
    try:
        return trained_together(runs, generators, epochs, patience)
    except NotCapturedError:
        put_back()
        raise


def saved(runs: Sequence[Training], generators: Sequence[torch.Generator]) -> Callable[[], None]:
    """Returns a function that puts all that training changes back to what it is now."""
    states = [(run, captured(run, own)) for run, own in zip(runs, generators, strict=True)]
    modules = [module for run in runs for module in run.vae.modules()]
    attributes = [vars(owner) for owner in (*modules, *(run.objective for run in runs))]
    attributes += [held for m in modules for held in (m._parameters, m._buffers)]
    known = [dict(own) for own in attributes]
    # State dicts lack buffers that are not persistent.
    tensors = [t for run in runs for t in (*run.vae.buffers(), *tensors_of(run.objective))]
    copies = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def put_back() -> None:
        for own, before in zip(attributes, known, strict=True):
            own.clear()
            own.update(before)
        for tensor, copy_of in zip(tensors, copies, strict=True):
            tensor.copy_(copy_of)
        for (run, state), generator in zip(states, generators, strict=True):
            with own_randomness(run.train.x.device, run.seed):
                run.put_back(state)
            generator.set_state(state["noise"])

    return put_back


def captured(run: Training, generator: torch.Generator) -> dict[str, Any]:
    """Returns a copy of all that a step of one VAE changes."""
    return {**run.capture(), "noise": generator.get_state()}


def trained_together(
    runs: Sequence[Training],
    generators: Sequence[torch.Generator],
    epochs: int,
    patience: int | None,
) -> list[FitResult]:
    """Trains VAEs by one graph, from step to step.

    Raises:
        NotCapturedError: If there is none; within the first epoch.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        names = numbers_that_differ(runs)
        for run in runs:
            stack.enter_context(in_tensors(run, names))
            run.vae.train()
        crowd = Crowd(runs, generators)
        stack.callback(crowd.end)
        for _ in tqdm(range(epochs), disable=None, leave=False):
            crowd.one_epoch()
            for i in list(crowd.going):
                if runs[i].waited(patience):
                    crowd.leave(i)
            if not crowd.going:
                break
        crowd.end()
        for i, run in enumerate(runs):
            run.seconds, run.engine = time.perf_counter() - began, "compiled-many"
            if i in crowd.failures:
                run.vae.eval()
            else:
                with own_randomness(run.train.x.device, run.seed):
                    run.finish()
    return [result_of(run, crowd.failures.get(i)) for i, run in enumerate(runs)]


class Crowd:
    """Trainings that make each step together.

    Arguments:
        runs: The trainings, started.
        generators: Where the noise of each comes from.

    Attributes:
        going: The places of those that are not at their end.
        failures: Why others ended before their time.

    Raises:
        NotCapturedError: If the optimizers' updates, or what differs, cannot be part of a graph.
    """

    def __init__(self, runs: Sequence[Training], generators: Sequence[torch.Generator]) -> None:
        self.runs = runs
        self.generators = generators
        self.steps = ManySteps(
            [run.vae for run in runs],
            [run.objective for run in runs],
            [run.optimizer for run in runs],
            generators,
            clip_norm=runs[0].clip_norm,
        )
        self.going = list(range(len(runs)))
        self.failures: dict[int, str] = {}
        self.orders: dict[int, Tensor] = {}

    def one_epoch(self) -> None:
        """Passes over the data once with each VAE.

        Raises:
            NotCapturedError: In the first epoch.
        """
        before = {i: captured(self.runs[i], self.generators[i]) for i in self.going}
        for i in self.going:
            self.runs[i].vae.train()
            if name := self.steps.changed(i):
                raise RuntimeError(
                    f"Expected settings of VAE {i}, its objective and its optimizer that stay as "
                    f"they are, but learning rates, betas, momentum and scalars, got another "
                    f"{name}; train it by fit"
                )
        parts = [batches(len(r.train.x), r.batch_size, r.order) for r in self.runs]
        totals = torch.zeros(len(self.runs), dtype=torch.float64)
        for rows in zip(*parts, strict=True):
            totals -= self.step(rows)
        for i, total in zip(list(self.going), totals[self.going].tolist(), strict=True):
            if self.runs[i].end_of_epoch(total) is None:
                self.give_up(i, before[i])

    def step(self, rows: Sequence[Tensor]) -> Tensor:
        """Makes a step of each VAE on rows of its own, and returns the losses."""
        for run in self.runs:
            run.set_scheduled()
        batch = [run.presented(index) for run, index in zip(self.runs, rows, strict=True)]
        inputs = [torch.stack([x for x, _ in batch])]
        masks = [mask for _, mask in batch if mask is not None]
        losses = self.steps(*inputs, torch.stack(masks)) if masks else self.steps(*inputs)
        for i in self.going:
            self.runs[i].steps += 1
        return losses

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
        self.going.remove(i)
        self.steps.release(i)
        self.orders[i] = self.runs[i].order.get_state()

    def end(self) -> None:
        """Lets all end."""
        for i in list(self.going):
            self.leave(i)
        # The steps of others drew on, but a VAE is calibrated on the rows that follow its own.
        for i, state in self.orders.items():
            self.runs[i].order.set_state(state)


def numbers_that_differ(runs: Sequence[Training]) -> list[str]:
    """Returns the names of the objectives' numbers that a graph has to read anew for each."""
    names = {name for run in runs for name in run.schedules}
    first, *others = (vars(run.objective) for run in runs)
    names |= {
        name
        for name, value in first.items()
        if isinstance(value, float)
        and any(other.get(name) != value for other in others)
        and all(math.isfinite(other.get(name, value)) for other in (first, *others))
    }
    # Where one has no such number, the objectives differ in more than numbers.
    return sorted(name for name in names if all(hasattr(run.objective, name) for run in runs))
