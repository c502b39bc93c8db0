"""Scalars of an objective, or of a part of a VAE, that change during training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["apply_schedule", "find_scalars", "store_scalars_as_tensors"]


def find_scalars(vae: nn.Module) -> list[str]:
    """Returns the names of the scalars of parts that a schedule may change."""
    return [
        f"{role}.{name}"
        for role, part in vae.named_children()
        for name in getattr(part, "schedulable", ())
    ]


def apply_schedule(run: Any, name: str) -> None:
    """Sets a scalar to the value of its schedule, in place if it is a tensor."""
    role, _, attribute = name.rpartition(".")
    owner = run.vae.get_submodule(role) if role else run.objective
    value, scalar = run.schedules[name](run.steps), getattr(owner, attribute)
    if isinstance(scalar, Tensor):
        scalar.fill_(value)
    else:
        setattr(owner, attribute, value)


@contextmanager
def store_scalars_as_tensors(run: Any, names: Iterable[str]) -> Iterator[None]:
    """Stores numbers of the objective as scalar tensors within the context.

    A graph contains numbers as constants, so each change would need another compilation. The
    scalars of parts are tensors always.
    """
    numbers = {name: getattr(run.objective, name) for name in names if "." not in name}
    numbers = {name: value for name, value in numbers.items() if not isinstance(value, Tensor)}
    try:
        for name, value in numbers.items():
            setattr(run.objective, name, next(run.vae.parameters()).new_tensor(value))
        yield
    finally:
        for name, value in numbers.items():
            setattr(run.objective, name, value)
        run.apply_schedules()
