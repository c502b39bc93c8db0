"""The state of a training, and what an epoch does to it."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vae.compiled.optimizer_step import check_optimizer
from pyro_vae.compiled.step import Step, compile
from pyro_vae.data import Rows
from pyro_vae.evaluate import estimators
from pyro_vae.masking import expand_mask, fill
from pyro_vae.objectives import Schedule
from pyro_vae.objectives.core.tracing import first_not_finite
from pyro_vae.seeding import own_randomness, seed_device
from pyro_vae.training import resume_state
from pyro_vae.training.snapshot import copied, objective_settings, objective_state, snapshot
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import describe_value, plain

__all__ = [
    "MakeOptimizer",
    "MakeSchedule",
    "NotFiniteError",
    "Training",
    "batches",
    "in_tensors",
    "same_threads",
]

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class NotFiniteError(FloatingPointError):
    """The objective of a training, or a weight, is no longer finite."""


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
    engine: str = "eager"
    strict: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    products: Literal["auto", "mkl", "onednn"] = "auto"
    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    threads: int = field(default_factory=torch.get_num_threads)
    history: list[dict[str, float]] = field(default_factory=list)
    resumable: bool = True
    """Whether tensors are those of the end of an epoch, from which a training can be resumed."""
    on_batch: Callable[[float], None] = lambda part: None
    """Called after each batch with the part of the epoch that is done."""

    def start(self, make: MakeOptimizer, lr_schedule: MakeSchedule | None) -> None:
        """Makes what a first step needs."""
        self.validating = is_validation_enabled()
        device = self.train.x.device
        self.order = torch.Generator(device=device).manual_seed(self.seed)
        self.optimizer = make([p for p in self.vae.parameters() if p.requires_grad])
        check_optimizer("the result of optimizer", self.optimizer)
        for group in self.optimizer.param_groups:
            group.update({name: plain(value) for name, value in group.items() if name != "params"})
        self.lr_schedule = None if lr_schedule is None else lr_schedule(self.optimizer)
        if lr_schedule is not None and not isinstance(self.lr_schedule, LRScheduler):
            raise ValueError(
                f"Expected lr_schedule to make a scheduler of torch.optim.lr_scheduler, got "
                f"{describe_value(self.lr_schedule)}"
            )
        x, mask = self.presented(slice(None))
        seen = None if mask is None else expand_mask(mask, x, self.vae.event_shape)
        self.vae.initialize(fill(x, seen))
        self.kept = snapshot(self.vae)
        self.compiled: Step | None = None

    def prepare(self) -> None:
        """Makes the compiled step, if there is to be one, for batches of the usual size."""
        if self.engine == "eager":
            return
        self.usual = len(batches(len(self.train.x), self.batch_size, torch.Generator())[0])
        self.compiled = compile(
            self.objective,
            self.vae.model,
            self.vae.guide,
            parameters=self.vae.parameters(),
            products=self.products,
            precision=self.precision,
            strict=self.strict,
            divide_by=self.usual,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
            # The data are checked already, and the loss at the end of each epoch.
            validate=False,
        )

    def presented(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """Returns some training rows as they are presented this time."""
        return self.train.batch(index, self.order)

    def one_epoch(self) -> dict[str, float]:
        """Passes over the data once, and returns its row of the history.

        An epoch that raises an error, or is interrupted, is undone.
        """
        began = time.perf_counter()
        before = self.capture()
        results = self.epoch, self.best, self.best_epoch, self.kept, list(self.history)
        self.resumable = False
        try:
            row = self.whole_epoch(before)
            self.seconds += time.perf_counter() - began
        except BaseException:
            self.put_back(before)
            self.epoch, self.best, self.best_epoch, self.kept, self.history[:] = results
            self.resumable = True
            raise
        self.resumable = True
        return row

    def whole_epoch(self, before: dict[str, Any]) -> dict[str, float]:
        """Passes over the data once.

        Arguments:
            before: The state from which the epoch starts.
        """
        self.vae.train()
        total = torch.zeros((), dtype=torch.float64, device=self.train.x.device)
        parts = batches(len(self.train.x), self.batch_size, self.order)
        for number, rows in enumerate(parts, 1):
            total -= self.step(rows)
            # The validation rows are the last part.
            self.on_batch(number / (len(parts) + 1))
        row = self.end_of_epoch(total.item())
        if row is None:
            self.give_up(before)
        return row

    def end_of_epoch(self, total: float) -> dict[str, float] | None:
        """Enters an epoch into the history and returns its row, or ``None`` if it is not finite.

        Arguments:
            total: The sum of the objective over all rows.
        """
        row = {"epoch": self.epoch + 1, "train_objective": total / len(self.train.x)}
        row |= {name: schedule(self.steps - 1) for name, schedule in self.schedules.items()}
        if math.isfinite(row["train_objective"]) and self.valid is not None:
            row |= _validate(self.vae, self.valid, self.seed)
        _step_schedule(self.lr_schedule, row)
        whole = torch.stack([p.isfinite().all() for p in self.vae.parameters()]).all()
        if not bool(whole) or not all(math.isfinite(value) for value in row.values()):
            return None
        self.epoch += 1
        self.history.append(row)
        if self.valid is None or row["valid_elbo"] > self.best:
            self.best, self.best_epoch = row.get("valid_elbo", self.best), self.epoch
            self.kept = snapshot(self.vae)
        return row

    def step(self, rows: Tensor) -> Tensor:
        """Makes one optimizer step, and returns the loss summed over the rows."""
        self.set_scheduled()
        x, mask = self.presented(rows)
        compiled = self.compiled is not None and len(rows) == self.usual
        loss = self.compiled_step(x, mask) if compiled else self.eager_step(x, mask)
        self.steps += 1
        return loss

    def set_scheduled(self) -> None:
        """Sets the scalars of the objective that follow a schedule."""
        for name, schedule in self.schedules.items():
            _set_scalar(self.objective, name, schedule(self.steps))

    def eager_step(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Makes a step, operation by operation."""
        self.optimizer.zero_grad(set_to_none=True)
        # Pyro's checks of model, guide and shapes pay once; data are checked already.
        with pyro.validation_enabled(self.validating and self.steps == 0):
            loss = self.objective.differentiable_loss(self.vae.model, self.vae.guide, x, mask=mask)
        (loss / len(x)).backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def compiled_step(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Makes the same step in one graph, and notes if there is none after all."""
        assert self.compiled is not None
        loss = self.compiled(x, mask=mask)
        self.engine = str(self.compiled.engine)
        if self.engine == "eager":
            self.compiled = None
        return loss

    def waited(self, patience: int | None) -> bool:
        """Tells whether early stopping is due; the time before the schedules end counts not."""
        if patience is None:
            return False
        steps_each = len(batches(len(self.train.x), self.batch_size, torch.Generator()))
        settled = max((s.steps for s in self.schedules.values()), default=0) / steps_each
        return self.epoch - max(self.best_epoch, settled) >= patience

    def give_up(self, before: dict[str, Any]) -> NoReturn:
        """Goes back to the start of the epoch, finds out what went wrong, and raises."""
        self.put_back(before)
        first = self.steps
        self.vae.train()
        where = "the ELBO of the validation rows, or a weight after the last step, is not"
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
        raise NotFiniteError(
            f"The objective is no longer finite at step {failed} (epoch {self.epoch + 1}): "
            f"{where}. The weights are those after step {first}; try a lower learning rate or "
            f"clip_norm"
        )

    def capture(self) -> dict[str, Any]:
        """Returns a copy of all that a step changes."""
        device = self.train.x.device
        return {
            "weights": snapshot(self.vae),
            "objective": objective_state(self.objective),
            "optimizer": copied(self.optimizer.state_dict()),
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
        if captured.get("objective"):
            self.objective.load_state_dict(captured["objective"])
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
        return resume_state.fingerprint(
            self.train.x,
            batch_size=self.batch_size,
            seed=self.seed,
            objective=type(self.objective).__name__,
            objective_settings=objective_settings(self.objective, self.schedules),
            recipe=json.dumps(self.vae.recipe, sort_keys=True),
            # As text, because a missing value makes it NaN, which differs from itself.
            validation=None if self.valid is None else repr(self.valid.x.double().sum().item()),
            schedules={name: repr(schedule) for name, schedule in self.schedules.items()},
            optimizer=type(self.optimizer).__name__,
            settings=repr(sorted(plain(self.optimizer.defaults).items())),
            clip_norm=self.clip_norm,
            parameters=[list(p.shape) for p in self.vae.parameters()],
        )

    def state(self) -> dict[str, Any]:
        """Returns all that it takes to go on, in terms that a file without code can hold."""
        return {
            # A NumPy number, such as a learning rate, would make the file one that holds code.
            **plain(self.capture()),
            "fingerprint": self.fingerprint(),
            "kept": self.kept,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "threads": self.threads,
            "engine": self.engine,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Goes on from what :meth:`state` returned.

        Raises:
            ValueError: If it is that of another training.
        """
        for name, own in self.fingerprint().items():
            if state["fingerprint"].get(name) != own:
                raise ValueError(
                    f"Expected the training in {path} to be this one, got another {name}: "
                    f"{state['fingerprint'].get(name)} there, {own} here. Give another folder, or "
                    f"resume=False to begin anew"
                )
        self.put_back(state)
        self.kept = state["kept"]
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.history, self.threads = state["history"], state["threads"]
        self.engine = state.get("engine", "eager")
        self.products = "onednn" if self.engine == "compiled-onednn" else "mkl"
        self.precision = "bfloat16" if self.engine == "compiled-bfloat16" else "float32"

    def finish(self, *, best: bool = True) -> None:
        """Leaves the best weights in place, or the last, calibrated, in evaluation mode."""
        self.resumable = False
        if best:
            self.vae.load_state_dict(self.kept)
        self.vae.eval()
        self.set_scheduled()
        seed_device(self.train.x.device, self.seed)
        x, mask = self.presented(slice(None))
        self.vae.calibrate(x, mask=mask)


def _step_schedule(schedule: LRScheduler | None, row: Mapping[str, float]) -> None:
    """Moves the learning rate at the end of an epoch.

    A plateau is one of the validation ELBO, or else of the training objective; ``mode="min"``,
    PyTorch's default, is given the loss.
    """
    if isinstance(schedule, ReduceLROnPlateau):
        reached = row.get("valid_elbo", row["train_objective"])
        schedule.step(reached if schedule.mode == "max" else -reached)
    elif schedule is not None:
        schedule.step()


def _set_scalar(objective: Any, name: str, value: float) -> None:
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


def _validate(vae: VAE, valid: Rows, seed: int) -> dict[str, float]:
    """Returns the bound on the validation rows, under the same noise at each call."""
    with own_randomness(valid.x.device, seed), pyro.validation_enabled(False):
        bound, _ = estimators.estimate_elbo(vae, valid.x, mask=valid.mask)
    return {
        "valid_elbo": bound.elbo.mean().item(),
        "valid_rate": bound.rate.mean().item(),
        "valid_distortion": bound.distortion.mean().item(),
    }


@contextmanager
def same_threads(run: Training) -> Iterator[None]:
    """Uses the number of threads that the training began with: sums depend on it in their bits."""
    before = torch.get_num_threads()
    try:
        if before != run.threads:
            torch.set_num_threads(run.threads)
        yield
    finally:
        if before != run.threads:
            torch.set_num_threads(before)


@contextmanager
def in_tensors(run: Training, names: Iterable[str]) -> Iterator[None]:
    """Holds numbers of the objective in scalar tensors, and as numbers again after.

    As numbers they would be part of a graph, which each change would make anew.
    """
    numbers = {name: getattr(run.objective, name) for name in names}
    numbers = {name: value for name, value in numbers.items() if not isinstance(value, Tensor)}
    try:
        for name, value in numbers.items():
            setattr(run.objective, name, next(run.vae.parameters()).new_tensor(value))
        yield
    finally:
        for name, value in numbers.items():
            setattr(run.objective, name, value)
        run.set_scheduled()
