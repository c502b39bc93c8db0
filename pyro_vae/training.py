"""Training: one loop, read from top to bottom, that can be killed and goes on to the same bits."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor
from tqdm import tqdm

from pyro_vae import checkpoint, evaluate
from pyro_vae.conditional import check_size
from pyro_vae.data import Rows
from pyro_vae.objectives import ELBO, Schedule
from pyro_vae.objectives.traces import first_not_finite
from pyro_vae.vae import VAE

__all__ = ["FitResult", "Tracker", "fit"]

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


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
    """

    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    seconds: float


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
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 10.0,
    tracker: Tracker | None = None,
) -> FitResult:
    r"""Trains a VAE.

    Each step maximizes the objective per datum on a batch of rows, drawn without replacement by a
    generator of its own. With validation rows the ELBO at beta = 1 is computed on them after each
    epoch, under the same noise each time, and the weights of the best epoch are kept at the end.
    All noise comes from ``seed``; the random state of the caller is left as it was.

    With ``out`` the state is written as training goes on, and ``resume`` goes on from it to the
    same bits as if there had been no break, also with more epochs than before.

    Arguments:
        vae: The VAE; left in evaluation mode.
        train: Rows of shape ``(N, *event_shape)``, on the device of the VAE, or
            :class:`pyro_vae.data.Rows` with a mask or drawn anew at each presentation.
        valid: Rows to choose the best epoch by.
        objective: Any with a ``differentiable_loss``; by default :class:`ELBO`.
        optimizer: Makes a PyTorch optimizer from parameters; by default fused Adam at 1e-3.
        epochs: The number of passes over the data, at most.
        batch_size: The number of rows of a batch. A single row left over joins the batch before.
        lr_schedule: Makes a PyTorch scheduler from the optimizer; stepped once an epoch.
        schedules: For names of the objective's scalars, such as ``beta``, their value at each
            step.
        clip_norm: The norm to which the gradient of all parameters together is clipped.
        patience: Stop after this many epochs without a better ``valid_elbo``, counted from the end
            of the schedules.
        seed: The seed of order and noise.
        out: A folder for ``model.safetensors``, the best weights; ``last.safetensors``; and
            ``resume.pt``, the state to go on from.
        resume: Whether to go on from ``out`` if there is something to go on from.
        checkpoint_seconds: The least time between two checkpoints; 0 writes one after each epoch.
        tracker: Takes each row of the history.

    Raises:
        ValueError: If an argument is out of range, the data cannot be scored, or the state in
            ``out`` is damaged or that of another training.
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
    train, valid = as_rows(train), None if valid is None else as_rows(valid)
    check_numbers(epochs, batch_size, clip_norm, patience, checkpoint_seconds)
    steps_each = len(batches(len(train.x), batch_size, torch.Generator()))
    schedules = check_objective(objective, schedules or {}, epochs * steps_each)
    check_data(vae, train, valid, patience)
    folder = check_folder(out, resume)
    began = time.perf_counter()
    with own_randomness(train.x.device, seed):
        make = partial(torch.optim.Adam, lr=1e-3, fused=True) if optimizer is None else optimizer
        run = Training(vae, objective, schedules, train, valid, batch_size, clip_norm, seed)
        run.start(make, lr_schedule)
        if resume and folder is not None and (folder / "resume.pt").exists():
            run.restore(checkpoint.load_state(folder / "resume.pt"), folder)
        with same_threads(run):
            settled = max((s.steps for s in schedules.values()), default=0) / steps_each
            written = time.perf_counter()
            progress = tqdm(
                total=epochs, initial=run.epoch, desc="epochs", disable=None, leave=False
            )
            while run.epoch < epochs and not run.waited(patience, settled):
                row = run.one_epoch(folder)
                progress.update()
                if tracker is not None:
                    tracker.log(row, run.epoch)
                if folder is not None and time.perf_counter() - written >= checkpoint_seconds:
                    run.write(folder, time.perf_counter() - began)
                    written = time.perf_counter()
            progress.close()
            seconds = run.seconds + time.perf_counter() - began
            if folder is not None:
                run.write(folder, time.perf_counter() - began)
            run.finish()
            if folder is not None:
                run.write_best(folder)
    return FitResult(run.history, run.best_epoch, run.steps, seconds)


@dataclass
class Training:
    """The state of a training: what a step changes, and what it needs."""

    vae: VAE
    objective: Any
    schedules: Mapping[str, Schedule]
    train: Rows
    valid: Rows | None
    batch_size: int
    clip_norm: float | None
    seed: int
    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    threads: int = field(default_factory=torch.get_num_threads)
    history: list[dict[str, float]] = field(default_factory=list)

    def start(self, make: MakeOptimizer, lr_schedule: MakeSchedule | None) -> None:
        """Makes what a first step needs."""
        self.validating = is_validation_enabled()
        device = self.train.x.device
        self.order = torch.Generator(device=device).manual_seed(self.seed)
        self.vae.initialize(self.presented(slice(None))[0])
        self.optimizer = make([p for p in self.vae.parameters() if p.requires_grad])
        self.lr_schedule = None if lr_schedule is None else lr_schedule(self.optimizer)
        self.kept = snapshot(self.vae)

    def presented(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """Returns some training rows as they are presented this time."""
        return self.train.batch(index, self.order)

    def one_epoch(self, folder: Path | None) -> dict[str, float]:
        """Passes over the data once, and returns its row of the history."""
        before = self.capture()
        self.vae.train()
        total = torch.zeros((), dtype=torch.float64, device=self.train.x.device)
        for rows in batches(len(self.train.x), self.batch_size, self.order):
            total -= self.step(rows)
        if self.lr_schedule is not None:
            self.lr_schedule.step()
        row = {"epoch": self.epoch + 1, "train_objective": total.item() / len(self.train.x)}
        row |= {name: schedule(self.steps) for name, schedule in self.schedules.items()}
        if math.isfinite(row["train_objective"]) and self.valid is not None:
            row |= validate(self.vae, self.valid, self.seed)
        if not all(math.isfinite(value) for value in row.values()):
            self.give_up(before, folder)
        self.epoch += 1
        self.history.append(row)
        if self.valid is None or row["valid_elbo"] > self.best:
            self.best, self.best_epoch = row.get("valid_elbo", self.best), self.epoch
            self.kept = snapshot(self.vae)
        return row

    def step(self, rows: Tensor) -> Tensor:
        """Makes one optimizer step, and returns the loss summed over the rows."""
        for name, schedule in self.schedules.items():
            set_scalar(self.objective, name, schedule(self.steps))
        x, mask = self.presented(rows)
        self.optimizer.zero_grad(set_to_none=True)
        # Pyro's checks of model, guide and shapes pay once; data are checked already.
        with pyro.validation_enabled(self.validating and self.steps == 0):
            loss = self.objective.differentiable_loss(self.vae.model, self.vae.guide, x, mask=mask)
        (loss / len(rows)).backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.clip_norm)
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def waited(self, patience: int | None, settled: float) -> bool:
        """Tells whether early stopping is due; the time before the schedules end counts not."""
        return patience is not None and self.epoch - max(self.best_epoch, settled) >= patience

    def give_up(self, before: dict[str, Any], folder: Path | None) -> None:
        """Goes back to the start of the epoch, finds out what went wrong, and raises."""
        self.put_back(before)
        first = self.steps
        self.vae.train()
        where = "the ELBO of the validation rows"
        for rows in batches(len(self.train.x), self.batch_size, self.order):
            state = self.capture()
            if not math.isfinite(self.step(rows)):
                self.put_back(state)
                x, mask = self.presented(rows)
                with pyro.validation_enabled(False):
                    where = first_not_finite(self.vae.model, self.vae.guide, x, mask=mask)
                break
        failed = self.steps + 1
        self.put_back(before)
        if folder is not None:
            self.write(folder, 0.0)
        raise FloatingPointError(
            f"The objective is no longer finite at step {failed} (epoch {self.epoch + 1}): "
            f"{where}. The weights are those after step {first}; try a lower learning rate or "
            f"clip_norm"
        )

    def capture(self) -> dict[str, Any]:
        """Returns a copy of all that a step changes."""
        device = self.train.x.device
        return {
            "weights": snapshot(self.vae),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "lr_schedule": None if self.lr_schedule is None else self.lr_schedule.state_dict(),
            "order": self.order.get_state(),
            "noise": torch.get_rng_state(),
            "device_noise": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "steps": self.steps,
        }

    def put_back(self, captured: dict[str, Any]) -> None:
        """Goes back to a captured state."""
        device = self.train.x.device
        self.vae.load_state_dict(captured["weights"])
        self.optimizer.load_state_dict(copy.deepcopy(captured["optimizer"]))
        if self.lr_schedule is not None:
            self.lr_schedule.load_state_dict(captured["lr_schedule"])
        self.order.set_state(captured["order"].cpu())
        torch.set_rng_state(captured["noise"].cpu())
        if device.type == "cuda":
            torch.cuda.set_rng_state(captured["device_noise"].cpu(), device)
        self.steps = captured["steps"]

    def fingerprint(self) -> dict[str, Any]:
        """Returns what has to be the same for this training to be continued."""
        return checkpoint.fingerprint(
            self.train.x,
            batch_size=self.batch_size,
            seed=self.seed,
            objective=type(self.objective).__name__,
            particles=self.objective.num_particles,
            schedules={name: repr(schedule) for name, schedule in self.schedules.items()},
            optimizer=type(self.optimizer).__name__,
            clip_norm=self.clip_norm,
            parameters=[list(p.shape) for p in self.vae.parameters()],
        )

    def write(self, folder: Path, seconds: float) -> None:
        """Writes a checkpoint: last and best weights, and the state to go on from."""
        state = {
            **self.capture(),
            "fingerprint": self.fingerprint(),
            "kept": self.kept,
            "epoch": self.epoch,
            "seconds": self.seconds + seconds,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "threads": self.threads,
        }
        checkpoint.save_state(state, folder / "resume.pt")
        checkpoint.save_weights(self.vae, snapshot(self.vae), folder / "last.safetensors")
        checkpoint.save_weights(self.vae, self.kept, folder / "model.safetensors")

    def write_best(self, folder: Path) -> None:
        """Writes the weights as the training leaves them."""
        checkpoint.save_weights(self.vae, snapshot(self.vae), folder / "model.safetensors")

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: If it is that of another training.
        """
        for name, own in self.fingerprint().items():
            if state["fingerprint"].get(name) != own:
                raise ValueError(
                    f"Expected the training in {folder} to be this one, got another {name}: "
                    f"{state['fingerprint'].get(name)} there, {own} here. Give another folder, or "
                    f"resume=False to begin anew"
                )
        self.put_back(state)
        self.kept = state["kept"]
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.history, self.threads = state["history"], state["threads"]

    def finish(self) -> None:
        """Leaves the best weights in place, calibrated, in evaluation mode."""
        self.vae.load_state_dict(self.kept)
        torch.manual_seed(self.seed)
        x, mask = self.presented(slice(None))
        self.vae.calibrate(x, mask=mask)
        self.vae.eval()


def as_rows(x: Tensor | Rows) -> Rows:
    """Returns rows without mask for a tensor."""
    return x if isinstance(x, Rows) else Rows(x)


def check_numbers(
    epochs: int,
    batch_size: int,
    clip_norm: float | None,
    patience: int | None,
    checkpoint_seconds: float,
) -> None:
    """Raises a ``ValueError`` for a number out of range."""
    check_size("epochs", epochs, least=1)
    check_size("batch_size", batch_size, least=1)
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"Expected clip_norm to be positive, got {clip_norm}")
    if patience is not None:
        check_size("patience", patience, least=1)
    if not checkpoint_seconds >= 0:
        raise ValueError(f"Expected checkpoint_seconds to be 0 or more, got {checkpoint_seconds}")


def check_objective(
    objective: Any, schedules: Mapping[str, Schedule], steps: int
) -> Mapping[str, Schedule]:
    """Returns the schedules, or raises a ``ValueError`` if they or the objective do not fit."""
    if not hasattr(objective, "differentiable_loss"):
        raise ValueError(
            f"Expected an objective with differentiable_loss, got {type(objective).__name__}"
        )
    check_size("num_particles", getattr(objective, "num_particles", 1), least=1)
    for name, schedule in schedules.items():
        if not hasattr(objective, name):
            raise ValueError(
                f"Expected schedules of scalars that {type(objective).__name__} has, got {name!r}"
            )
        if schedule.steps > steps:
            raise ValueError(
                f"Expected the schedule of {name} to end within the training's {steps} steps, got "
                f"{schedule}: {name} would never reach {schedule.end:g}"
            )
    return schedules


def check_data(vae: VAE, train: Rows, valid: Rows | None, patience: int | None) -> None:
    """Raises a ``ValueError`` for data that cannot be trained on."""
    if patience is not None and valid is None:
        raise ValueError(f"Expected valid, without which {patience=} has nothing to wait for")
    for rows in (train,) if valid is None else (train, valid):
        if rows.dynamic and not bool(((rows.x >= 0) & (rows.x <= 1)).all()):
            raise ValueError("Expected x to be probabilities for rows drawn anew, got others")
        vae.check((rows.x > 0.5).to(rows.x.dtype) if rows.dynamic else rows.x, rows.mask)


def check_folder(out: Path | str | None, resume: bool) -> Path | None:
    """Returns the folder, made if need be."""
    if out is None:
        if resume:
            raise ValueError("Expected out, the folder to resume from, got None")
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Expected out to be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def set_scalar(objective: Any, name: str, value: float) -> None:
    """Sets a scalar of an objective, in place where it is a tensor."""
    known = getattr(objective, name)
    if isinstance(known, Tensor):
        known.fill_(value)
    else:
        setattr(objective, name, value)


def batches(size: int, batch_size: int, order: torch.Generator) -> list[Tensor]:
    """Returns the rows of each batch of an epoch, none of a single row if that can be."""
    rows = torch.randperm(size, generator=order, device=order.device)
    parts = list(rows.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def validate(vae: VAE, valid: Rows, seed: int) -> dict[str, float]:
    """Returns the bound on the validation rows, under the same noise at each call."""
    with own_randomness(valid.x.device, seed), pyro.validation_enabled(False):
        bound = evaluate.elbo(vae, valid.x, mask=valid.mask)
    return {
        "valid_elbo": bound.elbo.mean().item(),
        "valid_rate": bound.rate.mean().item(),
        "valid_distortion": bound.distortion.mean().item(),
    }


def snapshot(vae: VAE) -> dict[str, Tensor]:
    """Returns a copy of all weights and buffers."""
    return {name: value.detach().clone() for name, value in vae.state_dict().items()}


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds PyTorch within, and leaves the caller's random state as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def same_threads(run: Training) -> Iterator[None]:
    """Uses the number of threads that the training began with: sums depend on it in their bits."""
    before = torch.get_num_threads()
    if before != run.threads:
        torch.set_num_threads(run.threads)
    try:
        yield
    finally:
        if before != run.threads:
            torch.set_num_threads(before)
