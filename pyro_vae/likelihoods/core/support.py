"""Checks of supports that several likelihoods share."""

import torch
from torch import Tensor

from pyro_vae.distributions.grid import Grid

__all__ = ["check_finite_data", "check_levels_data", "check_positive_data"]

_MAX_LEVELS = 257
"""The limit of the levels that an error suggests."""


def check_finite_data(x: Tensor, name: str) -> None:
    """Raises a ``ValueError`` unless all values are finite."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"Expected x to be finite for a {name} likelihood, got infinite values")


def check_levels_data(x: Tensor, levels: int, name: str) -> None:
    """Raises a ``ValueError`` unless all values lie on the grid of levels."""
    on_grid = Grid(levels).check(x)
    if not bool(on_grid.all()):
        own = next((n for n in range(2, _MAX_LEVELS) if bool(Grid(n).check(x[:1000]).all())), None)
        remedy = (
            "scale the data to [0, 1] and set the number of their levels (vae.likelihood.levels)"
            if own is None
            else f"the values look like {own} levels (vae.likelihood.levels={own})"
        )
        raise ValueError(
            f"Expected x to be one of {levels} levels, l / {levels - 1}, for a {name} likelihood, "
            f"got {x[~on_grid][0].item():.4g}: {remedy}"
        )


def check_positive_data(x: Tensor, name: str) -> None:
    """Raises a ``ValueError`` unless all values are positive and finite."""
    valid = (x > 0) & x.isfinite()
    if not bool(valid.all()):
        raise ValueError(
            f"Expected x to be positive for a {name} likelihood, got {x[~valid][0].item():.4g}: "
            f"use a likelihood of real numbers, or do not standardize the data "
            f"(data.standardize=false)"
        )
