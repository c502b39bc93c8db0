"""The training loop: the state of a training, and its epochs and steps."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vae.compiled.optimizer_step import check_optimizer
from pyro_vae.compiled.step import Step, compile
from pyro_vae.data import Batch, Rows
from pyro_vae.data.checksum import hash_tensors
from pyro_vae.data.sparse_rows import spread_rows
from pyro_vae.objectives import Schedule
from pyro_vae.objectives.core.enumeration import mark_enumerated
from pyro_vae.objectives.core.tracing import find_nonfinite_site
from pyro_vae.seeding import seed_device
from pyro_vae.training import resume_file
from pyro_vae.training.batches import draw_batches, split_batches, stack_batches
from pyro_vae.training.scalars import apply_schedule
from pyro_vae.training.snapshot import (
    copy_objective_state,
    copy_state,
    read_objective_settings,
)
from pyro_vae.training.validator import Validator
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import describe_value, to_plain_python

__all__ = [
    "MakeOptimizer",
    "MakeSchedule",
    "NotFiniteError",
    "Training",
]

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class NotFiniteError(FloatingPointError):
    """Raised when the objective of a training, or a weight, is no longer finite."""


@dataclass
class Training:
    """The settings and the state of a training."""

    vae: VAE
    objective: Any
    make_optimizer: MakeOptimizer
    make_schedule: MakeSchedule | None
    schedules: Mapping[str, Schedule]
    train: Rows
    valid: Rows | None
    epochs: int
    batch_size: int
    clip_norm: float | None
    patience: int | None
    seed: int
    engine: str
    strict: bool
    precision: Literal["float32", "bfloat16"]
    products: Literal["auto", "mkl", "onednn"] = "auto"
    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    threads: int = field(default_factory=torch.get_num_threads)
    history: list[dict[str, float]] = field(default_factory=list)
    resumable: bool = True
    """Whether the state is that of the end of an epoch, from which a training can be resumed."""
    content: str = ""
    """The checksum of the data, once it is computed."""
    on_batch: Callable[[float], None] = lambda fraction: None
    """Called after each batch with the completed fraction of the epoch."""

    @cached_property
    def guide(self) -> Callable[..., Any]:
        """The guide as the objective needs it."""
        return mark_enumerated(self.objective, self.vae.guide)

    def start(self) -> None:
        """Creates the optimizer, its schedule and the generator, and initializes the VAE."""
        self.validating = is_validation_enabled()
        device = self.train.x.device
        self.order = torch.Generator(device=device).manual_seed(self.seed)
        self.optimizer = self.make_optimizer([p for p in self.vae.parameters() if p.requires_grad])
        check_optimizer("the result of optimizer", self.optimizer)
        for group in self.optimizer.param_groups:
            numbers = {name: value for name, value in group.items() if name != "params"}
            # A learning rate that is a tensor would be changed for its owner too.
            group.update(copy_state(to_plain_python(numbers)))
        make_schedule = self.make_schedule
        self.lr_schedule = None if make_schedule is None else make_schedule(self.optimizer)
        if make_schedule is not None and not isinstance(self.lr_schedule, LRScheduler):
            raise ValueError(
                f"Expected lr_schedule to build a scheduler of torch.optim.lr_scheduler, got "
                f"{describe_value(self.lr_schedule)}"
            )
        self.vae.initialize(*self.get_batch(spread_rows(self.train.x))[:2])
        self.best_weights = copy_state(self.vae.state_dict())
        self.compiled: Step | None = None
        self.set_validator(compiled=False)

    def set_validator(self, *, compiled: bool) -> None:
        """Sets how the validation rows are evaluated."""
        if self.valid is not None:
            self.validator = Validator(self.vae, self.valid, self.seed, compiled=compiled)

    def prepare(self) -> None:
        """Compiles the step for batches of the usual size, unless the engine is eager."""
        if self.engine == "eager":
            return
        self.set_validator(compiled=True)
        self.usual_size = self.batch_sizes()[0]
        self.compiled = compile(
            self.objective,
            self.vae.model,
            self.guide,
            parameters=self.vae.parameters(),
            products=self.products,
            precision=self.precision,
            strict=self.strict,
            divide_by=self.usual_size,
            optimizer=self.optimizer,
            clip_norm=self.clip_norm,
            # The data are already validated, and each epoch checks its loss at the end.
            validate=False,
        )

    def batch_sizes(self) -> list[int]:
        """Returns the number of rows of each batch of an epoch."""
        return list(map(len, draw_batches(len(self.train.x), self.batch_size, torch.Generator())))

    def get_batch(self, index: Tensor | slice) -> Batch:
        """Returns training rows, with dynamic rows drawn for this batch."""
        return self.train.batch(index, self.order)

    def train_epoch(self) -> dict[str, float]:
        """Trains for one epoch, and returns its row of the history.

        An error or interrupt during the epoch restores the state before it.
        """
        start = time.perf_counter()
        before = self.capture()
        progress = self.epoch, self.best, self.best_epoch, self.best_weights, list(self.history)
        self.resumable = False
        self.vae.train()
        try:
            row = self.one_epoch(before)
            self.seconds += time.perf_counter() - start
        except BaseException:
            self.restore(before)
            self.epoch, self.best, self.best_epoch, self.best_weights, self.history[:] = progress
            self.resumable = True
            raise
        self.resumable = True
        return row

    def one_epoch(self, before: dict[str, Any]) -> dict[str, float]:
        """Makes the steps of one epoch, and returns its row of the history.

        Arguments:
            before: The state from which the epoch starts.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.train.x.device)
        batches = draw_batches(len(self.train.x), self.batch_size, self.order)
        done = 0
        for block in self.split_batches(batches):
            total -= self.step(block[0]) if len(block) == 1 else self.compiled_steps(block)
            done += len(block)
            # Validation counts as one more batch.
            self.on_batch(done / (len(batches) + 1))
        row = self.record_epoch(total.item())
        if row is None:
            self.give_up(before)
        return row

    def record_epoch(self, total: float) -> dict[str, float] | None:
        """Adds an epoch to the history and returns its row, or ``None`` if it is not finite.

        Arguments:
            total: The sum of the objective over all rows.
        """
        row = {"epoch": self.epoch + 1, "train_objective": total / len(self.train.x)}
        row |= {name: schedule(self.steps - 1) for name, schedule in self.schedules.items()}
        if math.isfinite(row["train_objective"]) and self.valid is not None:
            row |= self.validator()
        _step_schedule(self.lr_schedule, row)
        finite = torch.stack([p.isfinite().all() for p in self.vae.parameters()]).all()
        if not bool(finite) or not all(math.isfinite(value) for value in row.values()):
            return None
        self.epoch += 1
        self.history.append(row)
        # While a schedule changes a part, each epoch has another model: the last one is the best.
        changing = any("." in n and self.steps < s.steps for n, s in self.schedules.items())
        if self.valid is None or changing or row["valid_elbo"] > self.best:
            self.best = -math.inf if changing else row.get("valid_elbo", self.best)
            self.best_epoch = self.epoch
            self.best_weights = copy_state(self.vae.state_dict())
        return row

    def split_batches(self, batches: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Splits the batches of an epoch into those for one call of the compiled step each."""
        if self.compiled is None or self.schedules:
            return [[batch] for batch in batches]
        return split_batches(batches, self.train.x.shape[1:].numel())

    def compiled_steps(self, batches: Sequence[Tensor]) -> Tensor:
        """Makes compiled steps in one call, and returns their losses summed over all rows."""
        if self.compiled is None:
            return torch.stack([self.step(rows) for rows in batches]).double().sum()
        parts = [self.get_batch(rows) for rows in batches]
        x, mask, covariates = stack_batches(parts)
        losses = self.compiled.loop(x, mask=mask, **_name_covariates(covariates))
        self.note_engine()
        self.steps += len(batches)
        return losses.double().sum()

    def step(self, rows: Tensor) -> Tensor:
        """Makes one optimizer step, and returns the loss summed over the rows."""
        self.apply_schedules()
        batch = self.get_batch(rows)
        compiled = self.compiled is not None and len(rows) == self.usual_size
        loss = self.compiled_step(batch) if compiled else self.eager_step(batch)
        self.steps += 1
        return loss

    def apply_schedules(self) -> None:
        """Sets the scalars of the objective and of parts that follow a schedule."""
        for name in self.schedules:
            apply_schedule(self, name)

    def eager_step(self, batch: Batch) -> Tensor:
        """Makes a step in eager mode, and returns the loss summed over the rows."""
        x, mask, covariates = batch
        self.optimizer.zero_grad(set_to_none=True)
        # Pyro's checks of model, guide and shapes are needed only once.
        with pyro.validation_enabled(self.validating and self.steps == 0):
            loss = self.objective.differentiable_loss(
                self.vae.model, self.guide, x, mask=mask, **_name_covariates(covariates)
            )
        (loss / len(x)).backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def compiled_step(self, batch: Batch) -> Tensor:
        """Makes the same step in one graph; returns to eager steps if compilation failed."""
        assert self.compiled is not None
        loss = self.compiled(batch.x, mask=batch.mask, **_name_covariates(batch.covariates))
        self.note_engine()
        return loss

    def note_engine(self) -> None:
        """Reads the engine of the last compiled step."""
        assert self.compiled is not None
        self.engine = str(self.compiled.engine)
        if self.engine == "eager":
            self.compiled = None

    def is_complete(self) -> bool:
        """Whether this was the last epoch; patience is counted from the end of the schedules."""
        if self.patience is None:
            return self.epoch >= self.epochs
        scheduled_steps = max((s.steps for s in self.schedules.values()), default=0)
        since = max(self.best_epoch, scheduled_steps / len(self.batch_sizes()))
        return self.epoch >= self.epochs or self.epoch - since >= self.patience

    def give_up(self, before: dict[str, Any]) -> NoReturn:
        """Restores the start of the epoch, finds the cause, and raises a ``NotFiniteError``.

        Arguments:
            before: The state at the start of the epoch.
        """
        self.restore(before)
        last_good = self.steps
        self.vae.train()
        where = "the ELBO of the validation rows or a weight after the last step is not finite"
        for rows in draw_batches(len(self.train.x), self.batch_size, self.order):
            state = self.capture()
            if not math.isfinite(self.step(rows)):
                self.restore(state)
                x, mask, covariates = self.get_batch(rows)
                named = _name_covariates(covariates)
                with pyro.validation_enabled(False):
                    where = find_nonfinite_site(self.vae.model, self.guide, x, mask=mask, **named)
                break
        failed = self.steps + 1
        self.restore(before)
        raise NotFiniteError(
            f"The objective is no longer finite at step {failed} (epoch {self.epoch + 1}): "
            f"{where}. The weights are those after step {last_good}; try a lower learning rate or "
            f"clip_norm"
        )

    def capture(self) -> dict[str, Any]:
        """Returns a copy of the state that a step changes."""
        device = self.train.x.device
        return {
            "weights": copy_state(self.vae.state_dict()),
            "objective": copy_objective_state(self.objective),
            "optimizer": copy_state(self.optimizer.state_dict()),
            "lr_schedule": None if self.lr_schedule is None else self.lr_schedule.state_dict(),
            "order": self.order.get_state(),
            "noise": torch.get_rng_state(),
            "device_noise": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "steps": self.steps,
        }

    def restore(self, captured: dict[str, Any]) -> None:
        """Restores a state of :meth:`capture`."""
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
        """Returns the settings and data summary that must match for this training to be resumed."""
        return resume_file.build_fingerprint(
            self.train.x,
            batch_size=self.batch_size,
            seed=self.seed,
            objective=type(self.objective).__name__,
            objective_settings=read_objective_settings(self.objective, self.schedules),
            recipe=json.dumps(self.vae.recipe, sort_keys=True),
            # Missing values make the sum NaN, which is not equal to itself, unlike its text.
            validation=None if self.valid is None else repr(resume_file.add_up(self.valid.x)),
            content=self.hash_data(),
            schedules={name: repr(schedule) for name, schedule in self.schedules.items()},
            optimizer=type(self.optimizer).__name__,
            settings=repr(sorted(to_plain_python(self.optimizer.defaults).items())),
            clip_norm=self.clip_norm,
            parameters=[list(p.shape) for p in self.vae.parameters()],
        )

    def hash_data(self) -> str:
        """Returns a checksum of all rows with their masks and covariates, computed once."""
        if not self.content:
            parts = [(p.x, p.mask, p.covariates) for p in (self.train, self.valid) if p is not None]
            self.content = hash_tensors([t for part in parts for t in part])
        return self.content

    def state_dict(self) -> dict[str, Any]:
        """Returns the state from which a training is resumed, as tensors and plain values."""
        return {
            # A NumPy number, such as a learning rate, cannot be read with weights_only=True.
            **to_plain_python(self.capture()),
            "fingerprint": self.fingerprint(),
            "kept": self.best_weights,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "threads": self.threads,
            "engine": self.engine,
        }

    def resume_from(self, state: dict[str, Any], path: Path) -> None:
        """Restores a state of :meth:`state_dict`.

        Arguments:
            state: The state.
            path: The file of the state, for error messages.

        Raises:
            ValueError: If it is the state of another training.
        """
        change = resume_file.find_change(state["fingerprint"], self.fingerprint())
        if change is not None:
            name, other, own = change
            raise ValueError(
                f"Expected the training in {path} to be this one, got a different value of "
                f"{name}: {other} there, {own} here. Pass another folder, or resume=False to start "
                f"again"
            )
        self.restore(state)
        self.best_weights = state["kept"]
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.history, self.threads = state["history"], state["threads"]
        self.engine = state.get("engine", "eager")
        self.products = "onednn" if self.engine == "compiled-onednn" else "mkl"
        self.precision = "bfloat16" if self.engine == "compiled-bfloat16" else "float32"

    def finish(self, *, best: bool = True) -> None:
        """Calibrates the VAE and sets evaluation mode, with the best weights or the last."""
        self.resumable = False
        self.apply_schedules()
        # The scalars of parts belong to the weights.
        if best:
            self.vae.load_state_dict(self.best_weights)
        self.vae.eval()
        seed_device(self.train.x.device, self.seed)
        x, mask, _, covariates = self.train
        if self.train.dynamic:
            x = self.get_batch(slice(None)).x
        self.vae.calibrate(x, mask=mask, covariates=covariates)


def _name_covariates(covariates: Tensor | None) -> dict[str, Tensor]:
    """Returns covariates as keywords of model and guide, which other programs may lack."""
    return {} if covariates is None else {"covariates": covariates}


def _step_schedule(schedule: LRScheduler | None, row: Mapping[str, float]) -> None:
    """Updates the learning rate at the end of an epoch.

    ``ReduceLROnPlateau`` gets the validation ELBO, or else the training objective. For
    ``mode="min"``, PyTorch's default, the sign is changed.
    """
    if isinstance(schedule, ReduceLROnPlateau):
        metric = row.get("valid_elbo", row["train_objective"])
        schedule.step(metric if schedule.mode == "max" else -metric)
    elif schedule is not None:
        schedule.step()
