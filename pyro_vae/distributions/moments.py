"""Moments of distributions without closed forms, from quasi-random numbers."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

__all__ = ["estimate_moments", "normal_points", "uniform_points"]

NUM_POINTS = 512
"""The number of points of an estimate."""

_MAX_ELEMENTS = 2**22
"""The most elements of a sample in memory at once."""


def uniform_points(dim: int, like: Tensor) -> Tensor:
    """Returns the same scrambled Sobol points of the open unit cube at each call."""
    points = SobolEngine(dim, scramble=True, seed=0).draw(NUM_POINTS, dtype=torch.float64)
    # In single precision the end points would be infinite after a quantile function.
    return points.clamp(1e-6, 1 - 1e-6).to(like)


def normal_points(dim: int, like: Tensor) -> Tensor:
    """Returns the same quasi-random points of a standard normal at each call."""
    return torch.special.ndtri(uniform_points(dim, like))


def estimate_moments(
    transform: Callable[[Tensor], Tensor], points: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimates mean and variance of a function of noise.

    The error is of the order of one per cent of a standard deviation; the same noise gives the
    same estimate.

    Arguments:
        transform: Maps noise of shape ``(points, dim)`` to values of shape ``(points, *shape)``.
        points: The noise.
    """
    # Sums of differences from one value do not cancel.
    shift = transform(points[:1])[0].detach()
    total, square = torch.zeros_like(shift), torch.zeros_like(shift)
    size = max(1, _MAX_ELEMENTS // max(1, shift.numel()))
    for start in range(0, len(points), size):
        centred = transform(points[start : start + size]) - shift
        total, square = total + centred.sum(0), square + centred.square().sum(0)
    mean = total / len(points)
    return shift + mean, square / len(points) - mean**2
