"""Several VAEs trained at once, as each would be trained alone."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.compiled.alike import tensors_of
from pyro_vae.compiled.graph import NotCapturedError
from pyro_vae.compiled.many import ManySteps
from pyro_vae.data import Rows
from pyro_vae.epochs import (
    Keeper,
    MakeOptimizer,
    MakeSchedule,
    Training,
    batches,
    in_tensors,
    own_randomness,
)
from pyro_vae.objectives import ELBO, Schedule
from pyro_vae.training import (
    FitResult,
    as_rows,
    check_data,
    check_makers,
    check_numbers,
    check_objective,
    check_seed,
    choose_engine,
    result_of,
    trained,
)
from pyro_vae.vae import VAE

__all__ = ["fit_many"]


def fit_many(
    vaes: Sequence[VAE],
    train: Tensor | Rows,
    *,
    valid: Tensor | Rows | None = None,
    objective: Any = None,
    optimizer: MakeOptimizer | Sequence[MakeOptimizer] | None = None,
    epochs: int = 100,
    batch_size: int = 100,
    lr_schedule: MakeSchedule | Sequence[MakeSchedule] | None = None,
    schedules: Mapping[str, Schedule] | Sequence[Mapping[str, Schedule]] | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int | Sequence[int] = 0,
    strict: bool = False,
) -> list[FitResult]:
    r"""Trains VAEs that differ in numbers only, such as seeds, betas or learning rates, at once.

    Each is trained on the same rows as :func:`fit` would train it, with the same order and noise
    and so, but for rounding, to the same weights. The step of all is one compiled graph: that of
    the first, mapped over the stacked weights, optimizers and numbers of all by
    :func:`torch.func.vmap`. One compilation serves all, and for small networks the step takes a
    part of the time that the steps of each would take; networks with wide layers gain only the
    compilations. This needs VAEs made by the same code, on a processor, whose noise does not
    depend on values (normal, uniform, or dropout's), an objective that :func:`compile` captures,
    and Adam, AdamW or SGD. The first step is compared with an eager step of each. Where something
    is missing they are trained one after another, with a warning that says why.

    The arguments that may differ are one for all, or a sequence of one for each, in which ``None``
    stands for the default.

    Arguments:
        vaes: The VAEs, one or more; left in evaluation mode.
        train: Rows, as of :func:`fit`.
        valid: Rows to choose the best epoch of each by.
        objective: One for all, of which each VAE but the first gets a copy, or one for each, whose
            state, such as the multiplier of :class:`~pyro_vae.objectives.GECO`, can be read after.
        optimizer: Makes a PyTorch optimizer from parameters; one for all or one for each.
        epochs: The number of passes over the data, at most.
        batch_size: The number of rows of a batch.
        lr_schedule: Makes a PyTorch scheduler from an optimizer; one for all or one for each.
        schedules: Schedules of the objective's scalars; one mapping for all or one for each.
        clip_norm: The norm to which the gradient of each VAE is clipped.
        patience: Stop with a VAE after this many epochs without a better ``valid_elbo``.
        seed: The seed of order and noise; one for all or one for each.
        strict: Whether to raise an error instead of training one after another.

    Returns:
        A result for each, in order. Trained at once, ``seconds`` is the time of all together, and
        ``engine`` is ``"compiled-many"``. A training whose objective is no longer finite does not
        stop the others: its weights are those before that epoch, and its ``failure`` says what
        :func:`fit` would have raised.

    Raises:
        ValueError: If an argument is out of range, there are not as many of one as there are VAEs,
            two VAEs share a parameter, or the data cannot be scored; before anything is changed.
        RuntimeError: If it is strict, and they cannot be trained at once; or if a setting that the
            graph holds, such as a weight decay, changes from one epoch to the next.

    Example:
        >>> from pyro_vae import data
        >>> digits = data.digits()
        >>> vaes = [VAE(digits.event_shape, latent_dim=2) for _ in range(3)]
        >>> betas = [ELBO(beta=beta) for beta in (0.5, 1.0, 4.0)]
        >>> results = fit_many(vaes, digits.train, objective=betas, epochs=2, seed=[0, 1, 2])
        >>> [result.steps for result in results]
        [26, 26, 26]
    """
    train, valid = as_rows("train", train), None if valid is None else as_rows("valid", valid)
    check_numbers(epochs, batch_size, clip_norm, patience)
    vaes = checked_vaes(vaes)
    count = len(vaes)
    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    objectives = copied(for_each("objective", objective, count, ELBO()))
    makers = for_each("optimizer", optimizer, count, adam)
    lr_makers = for_each("lr_schedule", lr_schedule, count)
    followed = for_each("schedules", schedules, count, {})
    seeds = list(map(check_seed, for_each("seed", seed, count)))
    steps = epochs * len(batches(len(train.x), batch_size, torch.Generator()))
    each = list(zip(vaes, objectives, followed, makers, lr_makers, strict=True))
    for vae, one, own, make, lr_make in each:
        check_objective(one, own, steps)
        check_makers(make, lr_make)
        check_data(vae, train, valid, patience)
    runs = [
        Training(vae, one, own, train, valid, batch_size, clip_norm, number)
        for vae, one, own, number in zip(vaes, objectives, followed, seeds, strict=True)
    ]
    generators = list(map(started, runs, makers, lr_makers))
    try:
        return together(runs, generators, epochs, patience)
    except NotCapturedError as error:
        if strict:
            raise RuntimeError(f"Expected VAEs to train at once, but {error}") from error
        warnings.warn(f"The VAEs are trained one after another: {error}", stacklevel=2)
    return [
        alone(run, generator, epochs, patience)
        for run, generator in zip(runs, generators, strict=True)
    ]


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
    owners = [owner for run in runs for owner in (run.objective, *run.vae.modules())]
    attributes = [(vars(owner), dict(vars(owner))) for owner in owners]
    tensors = [tensor for run in runs for tensor in tensors_of(run.objective)]
    copies = [tensor.detach().clone() for tensor in tensors]

    @torch.no_grad()
    def put_back() -> None:
        for own, known in attributes:
            own.clear()
            own.update(known)
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
                run.give_up(before, Keeper(None, 0.0))
            except FloatingPointError as error:
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


def alone(
    run: Training, generator: torch.Generator, epochs: int, patience: int | None
) -> FitResult:
    """Trains a VAE that has been started by itself."""
    steps = epochs * len(batches(len(run.train.x), run.batch_size, torch.Generator()))
    rows = min(run.batch_size, len(run.train.x))
    run.engine = choose_engine("auto", run.vae, run.objective, rows, steps)
    with own_randomness(run.train.x.device, run.seed):
        torch.set_rng_state(generator.get_state())
        try:
            return trained(run, Keeper(None, 0.0), epochs, patience)
        except FloatingPointError as error:
            run.vae.eval()
            return result_of(run, str(error))


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


def checked_vaes(vaes: Any) -> list[VAE]:
    """Returns VAEs, or raises a ``ValueError`` if there is none, or two share a parameter."""
    if not isinstance(vaes, Iterable) or isinstance(vaes, Mapping):
        raise ValueError(f"Expected vaes to be a sequence of VAEs, got {type(vaes).__name__}")
    found = list(vaes)
    if not found:
        raise ValueError("Expected vaes to be at least one VAE, got none")
    owner: dict[int, int] = {}
    for i, vae in enumerate(found):
        if not isinstance(vae, VAE):
            raise ValueError(f"Expected vaes to be VAEs, got {type(vae).__name__} at {i}")
        for parameter in vae.parameters():
            first = owner.setdefault(id(parameter), i)
            if first != i:
                raise ValueError(f"Expected vaes without a common parameter, got {first} and {i}")
    return found


def for_each(name: str, value: Any, count: int, default: Any = None) -> list[Any]:
    """Returns one value for each VAE, or raises a ``ValueError`` if their number is another.

    Arguments:
        name: What it is called.
        value: A sequence, array or iterator of values, or one value for all.
        count: The number of VAEs.
        default: What stands for ``None``.
    """
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, (Sequence, Iterator)):
        value = [value] * count
    values = list(value)
    if len(values) != count:
        raise ValueError(f"Expected {name} to be one for each of {count} VAEs, got {len(values)}")
    return [default if one is None else one for one in values]


def copied(objectives: Sequence[Any]) -> list[Any]:
    """Returns objectives of which none is there twice, since each has a state of its own."""
    seen: set[int] = set()
    found = []
    for objective in objectives:
        found.append(copy.deepcopy(objective) if id(objective) in seen else objective)
        seen.add(id(objective))
    return found
