"""Sums over rows for the M step of a mixture; NaN marks missing values."""

import torch
from torch import Tensor

__all__ = ["average_columns", "count_columns", "count_levels", "sum_rows"]


def sum_rows(responsibilities: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weights of observed values and their weighted sums, in each component.

    Arguments:
        responsibilities: The weight of each row in each component, ``(N, K)``.
        x: Rows of elements, ``(N, D)``.

    Returns:
        Weights of shape ``(K, D)``, or ``(K, 1)`` without missing values, and sums ``(K, D)``.
    """
    missing = x.isnan()
    if not bool(missing.any()):
        return responsibilities.sum(0).unsqueeze(1), responsibilities.T @ x
    return responsibilities.T @ (~missing).to(x.dtype), responsibilities.T @ x.nan_to_num()


def count_columns(x: Tensor) -> Tensor:
    """Returns the number of observed values of each column, ``(D,)``."""
    return (~x.isnan()).sum(0).to(x.dtype)


def average_columns(x: Tensor) -> Tensor:
    """Returns the mean of the observed values of each column, ``(D,)``; 0 without any."""
    return torch.nansum(x, 0) / count_columns(x).clamp(min=1)


def count_levels(responsibilities: Tensor, codes: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Returns the weight of each level in each component, and the number of rows with each level.

    Arguments:
        responsibilities: The weight of each row in each component, ``(N, K)``.
        codes: Rows of codes 0, 1, ..., ``(N, D)``.
        levels: The number of levels.

    Returns:
        Tensors of shape ``(K, D, levels)`` and ``(D, levels)``.
    """
    # All levels at once would need rows x elements x levels numbers in memory.
    masks = ((codes == level).to(responsibilities.dtype) for level in range(levels))
    pairs = [(responsibilities.T @ mask, mask.sum(0)) for mask in masks]
    counts, frequencies = (torch.stack(parts, -1) for parts in zip(*pairs, strict=True))
    return counts, frequencies
