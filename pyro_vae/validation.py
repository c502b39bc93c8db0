"""Argument checks, whose ``ValueError`` contains the name, the value and the expectation.

NumPy integers, floats and booleans are accepted; each check returns a plain Python value.
"""

import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "check_choice",
    "check_device",
    "check_flag",
    "check_number",
    "check_path",
    "check_positive",
    "check_scalar",
    "check_seed",
    "check_shape",
    "check_size",
    "check_sizes",
    "check_tensor",
    "check_variables",
    "describe_value",
    "list_names",
    "to_plain_python",
]

_INFINITY = float("inf")

_MAX_CHARACTERS = 100
"""The maximum length of a value in an error message."""

_MAX_NAMES = 8
"""The most names in an error message."""


def describe_value(value: Any) -> str:
    """Describes a value in one short line: arrays, tensors and tables by their type and shape."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if getattr(value, "ndim", 0) and hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, (nn.Module, torch.optim.Optimizer)):
        return f"an instance of {type(value).__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def list_names(names: Sequence[str]) -> str:
    """Returns names as text, the first few of many."""
    shown = ", ".join(repr(str(name)) for name in list(names)[:_MAX_NAMES])
    more = len(names) - _MAX_NAMES
    return f"{shown} and {more:,} others" if more > 0 else shown


def to_plain_python(value: Any) -> Any:
    """Converts NumPy scalars to Python numbers, also within containers."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple, set):
        return type(value)(map(to_plain_python, value))
    if type(value) is dict:
        return {key: to_plain_python(item) for key, item in value.items()}
    return value


def check_size(name: str, value: Any, *, least: int) -> int:
    """Returns an integer of at least ``least``, or raises a ``ValueError``."""
    if not _is_integer(value) or value < least:
        raise ValueError(
            f"Expected {name} to be an integer of at least {least}, got {describe_value(value)}"
        )
    return int(value)


def check_sizes(name: str, values: Any) -> tuple[int, ...]:
    """Returns a tuple of positive integers, or raises a ``ValueError``."""
    if not _are_sizes(values):
        raise ValueError(
            f"Expected {name} to be a list of positive integers, got {describe_value(values)}"
        )
    return tuple(int(value) for value in values)


def check_variables(latent_dim: Any, variables: Any) -> tuple[int, int]:
    """Returns the sizes of one-hot variables in one vector, or raises a ``ValueError``."""
    latent_dim = check_size("latent_dim", latent_dim, least=2)
    variables = check_size("variables", variables, least=1)
    if latent_dim % variables or latent_dim < 2 * variables:
        raise ValueError(
            f"Expected latent_dim to be the number of variables times that of their categories, of "
            f"which there are two or more, got {latent_dim=} with {variables=}"
        )
    return latent_dim, variables


def check_shape(name: str, shape: Sequence[int] | int) -> torch.Size:
    """Returns a shape of at least one dimension, or raises a ``ValueError``."""
    sizes: Any = (shape,) if _is_integer(shape) else shape
    if not _are_sizes(sizes) or not len(sizes):
        raise ValueError(f"Expected {name} to be positive integers, got {describe_value(shape)}")
    return torch.Size(int(size) for size in sizes)


def check_scalar(
    name: str,
    value: Any,
    *,
    least: float = -_INFINITY,
    most: float = _INFINITY,
    above: float | None = None,
    infinite: bool = False,
) -> float | Tensor:
    """Returns a number or scalar tensor, or raises a ``ValueError`` if it is out of range.

    Arguments:
        name: The name of the argument.
        value: Its value.
        least: The smallest allowed number.
        most: The largest allowed number.
        above: An exclusive lower bound, or ``None``.
        infinite: Whether infinity is allowed.
    """
    if isinstance(value, Tensor) and value.dim():
        raise ValueError(f"Expected {name} to be a scalar, got shape {tuple(value.shape)}")
    real = isinstance(value, Tensor) and not value.is_complex()
    real = real or (isinstance(value, Real) and not isinstance(value, bool))
    number = _to_float(value) if real else math.nan
    within = least <= number <= most and (above is None or number > above)
    if within and (infinite or math.isfinite(number)):
        return value if isinstance(value, Tensor) else number
    expected = "finite" if within else _describe_range(least, most, above)
    raise ValueError(f"Expected {name} to be {expected}, got {describe_value(value)}")


def check_number(name: str, value: Any, **limits: Any) -> float:
    """Returns a number as a float, or raises a ``ValueError``; tensors are refused.

    The limits are those of :func:`check_scalar`.
    """
    if isinstance(value, Tensor):
        raise ValueError(f"Expected {name} to be a number, got {describe_value(value)}")
    return float(check_scalar(name, value, **limits))


def check_positive(name: str, value: Any) -> float:
    """Returns a positive, finite number, or raises a ``ValueError``."""
    return check_number(name, value, above=0.0)


def check_seed(seed: Any) -> int:
    """Returns a seed as an integer, or raises a ``ValueError`` if PyTorch does not accept it."""
    if not _is_integer(seed) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"Expected seed to be an integer of 64 bits, got {describe_value(seed)}")
    return int(seed)


def check_flag(name: str, value: Any) -> bool:
    """Returns a boolean, or raises a ``ValueError``."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"Expected {name} to be True or False, got {describe_value(value)}")
    return bool(value)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Returns a value that is one of the choices, or raises a ``ValueError``."""
    value = to_plain_python(value)
    if not any(value is c or (isinstance(c, str) and _is_text(value, c)) for c in choices):
        alternatives = ", ".join(map(repr, choices[:-1]))
        expected = f"{alternatives} or {choices[-1]!r}" if alternatives else repr(choices[-1])
        raise ValueError(f"Expected {name} to be {expected}, got {describe_value(value)}")
    return value


def check_tensor(name: str, value: Any) -> Tensor:
    """Returns a tensor, or raises a ``ValueError`` that suggests a conversion."""
    if isinstance(value, Tensor):
        return value
    remedy = ""
    if isinstance(value, (np.ndarray, list)):
        remedy = f": convert it, torch.as_tensor({name}, dtype=torch.float32)"
    elif hasattr(value, "to_numpy"):
        remedy = f": convert it, torch.tensor({name}.to_numpy(), dtype=torch.float32)"
    raise ValueError(f"Expected {name} to be a torch.Tensor, got {type(value).__name__}{remedy}")


def check_path(name: str, value: Any) -> Path:
    """Returns a path, or raises a ``ValueError`` if the value is not one."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"Expected {name} to be a path, got {describe_value(value)}")
    return Path(value)


def check_device(device: Any) -> torch.device:
    """Returns a device of this machine, or raises a ``ValueError`` with PyTorch's reason."""
    try:
        checked_device = torch.device(device)
        # Reading a value back fails on the meta device.
        torch.zeros(1, device=checked_device).item()
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".")
        raise ValueError(
            f"Expected device to be one of this machine, such as cpu or cuda, got {device!r}: "
            f"{reason}"
        ) from None
    return checked_device


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _to_float(value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except OverflowError:
        return _INFINITY if value > 0 else -_INFINITY


def _are_sizes(values: Any) -> bool:
    is_vector = isinstance(values, np.ndarray) and values.ndim == 1
    is_list = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
    return (is_vector or is_list) and all(_is_integer(n) and n > 0 for n in values)


def _is_text(value: Any, choice: str) -> bool:
    return isinstance(value, str) and value == choice


def _describe_range(least: float, most: float, above: float | None) -> str:
    if above is not None:
        if most < _INFINITY:
            return f"within ({above:g}, {most:g}]"
        return f"above {above:g}" if above else "positive"
    if most == _INFINITY:
        return {0.0: "zero or more", -_INFINITY: "a number"}.get(least, f"at least {least:g}")
    return f"within [{least:g}, {most:g}]"
