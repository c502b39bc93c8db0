"""Rows of dense tensors and of sparse ones, which are made dense some rows at a time."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ROWS_AT_ONCE",
    "build_sparse",
    "copy_tensor",
    "is_sparse",
    "iterate_rows",
    "select_sparse_rows",
    "spread_rows",
    "take_rows",
]

ROWS_AT_ONCE = 1000
"""The number of sparse rows that are made dense together."""

_MAX_ELEMENTS = 2**25
"""The most values of sparse rows that initialize a VAE: 128 MiB in single precision."""


def is_sparse(x: Any) -> bool:
    """Whether data are a sparse tensor with compressed rows."""
    return isinstance(x, Tensor) and x.layout == torch.sparse_csr


def take_rows(x: Tensor, index: Tensor | slice) -> Tensor:
    """Returns some rows of a tensor, always dense.

    Arguments:
        x: A dense tensor, or a sparse matrix with compressed rows.
        index: A slice, integers or booleans.

    Example:
        >>> starts, columns = torch.tensor([0, 1, 2]), torch.tensor([1, 0])
        >>> x = build_sparse(starts, columns, torch.tensor([1.0, 2.0]), (2, 2))
        >>> take_rows(x, torch.tensor([1, 0]))
        tensor([[2., 0.],
                [0., 1.]])
    """
    if is_sparse(x):
        return _take_sparse(x, index)
    # For integers, index_select is faster than indexing.
    if isinstance(index, slice) or index.dtype == torch.bool:
        return x[index]
    return x.index_select(0, index)


def _take_sparse(x: Tensor, index: Tensor | slice) -> Tensor:
    count, position = _locate_rows(x, index)
    row = torch.arange(len(count), device=x.device).repeat_interleave(count)
    dense = x.values().new_zeros(len(count), x.shape[1])
    dense[row, x.col_indices()[position].long()] = x.values()[position]
    return dense


def _locate_rows(x: Tensor, index: Tensor | slice) -> tuple[Tensor, Tensor]:
    """Returns the number of values of each row, and their positions, one row after the other."""
    # Indexing checks the bounds, and resolves slices, booleans and negative numbers.
    index = torch.arange(len(x), device=x.device)[index].reshape(-1)
    starts = x.crow_indices()
    first, count = starts[index], starts[index + 1] - starts[index]
    position = torch.arange(int(count.sum()), device=x.device)
    return count, position + (first - count.cumsum(0) + count).repeat_interleave(count)


def select_sparse_rows(parts: Sequence[Tensor], index: Tensor) -> Tensor:
    """Returns some rows of sparse matrices, which follow each other, as a sparse matrix."""
    sizes = [0, *(len(part.values()) for part in parts)]
    offsets = torch.tensor(sizes).cumsum(0)[:-1].tolist()
    starts = [
        part.crow_indices()[:-1] + offset for part, offset in zip(parts, offsets, strict=True)
    ]
    end = starts[0].new_tensor([sum(sizes)])
    columns = torch.cat([part.col_indices() for part in parts])
    values = torch.cat([part.values() for part in parts])
    rows = sum(map(len, parts))
    joined = build_sparse(torch.cat([*starts, end]), columns, values, (rows, parts[0].shape[1]))
    count, position = _locate_rows(joined, index)
    counts = torch.cat([count.new_zeros(1), count.cumsum(0)])
    return build_sparse(counts, columns[position], values[position], (len(count), joined.shape[1]))


def build_sparse(starts: Tensor, columns: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns a sparse matrix with compressed rows, from valid parts."""
    with warnings.catch_warnings():
        # Only the constructor and the selection of rows are used here, which are stable.
        warnings.filterwarnings("ignore", "Sparse (CSR|invariant)", UserWarning)
        return torch.sparse_csr_tensor(
            starts, columns.to(starts.dtype), values, size=tuple(shape), check_invariants=False
        )


def copy_tensor(x: Tensor, memo: dict[int, Any]) -> Tensor:
    """Returns a deep copy of a tensor; PyTorch has none of sparse tensors."""
    if not is_sparse(x):
        return copy.deepcopy(x, memo)
    if id(x) not in memo:
        starts, columns, values = x.crow_indices(), x.col_indices(), x.values()
        memo[id(x)] = build_sparse(starts.clone(), columns.clone(), values.clone(), x.shape)
    return memo[id(x)]


def iterate_rows(x: Tensor) -> Iterator[Tensor]:
    """Yields all rows of a sparse matrix, some at a time and dense."""
    for start in range(0, len(x), ROWS_AT_ONCE):
        yield take_rows(x, slice(start, start + ROWS_AT_ONCE))


def spread_rows(x: Tensor) -> slice:
    """Returns the index of evenly spaced rows, or of all rows if they fit into memory."""
    most = max(1, _MAX_ELEMENTS // max(1, x.shape[1:].numel()))
    return slice(None, None, -(-len(x) // most)) if is_sparse(x) else slice(None)
