"""Checks of the tensors that a VAE is called with."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyro_vae.data.sparse_rows import iterate_rows
from pyro_vae.validation import check_tensor

__all__ = [
    "can_check_values",
    "check_covariates",
    "check_dtype",
    "check_input",
    "check_layout_and_device",
    "check_rows_of_covariates",
    "check_size_factor",
    "check_sparse_rows",
    "check_trailing",
]


def can_check_values() -> bool:
    """Whether Pyro validates, and no compiler or function transform is tracing."""
    transformed = torch._C._functorch.maybe_current_level() is not None
    return bool(is_validation_enabled()) and not (transformed or torch.compiler.is_compiling())


def check_input(name: str, x: Any, module: nn.Module) -> None:
    """Raises a ``ValueError`` unless an input is a nonempty tensor of the weights' dtype."""
    check_tensor(name, x)
    if not x.numel():
        raise ValueError(f"Expected {name} to have rows, got a tensor of shape {tuple(x.shape)}")
    check_layout_and_device(name, x, module)
    check_dtype(name, x, module)


def check_layout_and_device(name: str, x: Tensor, module: nn.Module) -> None:
    """Raises a ``ValueError`` unless a tensor is dense and on the device of the weights."""
    if x.layout != torch.strided:
        raise ValueError(
            f"Expected {name} to be dense, got {x.layout}: convert it, {name}.to_dense()"
        )
    device = next((p.device for p in module.parameters()), x.device)
    if x.device != device:
        raise ValueError(
            f"Expected {name} on the device of the VAE's weights, {device}, got {x.device}: move "
            f"one of them, {name}.to('{device}') or vae.to('{x.device}')"
        )


def check_dtype(name: str, x: Tensor, module: nn.Module) -> None:
    """Raises a ``ValueError`` unless a tensor has the dtype of the weights."""
    dtype = next((p.dtype for p in module.parameters()), x.dtype)
    if x.dtype != dtype:
        raise ValueError(
            f"Expected {name} of the dtype of the VAE's weights, {dtype}, got {x.dtype}: convert "
            f"one of them, {name}.to({dtype}) or vae.to({x.dtype})"
        )


def check_trailing(name: str, value: Tensor, shape: torch.Size) -> None:
    """Raises a ``ValueError`` unless a tensor's shape ends in ``shape``."""
    if value.shape[max(value.dim() - len(shape), 0) :] != shape:
        raise ValueError(
            f"Expected {name} to have shape (*batch, {', '.join(map(str, shape))}), got "
            f"{tuple(value.shape)}"
        )


def check_covariates(
    covariates: Tensor | None, covariate_dim: int, batch: torch.Size, module: nn.Module
) -> None:
    """Raises a ``ValueError`` if covariates are missing, unexpected or of another shape.

    Arguments:
        covariates: The covariates, ``(*batch, covariate_dim)``.
        covariate_dim: Their number.
        batch: A shape with which their batch shape has to be broadcastable.
        module: The module whose weights have the dtype and the device.
    """
    if covariates is None:
        if covariate_dim:
            raise ValueError(
                f"Expected covariates of shape (batch, {covariate_dim}) for "
                f"covariate_dim={covariate_dim}, got None"
            )
        return
    check_input("covariates", covariates, module)
    if not covariates.dim() or covariates.shape[-1] != covariate_dim:
        raise ValueError(
            f"Expected covariates to have {covariate_dim} features (covariate_dim), got a tensor "
            f"of shape {tuple(covariates.shape)}"
        )
    pairs = zip(reversed(batch), reversed(covariates.shape[:-1]), strict=False)
    if not all(1 in pair or pair[0] == pair[1] for pair in pairs):
        raise ValueError(
            f"Expected covariates of batch shape {tuple(batch)}, got a tensor of shape "
            f"{tuple(covariates.shape)}"
        )


def check_rows_of_covariates(
    covariates: Tensor | None, size: int, *, has_size_factor: bool
) -> None:
    """Raises a ``ValueError`` unless covariates are finite, in ``size`` rows.

    Arguments:
        covariates: Covariates that :func:`check_covariates` accepts, or ``None``.
        size: The number of rows.
        has_size_factor: Whether the last covariate is a size factor, which is positive.
    """
    if covariates is None:
        return
    if covariates.dim() != 2 or len(covariates) != size:
        raise ValueError(
            f"Expected covariates of shape ({size}, {covariates.shape[-1]}), got "
            f"{tuple(covariates.shape)}"
        )
    if not bool(covariates.isfinite().all()):
        raise ValueError("Expected covariates to be finite, got NaN or infinite values")
    if has_size_factor:
        check_size_factor(covariates[:, -1])


def check_sparse_rows(x: Tensor, mask: Tensor | None, check: Callable[[Tensor], None]) -> None:
    """Checks a sparse matrix some rows at a time.

    Arguments:
        x: The matrix.
        mask: The mask, which is not supported.
        check: The check of dense rows.
    """
    if mask is not None:
        raise ValueError("Expected dense x with a mask, got sparse x: convert it, x.to_dense()")
    if not x.numel() or x.dim() != 2:
        raise ValueError(f"Expected x to have rows, got a tensor of shape {tuple(x.shape)}")
    for rows in iterate_rows(x):
        check(rows)


def check_size_factor(size: Tensor) -> None:
    """Raises a ``ValueError`` unless all size factors are positive and finite."""
    valid = (size > 0) & size.isfinite()
    if not bool(valid.all()):
        raise ValueError(
            f"Expected the size factor, the last covariate, to be positive, got "
            f"{size[~valid][0].item():.4g}"
        )
