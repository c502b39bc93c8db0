"""Checks of arguments: a ``ValueError`` names the argument, the value and the expectation."""

import operator
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["check_positive", "check_seed", "check_shape", "check_size"]


def check_size(name: str, value: int, *, least: int) -> int:
    """Returns an integer of at least ``least``, or raises a ``ValueError``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected {name} to be an integer of at least {least}, got {value!r}")
    return value


def check_shape(name: str, shape: Sequence[int] | int) -> torch.Size:
    """Returns a shape of at least one dimension, or raises a ``ValueError``."""
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    if not sizes or not whole:
        raise ValueError(f"Expected {name} to be positive integers, got {shape!r}")
    return torch.Size(sizes)


def check_positive(name: str, value: float) -> float:
    """Returns a positive, finite number, or raises a ``ValueError``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 < value < float("inf")):
        wanted = "finite" if number and value > 0 else "positive"
        raise ValueError(f"Expected {name} to be {wanted}, got {value!r}")
    return value


def check_seed(seed: Any) -> int:
    """Returns a seed as an integer, or raises a ``ValueError`` if PyTorch does not accept it."""
    try:
        number = 2**64 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = 2**64
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"Expected seed to be an integer of 64 bits, got {seed!r}")
    return number
