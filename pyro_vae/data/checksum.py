"""Checksums of data."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_vae.data.base import Rows
from pyro_vae.data.sparse_rows import is_sparse

__all__ = ["hash_rows", "hash_tensors"]


def hash_rows(rows: Rows) -> str:
    """Returns a checksum of rows with their masks and covariates."""
    return hash_tensors((rows.x, rows.mask, rows.covariates))


def hash_tensors(tensors: Iterable[Tensor | None]) -> str:
    """Returns a checksum of shapes, dtypes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        form = None if tensor is None else (tuple(tensor.shape), str(tensor.dtype))
        digest.update(repr(form).encode())
        for part in () if tensor is None else _get_parts(tensor):
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _get_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if is_sparse(tensor):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return (tensor,)
