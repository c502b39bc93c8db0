"""Several VAEs trained at once, as each would be trained alone."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled.ensemble import EnsembleStep, find_tensors
from pyro_vae.compiled.graph import Backend, NotCapturedError, check_backend
from pyro_vae.compiled.optimizer_step import is_capturable
from pyro_vae.compiled.tensors import save_tensors
from pyro_vae.data import Rows
from pyro_vae.guard import guard_process_state
from pyro_vae.objectives import Schedule
from pyro_vae.progress import Progress, check_progress
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.training.argument_checks import check_vaes, spread_arguments
from pyro_vae.training.batches import draw_batches, stack_batches
from pyro_vae.training.loop import (
    MakeOptimizer,
    MakeSchedule,
    NotFiniteError,
    Training,
)
from pyro_vae.training.scalars import store_scalars_as_tensors
from pyro_vae.training.setup import build_training
from pyro_vae.training.single import FitResult, build_result, fit, warn_on_cleanup_error
from pyro_vae.vae.recipe import find_differences
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_flag

__all__ = ["fit_many"]

_FIXED_SETTINGS = ("weight_decay", "eps", "nesterov", "decoupled_weight_decay")
"""The settings of an optimizer that a graph fixes; it reads the others at each step."""


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
    progress: bool | None = None,
) -> list[FitResult]:
    r"""Trains VAEs that differ only in numbers, such as seeds, betas or learning rates, at once.

    Each VAE sees the same rows as in :func:`fit`, with the same order and noise, and ends with the
    same weights, up to rounding. The step of all is one compiled graph: that of the first VAE,
    mapped over stacked weights, optimizers and numbers by :func:`torch.func.vmap`.

    The VAEs need equal recipes (made by classes and plain arguments, and not changed since), a
    processor as device, noise whose distribution does not depend on values (normal, uniform,
    dropout), an objective of this package that :func:`compile` captures, Adam, AdamW or SGD, and
    schedulers of PyTorch. A step of each is compared with an eager one before training starts. If
    anything is missing or differs, :func:`fit` trains them one by one; a warning gives the reason.

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
        progress: As of :func:`fit`.

    Returns:
        A result for each, in order; trained at once, ``engine`` is ``"compiled-many"`` and
        ``seconds`` the time of all. A training that is no longer finite does not stop the others:
        its weights are those before that epoch, and ``failure`` says what :func:`fit` would have
        raised. Any other exception during training leaves the VAEs as :func:`fit` does; its
        attribute ``fit_result`` is the list of results so far.

    Raises:
        ValueError: If an argument is out of range, there are not as many of one as there are VAEs,
            two VAEs share a parameter, or the data cannot be scored; before anything is changed.
        RuntimeError: If it is strict, and they cannot be trained at once.

    Example:
        >>> from pyro_vae import data
        >>> from pyro_vae.objectives import ELBO
        >>> digits = data.digits()
        >>> vaes = [VAE(digits.event_shape, latent_dim=2) for _ in range(3)]
        >>> betas = [ELBO(beta=beta) for beta in (0.5, 1.0, 4.0)]
        >>> results = fit_many(vaes, digits.train, objective=betas, epochs=2, seed=[0, 1, 2])
        >>> [result.steps for result in results]
        [26, 26, 26]
    """
    check_progress(progress)
    strict, backend, vaes = check_flag("strict", strict), check_backend(backend), check_vaes(vaes)
    arguments = spread_arguments(
        len(vaes), objective=objective, optimizer=optimizer, lr_schedule=lr_schedule,
        schedules=schedules, seed=seed,
    )  # fmt: skip
    for own in arguments:
        own |= {"train": train, "valid": valid, "epochs": epochs, "batch_size": batch_size}
        own |= {"clip_norm": clip_norm, "patience": patience}
    runs = [build_training(vae, **own) for vae, own in zip(vaes, arguments, strict=True)]
    modes = [(module, module.training) for vae in vaes for module in vae.modules()]
    settings = [(vars(run.objective), dict(vars(run.objective))) for run in runs]
    undo = save_tensors(t for run in runs for t in find_tensors(run.vae, run.objective))
    ensemble, reason = None, ""
    try:
        ensemble = _Ensemble(runs, backend, progress)
    except BaseException as error:
        undo()
        for module, mode in modes:
            module.training = mode
        for attributes, values in settings:
            attributes.update(values)
        if not isinstance(error, NotCapturedError):
            vars(error)["fit_result"] = []
            raise
        reason = str(error)
        if strict:
            raise RuntimeError(f"Expected VAEs that can train together, but {reason}") from error
    if ensemble is not None:
        return ensemble.train()
    warnings.warn(f"The VAEs are trained one after another: {reason}", stacklevel=3)
    results: list[FitResult] = []
    for vae, own in zip(vaes, arguments, strict=True):
        _fit_next(results, vae, own | {"progress": progress})
    return results


def _fit_next(results: list[FitResult], vae: VAE, arguments: Mapping[str, Any]) -> None:
    try:
        results.append(fit(vae, **arguments))
    except NotFiniteError as error:
        results.append(vars(error)["fit_result"]._replace(failure=str(error)))
    except BaseException as error:
        vars(error)["fit_result"] = [*results, *filter(None, [vars(error).get("fit_result")])]
        raise


class _Ensemble:
    """Trainings that make each step together; raises a ``NotCapturedError`` if they cannot."""

    def __init__(
        self, runs: Sequence[Training], backend: Backend, progress: bool | None = None
    ) -> None:
        self.runs, self.failures, self.progress = runs, dict[int, str](), progress
        self.unfinished = dict(enumerate(runs))
        self.began = time.perf_counter()
        generators = []
        for run in runs:
            with fork_and_seed_rng(run.train.x.device, run.seed):
                run.start()
                generators.append(torch.Generator().set_state(torch.get_rng_state()))
        names = _find_numbers(runs)
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(store_scalars_as_tensors(run, names))
                run.vae.train()
            _check_similar(runs)
            members = [(run.vae, run.objective, run.optimizer) for run in runs]
            train = runs[0].train
            keywords = [k for k in ("mask", "covariates") if getattr(train, k) is not None]
            self.step = EnsembleStep(members, generators, runs[0].clip_norm, backend, keywords)
            stack.callback(lambda: list(map(self.step.release, list(self.step.active))))
            orders = [run.order.get_state() for run in runs]
            sizes = dict.fromkeys(runs[0].batch_sizes())
            self.step.prepare([self.get_batch([torch.arange(n)] * len(runs)) for n in sizes])
            for run, order in zip(runs, orders, strict=True):
                run.order.set_state(order)
            self.exit = stack.pop_all()

    def train(self) -> list[FitResult]:
        """Makes all steps, and returns the results."""
        with self.exit:
            try:
                epochs, show = self.runs[0].epochs, self.progress
                with Progress("training", epochs, "epochs", show=show, at_once=True) as progress:
                    while self.step.active:
                        self.train_epoch()
                        progress.reach(max(run.epoch for run in self.runs))
            except BaseException as error:
                vars(error)["fit_result"] = self.build_results()
                for i in list(self.unfinished):
                    with warn_on_cleanup_error(self.runs[i]):
                        self.leave(i)
                raise
        return self.build_results()

    def train_epoch(self) -> None:
        """Passes over the data once, and ends trainings that are complete or no longer finite."""
        active = list(self.step.active)
        before = {}
        for i in active:
            self.runs[i].vae.train()
            before[i] = {**self.runs[i].capture(), "noise": self.step.generators[i].get_state()}
        parts = [draw_batches(len(r.train.x), r.batch_size, r.order) for r in self.runs]
        totals = torch.zeros(len(self.runs), dtype=torch.float64)
        for rows in zip(*parts, strict=True):
            for run in self.runs:
                run.apply_schedules()
            totals -= self.step(*self.get_batch(rows))
            for i in active:
                self.runs[i].steps += 1
        for i, total in zip(active, totals[active].tolist(), strict=True):
            if self.runs[i].record_epoch(total) is None:
                self.leave(i, before[i])
            elif self.runs[i].is_complete():
                self.leave(i)

    def get_batch(self, rows: Sequence[Tensor]) -> list[Tensor]:
        batch = [run.get_batch(index) for run, index in zip(self.runs, rows, strict=True)]
        return [tensor for tensor in stack_batches(batch) if tensor is not None]

    def leave(self, i: int, before: dict[str, Any] | None = None) -> None:
        """Ends one training; given the state before an epoch that failed, finds the cause."""
        run = self.runs[i]
        if i in self.step.active:
            self.step.release(i)
        with fork_and_seed_rng(run.train.x.device, run.seed):
            if before is None:
                run.finish()
            else:
                try:
                    run.give_up(before)
                except NotFiniteError as error:
                    self.failures[i] = str(error)
                with warn_on_cleanup_error(run):
                    run.finish(best=False)
        del self.unfinished[i]

    def build_results(self) -> list[FitResult]:
        """Returns the results so far."""
        for run in self.runs:
            run.seconds, run.engine = time.perf_counter() - self.began, "compiled-many"
        return [build_result(run, self.failures.get(i)) for i, run in enumerate(self.runs)]


def _find_numbers(runs: Sequence[Training]) -> list[str]:
    """Returns the names of the objectives' numbers that a graph has to read at each step."""
    names = {name for run in runs for name in run.schedules}
    for name in vars(runs[0].objective):
        values: list[Any] = [getattr(run.objective, name, None) for run in runs]
        values = [v.item() if isinstance(v, Tensor) and not v.dim() else v for v in values]
        are_numbers = all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
        # Integers alone may be sizes, such as the number of particles.
        if are_numbers and len(set(values)) > 1 and not all(isinstance(v, int) for v in values):
            names.add(name)
    return sorted(name for name in names if all(hasattr(run.objective, name) for run in runs))


def _check_similar(runs: Sequence[Training]) -> None:
    """Raises a ``NotCapturedError`` unless trainings differ only in numbers."""
    first = _read_settings(runs[0])
    for i, run in enumerate(runs):
        for reason in _find_obstacles(run):
            raise NotCapturedError(f"VAE {i} has {reason}")
        for name, value in _read_settings(run).items():
            if value != (own := first.get(name)):
                raise NotCapturedError(f"VAE {i} differs from the first in {name}: {value}, {own}")


def _find_obstacles(run: Training) -> Iterator[str]:
    """Yields obstacles that a comparison of settings misses, or that no graph can contain."""
    for role, part in run.vae.recipe["parts"].items():
        if part is None:
            yield f"a recipe that does not describe its {role}"
            return
    for path, text in find_differences(run.vae).items():
        yield f"a part that differs from its recipe, {path}: {text}"
    if run.train.x.device.type != "cpu":
        yield f"data on {run.train.x.device}"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in run.vae.parameters()):
        yield "a hook on a parameter"
    if any(isinstance(v, Tensor) for m in run.vae.modules() for v in vars(m).values()):
        yield "a tensor outside of its parameters and buffers"
    schedulers = [s for s in (run.lr_schedule,) if s] + getattr(run.lr_schedule, "_schedulers", [])
    for own, package in ((run.objective, "pyro_vae"), *((s, "torch") for s in schedulers)):
        if type(own).__module__.partition(".")[0] != package:
            yield f"{type(own).__name__}, which is not of {package}"
    if any(group.get("base_momentum") == 0 for group in run.optimizer.param_groups):
        yield "a momentum that reaches 0"
    if not is_capturable(run.optimizer):
        yield f"an optimizer, {type(run.optimizer).__name__}, whose update no graph can contain"
    parameters = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    if parameters != [id(p) for p in run.vae.parameters() if p.requires_grad]:
        yield "an optimizer of other parameters"


def _read_settings(run: Training) -> dict[str, str]:
    """Returns the settings of recipe, objective and optimizer that a graph fixes, by name."""
    recipe, parts = dict(run.vae.recipe), run.vae.recipe["parts"]
    settings = {name: repr(value) for name, value in {**recipe, **parts}.items() if name != "parts"}
    settings |= {name: type(getattr(run, name)).__name__ for name in ("objective", "optimizer")}
    for name, value in vars(run.objective).items():
        if not name.startswith("_") and name != "max_plate_nesting":
            form = (value.shape, value.dtype) if isinstance(value, Tensor) else value
            settings[f"{name} of the objective"] = repr(form)
    for i, group in enumerate(run.optimizer.param_groups):
        settings[f"size of group {i}"] = repr(len(group["params"]))
        settings[f"use of momentum in group {i}"] = repr(bool(group.get("momentum")))
        settings |= {f"{name} of group {i}": repr(group.get(name)) for name in _FIXED_SETTINGS}
    return settings
