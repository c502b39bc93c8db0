"""Several VAEs trained at once, as each would be trained alone."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled.graph import Backend, NotCapturedError, check_backend
from pyro_vae.compiled.tensors import save_tensors
from pyro_vae.data import Rows
from pyro_vae.guard import guard_process_state
from pyro_vae.objectives import ELBO, Schedule
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.training.argument_checks import (
    as_rows,
    check_data,
    check_factories,
    check_numbers,
    check_objective_schedules,
    choose_engine,
)
from pyro_vae.training.checkpointer import Checkpointer
from pyro_vae.training.ensemble_loop import State, train_together
from pyro_vae.training.loop import (
    MakeOptimizer,
    MakeSchedule,
    NotFiniteError,
    Training,
    draw_batches,
)
from pyro_vae.training.network_checks import check_single_rows
from pyro_vae.training.single import (
    DEFAULT_OPTIMIZER,
    FitResult,
    build_result,
    check_seed,
    run_training,
    warn_on_cleanup_error,
)
from pyro_vae.training.snapshot import copy_state
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
    backend: Backend = "inductor",
) -> list[FitResult]:
    r"""Trains VAEs that differ only in numbers, such as seeds, betas or learning rates, at once.

    Each VAE sees the same rows as in :func:`fit`, with the same order and noise, and ends with the
    same weights, up to rounding. The step of all is one compiled graph: that of the first VAE,
    mapped over stacked weights, optimizers and numbers by :func:`torch.func.vmap`. This saves time
    for small networks; with wide layers only the compilations are saved.

    The VAEs need equal recipes (made by classes and plain arguments, and not changed since), a
    processor as device, noise whose distribution does not depend on values (normal, uniform,
    dropout), an objective of this package that :func:`compile` captures, and Adam,
    AdamW or SGD. The first step is compared with an eager step of each VAE, and later ones at
    doubling distances. If anything is missing or differs, the VAEs are trained one after another
    from the start, with a warning that gives the reason.

    Pass one value for all VAEs or a sequence of one per VAE, in which ``None`` is the default.

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
        backend: As of :func:`pyro_vae.compile`.

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
    vaes = _check_vaes(vaes)
    count = len(vaes)
    objectives = _copy_shared(_for_each("objective", objective, count, ELBO()))
    makers = _for_each("optimizer", optimizer, count, DEFAULT_OPTIMIZER)
    lr_makers = _for_each("lr_schedule", lr_schedule, count)
    followed = _for_each("schedules", schedules, count, {})
    seeds = list(map(check_seed, _for_each("seed", seed, count)))
    steps = epochs * len(draw_batches(len(train.x), batch_size, torch.Generator()))
    each = list(zip(vaes, objectives, followed, makers, lr_makers, strict=True))
    for vae, one, own, make, lr_make in each:
        check_objective_schedules(one, own, steps)
        check_factories(make, lr_make)
        check_data(vae, train, valid, patience)
        check_single_rows(vae, train, batch_size, one)
    runs = [
        Training(vae, one, own, train, valid, batch_size, clip_norm, number)
        for vae, one, own, number in zip(vaes, objectives, followed, seeds, strict=True)
    ]
    return _train_all(
        runs, makers, lr_makers, epochs, patience, strict=strict, backend=check_backend(backend)
    )


def _train_all(
    runs: Sequence[Training],
    makers: Sequence[MakeOptimizer],
    lr_makers: Sequence[MakeSchedule | None],
    epochs: int,
    patience: int | None,
    *,
    strict: bool,
    backend: Backend,
) -> list[FitResult]:
    undo_start = _save(runs)
    try:
        states = list(map(_start, runs, makers, lr_makers))
    except BaseException:
        undo_start()
        raise
    undo_training = _save(runs)
    try:
        return _train_together(runs, states, epochs, patience, backend)
    except NotCapturedError as error:
        undo_training()
        if strict:
            undo_start()
            raise RuntimeError(f"Expected VAEs that can train together, but {error}") from error
        warnings.warn(f"The VAEs are trained one after another: {error}", stacklevel=4)
    results: list[FitResult] = []
    try:
        for run, state in zip(runs, states, strict=True):
            results.append(_train_alone(run, state, epochs, patience))
    except BaseException as error:
        rest = runs[len(results) :]
        vars(error)["fit_result"] = [*results, *map(build_result, rest)]
        for run in rest:
            run.vae.eval()
        raise
    return results


def _save(runs: Sequence[Training]) -> Callable[[], None]:
    """Returns a function that restores trainings, their VAEs and objectives."""
    modules = [module for run in runs for module in run.vae.modules()]
    objectives = [vars(run.objective) for run in runs]
    registries = [r for m in modules for r in (m._parameters, m._buffers, m._modules)]
    tables: list[dict[str, Any]] = [*map(vars, modules), *registries, *objectives]
    contents = [dict(table) for table in tables]
    tensors = [t for run in runs for t in (*run.vae.parameters(), *run.vae.buffers())]
    tensors += [t for table in objectives for t in table.values() if isinstance(t, Tensor)]
    restore_tensors = save_tensors(tensors)
    fields = [{**vars(run), "history": list(run.history)} for run in runs]

    def restore() -> None:
        for table, content in zip(tables, contents, strict=True):
            table.clear()
            table.update(content)
        restore_tensors()
        for run, values in zip(runs, fields, strict=True):
            vars(run).update(values)

    return restore


def _train_together(
    runs: Sequence[Training],
    states: Sequence[State],
    epochs: int,
    patience: int | None,
    backend: Backend,
) -> list[FitResult]:
    failures: dict[int, str] = {}

    def finish() -> list[FitResult]:
        for i, run in enumerate(runs):
            with fork_and_seed_rng(run.train.x.device, run.seed):
                run.finish(best=i not in failures)
        return [build_result(run, failures.get(i)) for i, run in enumerate(runs)]

    try:
        train_together(runs, states, epochs, patience, backend, failures)
        return finish()
    except NotCapturedError:
        raise
    except BaseException as error:
        vars(error)["fit_result"] = [build_result(r, failures.get(i)) for i, r in enumerate(runs)]
        for i, run in enumerate(runs):
            with warn_on_cleanup_error(run), fork_and_seed_rng(run.train.x.device, run.seed):
                run.finish(best=i not in failures)
        raise


def _train_alone(run: Training, state: State, epochs: int, patience: int | None) -> FitResult:
    steps = epochs * len(draw_batches(len(run.train.x), run.batch_size, torch.Generator()))
    rows = min(run.batch_size, len(run.train.x))
    run.engine = choose_engine("auto", run.vae, run.objective, rows, steps)
    with fork_and_seed_rng(run.train.x.device, run.seed):
        run.restore(state)
        try:
            return run_training(run, Checkpointer(None, 0.0), epochs, patience)
        except NotFiniteError as error:
            return build_result(run, str(error))


def _start(run: Training, make: MakeOptimizer, lr_schedule: MakeSchedule | None) -> State:
    """Starts a training, and returns the state from which its steps start."""

    def make_own(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        # Numbers that are tensors must not be those of another optimizer.
        for group in getattr(optimizer, "param_groups", ()):
            numbers = {name: value for name, value in group.items() if name != "params"}
            group.update(copy_state(numbers))
        return optimizer

    with fork_and_seed_rng(run.train.x.device, run.seed):
        run.start(make_own, lr_schedule)
        return run.capture()


def _check_vaes(vaes: Any) -> list[VAE]:
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
        raise ValueError(
            f"Expected one value of {name} for each of {count} VAEs, got {len(values)}"
        )
    return [default if one is None else one for one in values]


def _copy_shared(objectives: Sequence[Any]) -> list[Any]:
    """Returns objectives of which none is there twice, since each has a state of its own."""
    seen: set[int] = set()
    found = []
    for objective in objectives:
        found.append(copy.deepcopy(objective) if id(objective) in seen else objective)
        seen.add(id(objective))
    return found
