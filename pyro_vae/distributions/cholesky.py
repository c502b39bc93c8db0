"""Cholesky factors within graphs."""

import torch
from torch import Tensor

__all__ = ["factorize"]


def factorize(matrix: Tensor) -> Tensor:
    """Returns the Cholesky factors of matrices; NaN where a matrix is not positive definite.

    ``torch.linalg.cholesky`` raises an error instead, a side effect that Inductor cannot compile.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info > 0)[..., None, None], torch.nan, factor)
