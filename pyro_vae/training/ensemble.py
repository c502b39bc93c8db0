"""Several VAEs trained at once, as each would be trained alone."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled.graph import NotCapturedError
from pyro_vae.compiled.inspection import kept
from pyro_vae.data import Rows
from pyro_vae.guard import guard_process_state
from pyro_vae.objectives import ELBO, Schedule
from pyro_vae.seeding import own_randomness
from pyro_vae.training.arguments import (
    as_rows,
    check_data,
    check_makers,
    check_numbers,
    check_objective,
    choose_engine,
)
from pyro_vae.training.checkpointer import Keeper
from pyro_vae.training.ensemble_loop import State, started, together
from pyro_vae.training.loop import MakeOptimizer, MakeSchedule, NotFiniteError, Training, batches
from pyro_vae.training.network_checks import check_single_rows
from pyro_vae.training.single import FitResult, check_seed, result_of, trained
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_flag

__all__ = ["fit_many"]


@guard_process_state
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
    and Adam, AdamW or SGD. The first step is compared with an eager step of each, and so are later
    ones at doubling distances. Where something is missing or differs they are trained one after
    another, from the start, with a warning that says why.

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
        :func:`fit` would have raised. Any other exception leaves the VAEs as :func:`fit` does, and
        has the list of results up to there as its attribute ``fit_result``.

    Raises:
        ValueError: If an argument is out of range, there are not as many of one as there are VAEs,
            two VAEs share a parameter, or the data cannot be scored; before anything is changed.
        RuntimeError: If it is strict, and they cannot be trained at once.

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
    epochs, batch_size, clip_norm, patience, _ = check_numbers(
        epochs, batch_size, clip_norm, patience
    )
    strict = check_flag("strict", strict)
    vaes = _checked_vaes(vaes)
    count = len(vaes)
    adam = partial(torch.optim.Adam, lr=1e-3, fused=True)
    objectives = _copied(_for_each("objective", objective, count, ELBO()))
    makers = _for_each("optimizer", optimizer, count, adam)
    lr_makers = _for_each("lr_schedule", lr_schedule, count)
    followed = _for_each("schedules", schedules, count, {})
    seeds = list(map(check_seed, _for_each("seed", seed, count)))
    steps = epochs * len(batches(len(train.x), batch_size, torch.Generator()))
    each = list(zip(vaes, objectives, followed, makers, lr_makers, strict=True))
    for vae, one, own, make, lr_make in each:
        check_objective(one, own, steps)
        check_makers(make, lr_make)
        check_data(vae, train, valid, patience)
        check_single_rows(vae, train, batch_size, one)
    runs = [
        Training(vae, one, own, train, valid, batch_size, clip_norm, number)
        for vae, one, own, number in zip(vaes, objectives, followed, seeds, strict=True)
    ]
    return _trained_all(runs, makers, lr_makers, epochs, patience, strict=strict)


def _trained_all(
    runs: Sequence[Training],
    makers: Sequence[MakeOptimizer],
    lr_makers: Sequence[MakeSchedule | None],
    epochs: int,
    patience: int | None,
    *,
    strict: bool,
) -> list[FitResult]:
    """Starts trainings and goes on with them to their end: together, or else one after another."""
    put_back = kept(t for run in runs for t in (*run.vae.parameters(), *run.vae.buffers()))
    try:
        states = list(map(started, runs, makers, lr_makers))
    except BaseException:
        put_back()
        raise
    try:
        return together(runs, states, epochs, patience)
    except NotCapturedError as error:
        if strict:
            put_back()
            raise RuntimeError(f"Expected VAEs to train at once, but {error}") from error
        warnings.warn(f"The VAEs are trained one after another: {error}", stacklevel=4)
    return _one_after_another(runs, states, epochs, patience)


def _one_after_another(
    runs: Sequence[Training], states: Sequence[State], epochs: int, patience: int | None
) -> list[FitResult]:
    """Trains VAEs by themselves, in order, each from the state in which it was started."""
    results: list[FitResult] = []
    try:
        for run, state in zip(runs, states, strict=True):
            results.append(_alone(run, state, epochs, patience))
    except BaseException as error:
        rest = runs[len(results) :]
        vars(error)["fit_result"] = [*results, *map(result_of, rest)]
        for run in rest:
            run.vae.eval()
        raise
    return results


def _alone(run: Training, state: State, epochs: int, patience: int | None) -> FitResult:
    """Trains a VAE by itself, from the state in which it was started."""
    steps = epochs * len(batches(len(run.train.x), run.batch_size, torch.Generator()))
    rows = min(run.batch_size, len(run.train.x))
    run.engine = choose_engine("auto", run.vae, run.objective, rows, steps)
    with own_randomness(run.train.x.device, run.seed):
        run.put_back(state)
        try:
            return trained(run, Keeper(None, 0.0), epochs, patience)
        except NotFiniteError as error:
            return result_of(run, str(error))


def _checked_vaes(vaes: Any) -> list[VAE]:
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


def _for_each(name: str, value: Any, count: int, default: Any = None) -> list[Any]:
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


def _copied(objectives: Sequence[Any]) -> list[Any]:
    """Returns objectives of which none is there twice, since each has a state of its own."""
    seen: set[int] = set()
    found = []
    for objective in objectives:
        found.append(copy.deepcopy(objective) if id(objective) in seen else objective)
        seen.add(id(objective))
    return found
