"""Whether two computations gave the same, but for rounding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.compiled.graph import NotCapturedError

__all__ = ["TOLERANCE_OF_BFLOAT16", "check", "check_changes"]

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Up to which part of its norm a result may differ; 1e-2 in lower precision."""

TOLERANCE_OF_BFLOAT16 = 0.2
"""The same where the factors of products are rounded to 8 bits."""


def check(
    what: str, found: Sequence[Tensor], expected: Sequence[Tensor], least: float = 0.0
) -> None:
    """Compares tensors by their norms.

    A tensor may differ by a small part of its own norm, or of a hundredth of the norm of all where
    it is smaller than that, and by the rounding of numbers of size 1: a gradient that is zero but
    for rounding has no digits.

    Raises:
        NotCapturedError: If one differs by more.
    """
    whole = sum(_norm(value) ** 2 for value in expected) ** 0.5
    for one, other in zip(found, expected, strict=True):
        tolerance = _TOLERANCES.get(other.dtype, 1e-2) if other.is_floating_point() else 0.0
        tolerance = max(tolerance, least)
        same = (one == other) | (one.isnan() & other.isnan())
        difference = float(torch.where(same, 0, one.double() - other.double()).norm())
        if not difference <= tolerance * max(_norm(other), 0.01 * whole) + rounding(other):
            raise NotCapturedError(_said(what, difference, _norm(other)))


def check_changes(
    what: str, before: Sequence[Tensor], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> None:
    """Compares what became of tensors, by the norms of their changes.

    A change may differ by a small part of its norm, and by the rounding of the tensor itself.

    Raises:
        NotCapturedError: If one differs by more.
    """
    for start, one, other in zip(before, found, expected, strict=True):
        kind = other.dtype
        rounding = 4 * torch.finfo(kind).eps if kind.is_floating_point else 0.0
        difference, change = _norm(one.double() - other.double()), _norm(other - start)
        if not difference <= _TOLERANCES.get(kind, 1e-2) * change + rounding * _norm(other):
            raise NotCapturedError(_said(what, difference, change))


def rounding(value: Tensor) -> float:
    """Returns the norm of the rounding errors of as many numbers of size 1."""
    eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return float(eps * value.numel() ** 0.5)


def _said(what: str, difference: float, size: float) -> str:
    """Returns what is told of a difference."""
    return (
        f"the {what} differs from the eager step's, by a norm of {difference:.3g} where that is "
        f"{size:.3g}"
    )


def _norm(value: Tensor) -> float:
    """Returns the Euclidean norm of all numbers that are finite."""
    value = value.detach().double()
    return float(torch.where(value.isfinite(), value, 0).norm())
