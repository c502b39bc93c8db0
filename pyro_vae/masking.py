"""Missing data: which rows and elements of a batch are observed."""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

__all__ = [
    "compute_moments",
    "expand_mask",
    "fill_missing",
    "mask_elements",
    "mask_rows",
    "split_mask",
]


def split_mask(
    mask: Tensor | None, x: Tensor | None, event_shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the mask of rows and the mask of elements, each or both ``None`` if not defined.

    A mask of rows also masks their elements, because the values of a missing row are arbitrary.
    """
    if mask is None:
        return None, None
    _check_mask(mask)
    if x is None:
        return mask, None
    elements = expand_mask(mask, x, event_shape)
    return (None, elements) if mask.dim() == x.dim() else (mask, elements)


def _check_mask(mask: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"Expected mask to be boolean, got {got}")


def expand_mask(mask: Tensor, x: Tensor, event_shape: torch.Size) -> Tensor:
    """Returns a mask of the shape of ``x``, from a mask of that shape or of its batch shape."""
    _check_mask(mask)
    batch = x.shape[: x.dim() - len(event_shape)]
    if mask.shape == batch:
        return mask.reshape(*batch, *(1 for _ in event_shape)).expand(x.shape)
    if mask.shape == x.shape:
        return mask
    raise ValueError(
        f"Expected mask to have the shape of x, {tuple(x.shape)}, or of its batch, "
        f"{tuple(batch)}, got {tuple(mask.shape)}"
    )


def fill_missing(x: Tensor, elements: Tensor | None, value: float = 0.0) -> Tensor:
    """Returns ``x`` with a value for missing elements, which the likelihood must support."""
    return x if elements is None else torch.where(elements, x, value)


def compute_moments(x: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of observed values over rows; 0 for constant columns."""
    count = observed.sum(0).clamp(min=1)
    loc = x.where(observed, 0.0).sum(0) / count
    scale = ((x - loc).where(observed, 0.0).square().sum(0) / count).sqrt()
    # Rounding errors alone can make the standard deviation of a constant column positive.
    constant = scale.isfinite() & (scale <= 1e-12 * loc.abs())
    return loc, torch.where(constant, 0.0, scale)


def mask_rows(rows: Tensor | None) -> AbstractContextManager:
    """Masks rows of every site in the context; ``None`` masks nothing."""
    return nullcontext() if rows is None else poutine.mask(mask=cast(torch.BoolTensor, rows))


def _factorizes(p: dist.TorchDistribution) -> bool:
    """Whether the elements of a likelihood are independent."""
    return isinstance(p, torch.distributions.Independent)


def mask_elements(
    p: dist.TorchDistribution, rows: Tensor | None, elements: Tensor
) -> dist.TorchDistribution:
    """Returns a likelihood that scores only the observed elements.

    Raises:
        ValueError: If the likelihood does not factorize over elements, unless whole rows are
            masked, which :func:`mask_rows` does for any likelihood.
    """
    if not _factorizes(p):
        if rows is not None:
            return p
        raise ValueError(
            f"Expected a likelihood of independent elements with a mask of elements, got {p}"
        )
    return p.base_dist.mask(elements).to_event(p.reinterpreted_batch_ndims)
