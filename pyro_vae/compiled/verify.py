"""Comparison of compiled and eager results, up to rounding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.compiled.graph import NotCapturedError

__all__ = ["BFLOAT16_TOLERANCE", "FLOAT32_TOLERANCE", "check_changes", "check_close"]

FLOAT32_TOLERANCE = 1e-4

_TOLERANCES = {torch.float64: 1e-9, torch.float32: FLOAT32_TOLERANCE}
"""The largest difference of a result, relative to its norm; 1e-2 in lower precision."""

BFLOAT16_TOLERANCE = 0.2
"""The same where the factors of matmuls are rounded to 8 bits."""


def check_close(
    name: str, actual: Sequence[Tensor], expected: Sequence[Tensor], min_tolerance: float = 0.0
) -> None:
    """Compares tensors by their norms.

    The difference of a tensor may be a small part of its norm, or of a hundredth of the norm of
    all tensors if that is larger. The rounding of numbers of size 1 is allowed in addition,
    because a gradient that is zero up to rounding has no significant digits.

    Raises:
        NotCapturedError: If a difference is larger.
    """
    total = sum(_norm(value) ** 2 for value in expected) ** 0.5
    for ours, theirs in zip(actual, expected, strict=True):
        tolerance = _TOLERANCES.get(theirs.dtype, 1e-2) if theirs.is_floating_point() else 0.0
        tolerance = max(tolerance, min_tolerance)
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())
        difference = float(torch.where(same, 0, ours.double() - theirs.double()).norm())
        if not difference <= tolerance * max(_norm(theirs), 0.01 * total) + _rounding_norm(theirs):
            raise NotCapturedError(_describe_difference(name, difference, _norm(theirs)))


def check_changes(
    name: str, before: Sequence[Tensor], actual: Sequence[Tensor], expected: Sequence[Tensor]
) -> None:
    """Compares updated tensors by the norms of their changes.

    The difference of a change may be a small part of its norm, plus the rounding of the tensor.

    Raises:
        NotCapturedError: If a difference is larger.
    """
    for start, ours, theirs in zip(before, actual, expected, strict=True):
        dtype = theirs.dtype
        rounding = 4 * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
        difference, change = _norm(ours.double() - theirs.double()), _norm(theirs - start)
        if not difference <= _TOLERANCES.get(dtype, 1e-2) * change + rounding * _norm(theirs):
            raise NotCapturedError(_describe_difference(name, difference, change))


def _rounding_norm(value: Tensor) -> float:
    """Returns the norm of the rounding errors of as many numbers of size 1."""
    eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return float(eps * value.numel() ** 0.5)


def _describe_difference(name: str, difference: float, size: float) -> str:
    return (
        f"the {name} differs from that of the eager step: its norm is {size:.3g}, that of the "
        f"difference {difference:.3g}"
    )


def _norm(value: Tensor) -> float:
    """Returns the Euclidean norm of the finite numbers."""
    value = value.detach().double()
    return float(torch.where(value.isfinite(), value, 0).norm())
