"""Checks of the arguments of ``fit`` and ``fit_many``."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro.optim import PyroOptim
from torch import Tensor
from torch.nn import RNNBase
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from pyro_vae.compiled import worth_compiling
from pyro_vae.compiled.heuristic import check_compile
from pyro_vae.compiled.step import PRECISIONS
from pyro_vae.data import Data, Rows
from pyro_vae.data.sparse_rows import is_sparse
from pyro_vae.masking import expand_mask, fill_missing
from pyro_vae.networks import Embedding
from pyro_vae.networks.images import check_channels_first
from pyro_vae.objectives import Schedule
from pyro_vae.progress import check_progress
from pyro_vae.training.network_checks import check_networks
from pyro_vae.training.scalars import find_scalars
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import (
    check_choice,
    check_number,
    check_path,
    check_positive,
    check_size,
    check_tensor,
    describe_value,
    list_names,
)

__all__ = [
    "as_rows",
    "check_data",
    "check_factories",
    "check_folder",
    "check_numbers",
    "check_objective_schedules",
    "check_outputs",
    "check_precision",
    "check_vaes",
    "choose_engine",
    "require_writable",
    "spread_arguments",
]


def as_rows(name: str, x: Tensor | Rows) -> Rows:
    """Converts a tensor to rows without mask; raises a ``ValueError`` for other types."""
    if isinstance(x, Data):
        raise ValueError(f"Expected {name} to be rows, got Data: pass data.{name}")
    if isinstance(x, (DataLoader, Dataset, tuple)) and not isinstance(x, Rows):
        raise ValueError(f"Expected {name} to be one tensor of all rows, got {type(x).__name__}")
    rows = x if isinstance(x, Rows) else Rows(x)
    check_tensor(name, rows.x)
    if is_sparse(rows.x) and rows.dynamic:
        raise ValueError(f"Expected {name} to be dense, because rows are redrawn, got sparse rows")
    if not rows.x.dim():
        raise ValueError(f"Expected {name} to have rows, got a tensor of shape ()")
    return rows


def check_numbers(
    epochs: int,
    batch_size: int,
    clip_norm: float | None,
    patience: int | None,
) -> tuple[int, int, float | None, int | None]:
    """Returns the arguments as plain numbers, or raises a ``ValueError`` for one out of range."""
    return (
        check_size("epochs", epochs, least=1),
        check_size("batch_size", batch_size, least=1),
        None if clip_norm is None else check_positive("clip_norm", clip_norm),
        None if patience is None else check_size("patience", patience, least=1),
    )


def check_objective_schedules(
    objective: Any, schedules: Mapping[str, Schedule], steps: int, vae: VAE
) -> Mapping[str, Schedule]:
    """Returns the schedules, or raises a ``ValueError`` if they or the objective are invalid."""
    if isinstance(objective, type) or not hasattr(objective, "differentiable_loss"):
        kind = type(objective).__name__
        if isinstance(objective, type):
            kind = f"the class {objective.__name__}: pass an instance, {objective.__name__}()"
        raise ValueError(f"Expected an objective with differentiable_loss, got {kind}")
    check_size("num_particles", getattr(objective, "num_particles", 1), least=1)
    if not isinstance(schedules, Mapping):
        raise ValueError(
            f"Expected schedules to map names, such as beta, to schedules, got "
            f"{describe_value(schedules)}"
        )
    of_parts = find_scalars(vae)
    for name, schedule in schedules.items():
        if not isinstance(schedule, Schedule):
            raise ValueError(
                f"Expected schedules of {name} to be a Schedule, got {describe_value(schedule)}"
            )
        if not isinstance(name, str) or not (name in of_parts or hasattr(objective, name)):
            others = f", or {list_names(of_parts)}" if of_parts else ""
            raise ValueError(
                f"Expected schedules of scalars that {type(objective).__name__} has{others}, got "
                f"{name!r}"
            )
        if name in of_parts and min(schedule.start, schedule.end) <= 0:
            raise ValueError(f"Expected positive values of {name}, got {schedule}")
        if schedule.steps > steps:
            raise ValueError(
                f"Expected the schedule of {name} to end within the training's {steps} steps, got "
                f"{schedule}: {name} would never reach {schedule.end:g}"
            )
    return schedules


def check_factories(make: Any, lr_schedule: Any) -> None:
    """Raises a ``ValueError`` unless both factories are callable."""
    if not callable(make) or isinstance(make, PyroOptim):
        raise ValueError(
            f"Expected optimizer to build one from parameters, got {_describe_factory(make)}: pass "
            f"a class of torch.optim, or functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    if lr_schedule is not None and not callable(lr_schedule):
        raise ValueError(
            f"Expected lr_schedule to build a scheduler from an optimizer, got "
            f"{_describe_factory(lr_schedule)}: pass a class of torch.optim.lr_scheduler, or a "
            f"functools.partial of one"
        )


def check_outputs(tracker: Any, progress: bool | None, checkpoint_seconds: float) -> float:
    """Returns the seconds, or raises a ``ValueError`` if an argument is invalid."""
    check_progress(progress)
    if tracker is not None and not callable(getattr(tracker, "log", None)):
        raise ValueError(
            f"Expected tracker to have a method log(values, step), got {describe_value(tracker)}"
        )
    return check_number("checkpoint_seconds", checkpoint_seconds, least=0.0, infinite=True)


def check_precision(precision: str, compile: bool | str) -> bool | str:
    """Returns ``compile`` for a precision, or raises a ``ValueError`` if the two do not fit."""
    check_choice("precision", precision, PRECISIONS)
    if precision == "float32":
        return compile
    if compile is False:
        raise ValueError(f"Expected compiled steps, which {precision=} needs, got {compile=}")
    return True if compile == "auto" else compile


def choose_engine(compile: bool | str, vae: VAE, objective: Any, rows: int, steps: int) -> str:
    """Returns ``"compiled"`` or ``"eager"``, or raises a ``ValueError`` for another ``compile``."""
    check_compile(compile)
    if compile == "auto":
        # A graph repeats a recurrent network for each step, and takes minutes to compile.
        if any(isinstance(module, RNNBase) for module in vae.modules()):
            return "eager"
        weights = sum(p.numel() for p in vae.parameters() if p.requires_grad)
        rows *= getattr(objective, "num_particles", 1)
        return "compiled" if worth_compiling(steps, rows, weights) else "eager"
    return "compiled" if compile else "eager"


def check_data(vae: VAE, train: Rows, valid: Rows | None, patience: int | None) -> None:
    """Raises a ``ValueError`` if the VAE cannot be trained on the data."""
    if not isinstance(vae, VAE):
        raise ValueError(f"Expected vae to be a VAE, got {describe_value(vae)}")
    for role in ("encoder", "decoder"):
        check_channels_first(role, getattr(vae, role), vae.event_shape)
    if patience is not None and valid is None:
        raise ValueError(f"Expected valid, which {patience=} needs, got None")
    if valid is not None and valid.dynamic:
        raise ValueError("Expected valid to be rows drawn once, got rows redrawn for each batch")
    for name, rows in (("train", train), ("valid", valid)):
        if rows is None:
            continue
        if rows.dynamic and not bool(((rows.x >= 0) & (rows.x <= 1)).all()):
            raise ValueError(
                "Expected x to be probabilities, because rows are redrawn for each batch, got "
                "other values"
            )
        if isinstance(vae.encoder, Embedding):
            observed = (
                rows.x
                if rows.mask is None
                else fill_missing(rows.x, expand_mask(rows.mask, rows.x, vae.event_shape))
            )
            if not bool(((observed >= 0) & (observed <= 1)).all()):
                raise ValueError(
                    f"Expected {name} to hold levels between 0 and 1 for an Embedding as encoder, "
                    f"got other values"
                )
        try:
            x = (rows.x > 0.5).to(rows.x.dtype) if rows.dynamic else rows.x
            vae.check(x, rows.mask, rows.covariates)
        except ValueError as error:
            raise ValueError(f"{error} (in valid)" if name == "valid" else str(error)) from error
    check_networks(vae, train)


def check_folder(out: Path | str | None, resume: bool) -> Path | None:
    """Returns the folder, created if it is missing."""
    if out is None:
        if resume:
            raise ValueError("Expected out, the folder to resume from, got None")
        return None
    folder = check_path("out", out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Expected out to be a folder, got the file {folder}")
    with require_writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_vaes(vaes: Any) -> list[VAE]:
    """Returns VAEs, or raises a ``ValueError`` for an empty sequence or a shared parameter."""
    found = list(vaes) if isinstance(vaes, Iterable) and not isinstance(vaes, Mapping) else []
    if not found:
        raise ValueError(f"Expected vaes to be one or more VAEs, got {describe_value(vaes)}")
    owner: dict[int, int] = {}
    for i, vae in enumerate(found):
        if not isinstance(vae, VAE):
            raise ValueError(f"Expected vaes to be VAEs, got {type(vae).__name__} at {i}")
        for parameter in vae.parameters():
            if (first := owner.setdefault(id(parameter), i)) != i:
                raise ValueError(f"Expected vaes without a common parameter, got {first} and {i}")
    return found


def spread_arguments(count: int, **arguments: Any) -> list[dict[str, Any]]:
    """Returns the arguments of each VAE, or raises a ``ValueError`` if there are more or fewer."""
    each: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in arguments.items():
        if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
            value = value.tolist()
        values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
        values = [value] * count if values is None else values
        if len(values) != count:
            raise ValueError(
                f"Expected one value of {name} for each of {count} VAEs, got {len(values)}"
            )
        for i, own in enumerate(each):
            is_shared = any(values[i] is other for other in values[:i])
            # Objectives keep a state, so each VAE needs a separate one.
            is_copied = is_shared and hasattr(values[i], "differentiable_loss")
            own[name] = copy.deepcopy(values[i]) if is_copied else values[i]
    return each


def _describe_factory(value: Any) -> str:
    if isinstance(value, (PyroOptim, LRScheduler)):
        return f"an instance of {type(value).__name__}"
    return describe_value(value)


@contextmanager
def require_writable(folder: Path) -> Iterator[None]:
    """Raises a ``ValueError`` if the folder cannot be created or written to."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"Expected out to be a folder that can be written to, got '{folder}': "
            f"{error.strerror or error}"
        ) from error
