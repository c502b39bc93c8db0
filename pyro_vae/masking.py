"""Missing data: which rows and elements of a batch are observed."""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

__all__ = ["expand_mask", "factorizes", "fill", "mask_elements", "masked", "split_mask"]


def split_mask(
    mask: Tensor | None, x: Tensor | None, event_shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the mask of rows and that of elements, as far as one is given.

    A mask of rows is also one of elements: what stands in a missing row is arbitrary too.
    """
    if mask is None:
        return None, None
    _check_mask(mask)
    if x is None:
        return mask, None
    elements = expand_mask(mask, x, event_shape)
    return (None, elements) if mask.dim() == x.dim() else (mask, elements)


def _check_mask(mask: Tensor) -> None:
    """Raises a ``ValueError`` unless a mask is a boolean tensor."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"Expected mask to be boolean, got {got}")


def expand_mask(mask: Tensor, x: Tensor, event_shape: torch.Size) -> Tensor:
    """Returns a mask of the shape of ``x``, from one of that shape or of its batch."""
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


def fill(x: Tensor, elements: Tensor | None) -> Tensor:
    """Returns ``x`` with zeros, which every likelihood here supports, for what is missing."""
    return x if elements is None else torch.where(elements, x, torch.zeros_like(x))


def masked(rows: Tensor | None) -> AbstractContextManager:
    """Takes rows out of every site within, or nothing."""
    return nullcontext() if rows is None else poutine.mask(mask=cast(torch.BoolTensor, rows))


def factorizes(p: dist.TorchDistribution) -> bool:
    """Tells whether a likelihood is one of independent elements."""
    return isinstance(p, torch.distributions.Independent)


def mask_elements(p: dist.TorchDistribution, elements: Tensor) -> dist.TorchDistribution:
    """Returns a likelihood that scores the observed elements only.

    Raises:
        ValueError: If the likelihood does not factorize over elements.
    """
    if not factorizes(p):
        raise ValueError(
            f"Expected a likelihood of independent elements with a mask of elements, got {p}"
        )
    return p.base_dist.mask(elements).to_event(p.reinterpreted_batch_ndims)
