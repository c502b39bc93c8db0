"""Training of one VAE, which resumes bit for bit after an interruption."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_vae.data import Rows
from pyro_vae.display.text import describe_fields
from pyro_vae.files.atomic import hold_folder, remove_partial
from pyro_vae.guard import guard_process_state
from pyro_vae.objectives import Schedule
from pyro_vae.progress import Progress
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.training.argument_checks import check_folder, check_outputs, require_writable
from pyro_vae.training.checkpointer import Checkpointer
from pyro_vae.training.loop import (
    MakeOptimizer,
    MakeSchedule,
    NotFiniteError,
    Training,
)
from pyro_vae.training.scalars import store_scalars_as_tensors
from pyro_vae.training.setup import build_training
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_flag

__all__ = ["FitResult", "Tracker", "fit"]


class Tracker(Protocol):
    """An object that logs metrics during training."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs the metrics of one epoch."""


class FitResult(NamedTuple):
    """The result of a training.

    Attributes:
        history: One row per epoch: ``epoch``, ``train_objective``, the scheduled values and, with
            validation rows, ``valid_elbo``, ``valid_rate``, ``valid_distortion``; nats per datum.
        best_epoch: The epoch of the final weights: that of the highest ``valid_elbo``, or the
            last.
        steps: The number of optimizer steps, including those before a resume.
        seconds: The training time, including that before a resume.
        engine: How the steps were computed: ``"eager"``, ``"compiled"``, ``"compiled-onednn"``
            with matmuls by oneDNN, ``"compiled-bfloat16"`` with matmuls in bfloat16, or
            ``"compiled-many"`` with one graph for several VAEs.
        failure: Why the training of one of several VAEs ended early, or ``None``.
    """

    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    seconds: float
    engine: str
    failure: str | None = None

    @property
    def _best_row(self) -> dict[str, float]:
        return next((row for row in self.history if row["epoch"] == self.best_epoch), {})

    def __repr__(self) -> str:
        best = self._best_row
        key = "valid_elbo" if "valid_elbo" in best else "train_objective"
        value = f", {key} {best[key]:.3f} at best_epoch" if best else ""
        return describe_fields(self, history=f"[{len(self.history)} epochs{value}]")

    def _repr_html_(self) -> str:
        # Imported late, because only notebooks need it.
        from pyro_vae.display.html import render_curves, render_table

        metrics = [(name.replace("_", " "), value) for name, value in self._best_row.items()]
        rows = [
            ("best epoch", f"{self.best_epoch} of {len(self.history)}"),
            *((name, f"{value:.3f}") for name, value in metrics if name != "epoch"),
            ("steps", f"{self.steps:,}"),
            ("seconds", f"{self.seconds:.1f}"),
            ("engine", self.engine),
            *([("failure", self.failure)] if self.failure else []),
        ]
        lines = {
            name: [row[key] for row in self.history]
            for key, name in (("valid_elbo", "validation ELBO"), ("train_objective", "training"))
            if self.history and key in self.history[0]
        }
        return render_table(rows) + (render_curves(lines) if len(self.history) > 1 else "")


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
    r"""Trains a VAE.

    Each step maximizes the objective per datum on a batch of rows, drawn without replacement. With
    validation rows the ELBO at beta = 1 is computed on them after each epoch, with the same noise
    each time. The VAE then gets the weights of the best epoch at the end. All noise comes from
    ``seed``; the random state of the caller does not change.

    With ``out`` checkpoints are written during training, and ``resume`` continues from the last
    one. The result is bit for bit that of an uninterrupted training, also with more epochs than
    before. The folder is locked until the end, so that no other process writes to it. A write
    error causes a warning; the training continues and tries again at the next checkpoint.

    An exception, such as an interrupt from the keyboard or an error of the tracker, undoes the
    current epoch. The VAE is left in evaluation mode with the best weights so far, and the state is
    written to ``out``. The attribute ``fit_result`` of the exception is the result so far.

    Arguments:
        vae: The VAE; left in evaluation mode.
        train: Rows of shape ``(N, *event_shape)``, on the device of the VAE, or
            :class:`pyro_vae.data.Rows` with a mask, with covariates or redrawn for each batch.
        valid: Rows to select the best epoch.
        objective: An object with ``differentiable_loss``; by default :class:`ELBO`.
        optimizer: Makes a PyTorch optimizer from parameters; by default fused Adam at 1e-3.
        epochs: The number of passes over the data, at most.
        batch_size: The number of rows per batch. A single row left over joins the batch before.
        lr_schedule: Makes a PyTorch scheduler from the optimizer, for one step per epoch.
            ``ReduceLROnPlateau`` gets the ``valid_elbo``, or else the ``train_objective``, with a
            minus sign for ``mode="min"``, the default. Pass ``threshold_mode="abs"`` if that can
            be negative.
        schedules: Maps names of the objective's scalars, such as ``beta``, to their schedules.
        clip_norm: The norm to which the gradient of all parameters together is clipped.
        patience: Stop after this many epochs without a better ``valid_elbo``, counted from the end
            of the schedules.
        compile: Whether :func:`pyro_vae.compile` compiles the steps; a batch of another size than
            the others stays eager. ``"auto"`` uses :func:`~pyro_vae.compiled.worth_compiling`, and
            ``"strict"`` raises an error if compilation fails. A resumed training keeps its engine.
        precision: ``"bfloat16"`` for matmuls in that precision, which needs compiled steps.
        seed: The seed of the row order and the noise.
        out: A folder for ``model.safetensors``, the best weights; ``last.safetensors``;
            ``resume.pt``, the state to resume from; and ``history.csv``, with one row per epoch.
        resume: Whether to continue from the checkpoint in ``out``, if there is one.
        checkpoint_seconds: The minimum time between two checkpoints; 0 writes one per epoch.
        tracker: Logs each row of the history.
        progress: ``True`` shows progress, as a bar in a terminal or notebook and as lines at
            intervals elsewhere; ``False`` does not; ``None`` shows bars only.

    Raises:
        ValueError: If an argument is out of range, the data cannot be scored, another process
            writes to ``out``, or the state there is damaged or that of another training.
        FloatingPointError: If the objective is no longer finite; names step and site. The weights
            and the checkpoint are then those before that epoch.

    Example:
        >>> from pyro_vae import data
        >>> digits = data.digits()
        >>> vae = VAE(digits.event_shape, latent_dim=2)
        >>> result = fit(vae, digits.train, valid=digits.valid, epochs=2)
        >>> [row["epoch"] for row in result.history]
        [1, 2]
    """
    run = build_training(
        vae, train, valid=valid, objective=objective, optimizer=optimizer, epochs=epochs,
        batch_size=batch_size, lr_schedule=lr_schedule, schedules=schedules, clip_norm=clip_norm,
        patience=patience, seed=seed, compile=compile, precision=precision,
    )  # fmt: skip
    checkpoint_seconds = check_outputs(tracker, progress, checkpoint_seconds)
    folder = check_folder(out, check_flag("resume", resume))
    with _lock_folder(folder), fork_and_seed_rng(run.train.x.device, run.seed):
        checkpointer = Checkpointer(folder, checkpoint_seconds)
        checkpointer.prepare_recipe(vae)
        run.start()
        if resume:
            checkpointer.restore(run)
        return _run_training(run, checkpointer, tracker, progress)


def _run_training(
    run: Training,
    checkpointer: Checkpointer,
    tracker: Tracker | None,
    progress: bool | None,
) -> FitResult:
    run.prepare()
    with _use_recorded_threads(run):
        try:
            with store_scalars_as_tensors(run, run.schedules if run.compiled else ()):
                for row in _train_epochs(run, progress):
                    if tracker is not None:
                        tracker.log(row, run.epoch)
                    checkpointer.save(run)
            _save_and_finish(run, checkpointer)
        except BaseException as error:
            # An exception class can forbid setattr.
            vars(error)["fit_result"] = build_result(run)
            vars(error)["work_done"] = f"{run.epoch} of {run.epochs} epochs of training"
            _explain_interrupt(error, run, checkpointer)
            with warn_on_cleanup_error(run):
                _save_and_finish(run, checkpointer, best=not isinstance(error, NotFiniteError))
            raise
    return build_result(run)


def _explain_interrupt(error: BaseException, run: Training, checkpointer: Checkpointer) -> None:
    """Adds a note on how to continue to an interrupt from the keyboard, if Python supports it."""
    if isinstance(error, KeyboardInterrupt) and hasattr(error, "add_note"):
        if checkpointer.folder is None:
            how = "fit_result of this exception has the history; out=FOLDER would save the state"
        else:
            how = f"call fit with out={str(checkpointer.folder)!r} and resume=True to continue"
        error.add_note(f"fit stopped after epoch {run.epoch} of {run.epochs}: {how}")


def _save_and_finish(run: Training, checkpointer: Checkpointer, *, best: bool = True) -> None:
    """Writes the state of a training, then sets the best weights of the VAE, or the last."""
    if run.resumable:
        checkpointer.save(run, now=True)
    run.finish(best=best)
    if best:
        checkpointer.save_best(run)
    checkpointer.report_missing()


@contextmanager
def warn_on_cleanup_error(run: Training) -> Iterator[None]:
    """Turns an error after a failed training into a warning, and sets evaluation mode."""
    try:
        yield
    except FloatingPointError:
        # The error that ended the training has the same cause and is raised already.
        return
    except Exception as error:
        warnings.warn(
            f"The state of the VAE at the end of the training cannot be set: "
            f"{type(error).__name__}: {error}",
            stacklevel=6,
        )
    finally:
        run.vae.eval()


def build_result(run: Training, failure: str | None = None) -> FitResult:
    """Returns the result of a training."""
    return FitResult(run.history, run.best_epoch, run.steps, run.seconds, run.engine, failure)


def _train_epochs(run: Training, progress: bool | None) -> Iterator[dict[str, float]]:
    """Trains epoch by epoch, and yields each row of the history."""
    name, key = ("objective", "train_objective") if run.valid is None else ("ELBO", "valid_elbo")
    settings: dict[str, Any] = {"show": progress, "at_once": True, "done": run.epoch}
    with Progress("training", run.epochs, "epochs", **settings) as bar:
        run.on_batch = lambda fraction: bar.reach(run.epoch + fraction)
        while not run.is_complete():
            row = run.train_epoch()
            bar.reach(run.epoch, f"{name} {row[key]:.3f}")
            yield row


@contextmanager
def _lock_folder(folder: Path | None) -> Iterator[None]:
    """Locks a folder for this process, and removes the partial files of killed processes."""
    with ExitStack() as stack:
        if folder is not None:
            with require_writable(folder):
                stack.enter_context(hold_folder(folder))
                remove_partial(folder)
        yield


@contextmanager
def _use_recorded_threads(run: Training) -> Iterator[None]:
    """Uses the training's recorded number of threads, because rounding errors depend on it."""
    before = torch.get_num_threads()
    try:
        if before != run.threads:
            torch.set_num_threads(run.threads)
        yield
    finally:
        if before != run.threads:
            torch.set_num_threads(before)
