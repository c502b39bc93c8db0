"""Training: one loop, read from top to bottom, that can be killed and goes on to the same bits."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_vae.data import Rows
from pyro_vae.files.atomic import hold_folder, remove_partial
from pyro_vae.guard import guard_process_state
from pyro_vae.objectives import ELBO, Schedule
from pyro_vae.progress import Progress, check_progress
from pyro_vae.seeding import own_randomness
from pyro_vae.training.arguments import (
    as_rows,
    check_data,
    check_folder,
    check_makers,
    check_numbers,
    check_objective,
    check_precision,
    check_tracker,
    choose_engine,
    writable,
)
from pyro_vae.training.checkpointer import Keeper
from pyro_vae.training.loop import (
    MakeOptimizer,
    MakeSchedule,
    NotFiniteError,
    Training,
    batches,
    in_tensors,
    same_threads,
)
from pyro_vae.training.network_checks import check_single_rows
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import (
    check_flag,
    check_seed,
)

__all__ = ["FitResult", "Tracker", "fit"]


class Tracker(Protocol):
    """Anything that takes figures as training goes on."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Takes the figures of one epoch."""


class FitResult(NamedTuple):
    """What training did.

    Attributes:
        history: One row an epoch: ``epoch``, ``train_objective``, the scheduled values and, with
            validation rows, ``valid_elbo``, ``valid_rate``, ``valid_distortion``; nats per datum.
        best_epoch: The epoch whose weights were kept: that of the highest ``valid_elbo``, or the
            last.
        steps: The number of optimizer steps, those before a resume included.
        seconds: The time taken, that before a resume included.
        engine: How the steps were computed: ``"eager"``, ``"compiled"``, ``"compiled-onednn"``
            with matrix products by oneDNN, ``"compiled-bfloat16"`` with products so rounded, or
            ``"compiled-many"`` with one graph for several VAEs.
        failure: Of one of several VAEs: why its training ended before its time, or ``None``.
    """

    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    seconds: float
    engine: str
    failure: str | None = None


@guard_process_state
def fit(
    vae: VAE,
    train: Tensor | Rows,
    *,
    valid: Tensor | Rows | None = None,
    objective: Any = None,
    optimizer: MakeOptimizer | None = None,
    epochs: int = 100,
    batch_size: int = 100,
    lr_schedule: MakeSchedule | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    compile: bool | str = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 10.0,
    tracker: Tracker | None = None,
    progress: bool | None = None,
) -> FitResult:
    r"""Trains a VAE without covariates; one with them is trained by SVI or a loop of your own.

    Each step maximizes the objective per datum on a batch of rows, drawn without replacement by a
    generator of its own. With validation rows the ELBO at beta = 1 is computed on them after each
    epoch, under the same noise each time, and the weights of the best epoch are kept at the end.
    All noise comes from ``seed``; the random state of the caller is left as it was.

    With ``out`` the state is written as training goes on, and ``resume`` goes on from it to the
    same bits as if there had been no break, also with more epochs than before. The folder is held
    until the end, so that no other process writes to it. A file that cannot be written gives a
    warning; the training continues and tries again at the next checkpoint.

    An exception, such as an interrupt from the keyboard or an error of the tracker, undoes the
    epoch that it breaks off. The VAE is left in evaluation mode with the best weights so far,
    the state is written to ``out``, and the attribute ``fit_result`` of the exception holds the
    result up to there.

    Arguments:
        vae: The VAE; left in evaluation mode.
        train: Rows of shape ``(N, *event_shape)``, on the device of the VAE, or
            :class:`pyro_vae.data.Rows` with a mask or drawn anew at each presentation.
        valid: Rows to choose the best epoch by.
        objective: Any with a ``differentiable_loss``; by default :class:`ELBO`.
        optimizer: Makes a PyTorch optimizer from parameters; by default fused Adam at 1e-3.
        epochs: The number of passes over the data, at most.
        batch_size: The number of rows of a batch. A single row left over joins the batch before.
        lr_schedule: Makes a PyTorch scheduler from the optimizer; stepped once an epoch. A
            ``ReduceLROnPlateau`` is given the ``valid_elbo``, or else the ``train_objective``:
            with a minus sign for ``mode="min"``, the default. Pass ``threshold_mode="abs"`` if
            that can be negative.
        schedules: For names of the objective's scalars, such as ``beta``, their value at each
            step.
        clip_norm: The norm to which the gradient of all parameters together is clipped.
        patience: Stop after this many epochs without a better ``valid_elbo``, counted from the end
            of the schedules.
        compile: Whether steps are compiled, by :func:`pyro_vae.compile`; a batch of another size
            than the others stays eager. ``"auto"`` asks :func:`~pyro_vae.compiled.worth_compiling`,
            and ``"strict"`` raises an error where compiling fails. A resumed training goes on as it
            began.
        precision: ``"bfloat16"``: products in that precision, which needs compiled steps.
        seed: The seed of order and noise.
        out: A folder for ``model.safetensors``, the best weights; ``last.safetensors``;
            ``resume.pt``, the state to go on from; and ``history.csv``, a row an epoch.
        resume: Whether to go on from ``out`` if there is something to go on from.
        checkpoint_seconds: The least time between two checkpoints; 0 writes one after each epoch.
        tracker: Takes each row of the history.
        progress: ``True`` shows progress, as a bar in a terminal or notebook and as lines at
            intervals elsewhere; ``False`` does not; ``None`` shows bars only.

    Raises:
        ValueError: If an argument is out of range, the data cannot be scored, another process
            writes to ``out``, or the state there is damaged or that of another training.
        FloatingPointError: If the objective is no longer finite, naming step and site; the weights
            are then those before that epoch, and so is the checkpoint.

    Example:
        >>> from pyro_vae import data
        >>> digits = data.digits()
        >>> vae = VAE(digits.event_shape, latent_dim=2)
        >>> result = fit(vae, digits.train, valid=digits.valid, epochs=2)
        >>> [row["epoch"] for row in result.history]
        [1, 2]
    """
    objective = ELBO() if objective is None else objective
    train, valid = as_rows("train", train), None if valid is None else as_rows("valid", valid)
    epochs, batch_size, clip_norm, patience, checkpoint_seconds = check_numbers(
        epochs, batch_size, clip_norm, patience, checkpoint_seconds
    )
    check_progress(progress)
    steps = epochs * len(batches(len(train.x), batch_size, torch.Generator()))
    schedules = check_objective(objective, {} if schedules is None else schedules, steps)
    check_data(vae, train, valid, patience)
    check_single_rows(vae, train, batch_size, objective)
    make = partial(torch.optim.Adam, lr=1e-3, fused=True) if optimizer is None else optimizer
    check_makers(make, lr_schedule)
    seed = check_seed(seed)
    compile = check_precision(precision, compile)
    engine = choose_engine(compile, vae, objective, min(batch_size, len(train.x)), steps)
    check_tracker(tracker)
    folder = check_folder(out, check_flag("resume", resume))
    run = Training(
        vae, objective, schedules, train, valid, batch_size, clip_norm, seed, engine,
        compile == "strict", precision,
    )  # fmt: skip
    with _held(folder), own_randomness(train.x.device, seed):
        keeper = Keeper(folder, checkpoint_seconds)
        keeper.describe(vae)
        run.start(make, lr_schedule)
        if resume:
            keeper.restore(run)
        return trained(run, keeper, epochs, patience, tracker, progress)


def trained(
    run: Training,
    keeper: Keeper,
    epochs: int,
    patience: int | None,
    tracker: Tracker | None = None,
    progress: bool | None = None,
) -> FitResult:
    """Goes on with a training to its end.

    An exception leaves the VAE as :func:`fit` describes it.

    Arguments:
        run: The training, started; the random state is its own.
        keeper: Who keeps its state.
        epochs: The epochs at most.
        patience: The epochs without a better one that end it.
        tracker: Takes each row of the history.
        progress: Whether to show progress, as in :func:`fit`.
    """
    run.prepare()
    with same_threads(run):
        try:
            with in_tensors(run, run.schedules if run.compiled else ()):
                for row in _rows_until(run, epochs, patience, progress):
                    if tracker is not None:
                        tracker.log(row, run.epoch)
                    keeper.keep(run)
            _end(run, keeper)
        except BaseException as error:
            # Not by setattr, which an exception may forbid.
            vars(error)["fit_result"] = result_of(run)
            vars(error)["work_done"] = f"{run.epoch} of {epochs} epochs of training"
            _explain_interrupt(error, run, epochs, keeper)
            with settling(run):
                _end(run, keeper, best=not isinstance(error, NotFiniteError))
            raise
    return result_of(run)


def _explain_interrupt(error: BaseException, run: Training, epochs: int, keeper: Keeper) -> None:
    """Adds to an interrupt from the keyboard how to continue, where Python shows such notes."""
    if isinstance(error, KeyboardInterrupt) and hasattr(error, "add_note"):
        if keeper.folder is None:
            how = "fit_result of this exception holds the history; out=FOLDER would keep the state"
        else:
            how = f"call fit with out={str(keeper.folder)!r} and resume=True to continue"
        error.add_note(f"fit stopped after epoch {run.epoch} of {epochs}: {how}")


def _end(run: Training, keeper: Keeper, *, best: bool = True) -> None:
    """Writes the state of a training, then leaves the VAE with the best weights, or the last."""
    if run.resumable:
        keeper.keep(run, now=True)
    run.finish(best=best)
    if best:
        keeper.keep_best(run)
    keeper.report_missing()


@contextmanager
def settling(run: Training) -> Iterator[None]:
    """Leaves a VAE in evaluation mode, and warns of an error that stands behind another one."""
    try:
        yield
    except FloatingPointError:
        # The error that ended the training is of the same kind.
        return
    except Exception as error:
        warnings.warn(
            f"The VAE cannot be left as at the end of a training: {type(error).__name__}: {error}",
            stacklevel=6,
        )
    finally:
        run.vae.eval()


def result_of(run: Training, failure: str | None = None) -> FitResult:
    """Returns what a training did."""
    return FitResult(run.history, run.best_epoch, run.steps, run.seconds, run.engine, failure)


def _rows_until(
    run: Training, epochs: int, patience: int | None, progress: bool | None = None
) -> Iterator[dict[str, float]]:
    """Trains, epoch by epoch, and yields each row of the history.

    Arguments:
        run: The training.
        epochs: The epochs at most.
        patience: The epochs without a better one that end it.
        progress: Whether to show progress, as in :func:`fit`.
    """
    name, key = ("objective", "train_objective") if run.valid is None else ("ELBO", "valid_elbo")
    with Progress("training", epochs, "epochs", show=progress, at_once=True) as shown:
        shown.reach(run.epoch)
        run.on_batch = lambda part: shown.reach(run.epoch + part)
        while run.epoch < epochs and not run.waited(patience):
            row = run.one_epoch()
            shown.reach(run.epoch, f"{name} {row[key]:.3f}")
            yield row


@contextmanager
def _held(folder: Path | None) -> Iterator[None]:
    """Holds a folder for this process, and removes the partial files of killed processes."""
    with ExitStack() as stack:
        if folder is not None:
            with writable(folder):
                stack.enter_context(hold_folder(folder))
                remove_partial(folder)
        yield
