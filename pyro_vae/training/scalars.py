"""Scalars of an objective that change during training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

__all__ = ["set_scalar", "store_scalars_as_tensors"]


def set_scalar(objective: Any, name: str, value: float) -> None:
    """Sets a scalar of an objective, in place if it is a tensor."""
    scalar = getattr(objective, name)
    if isinstance(scalar, Tensor):
        scalar.fill_(value)
    else:
        setattr(objective, name, value)


@contextmanager
def store_scalars_as_tensors(run: Any, names: Iterable[str]) -> Iterator[None]:
    """Stores numbers of the objective as scalar tensors within the context.

    A graph contains numbers as constants, so each change would need another compilation.
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
        run.apply_schedules()
