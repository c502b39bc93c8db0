"""The batches of an epoch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.data import Batch

__all__ = ["draw_batches", "split_batches", "stack_batches"]

_MAX_STEPS = 32
"""The most steps in one call of a compiled step."""

_MAX_ELEMENTS = 2**22
"""The most numbers in the batches of one call: 16 MiB in single precision."""


def draw_batches(size: int, batch_size: int, order: torch.Generator) -> list[Tensor]:
    """Returns the row indices of each batch of an epoch.

    A single row that is left over joins the batch before it.
    """
    rows = torch.randperm(size, generator=order, device=order.device)
    parts = list(rows.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def split_batches(batches: Sequence[Tensor], elements: int) -> list[Sequence[Tensor]]:
    """Splits batches into runs of equal size, which one call of a compiled step takes.

    Arguments:
        batches: The row indices of each batch.
        elements: The number of values of a row.
    """
    blocks: list[list[Tensor]] = []
    for rows in batches:
        last = blocks[-1] if blocks else []
        room = len(last) < min(_MAX_STEPS, _MAX_ELEMENTS // (len(rows) * elements))
        if last and room and len(last[-1]) == len(rows):
            last.append(rows)
        else:
            blocks.append([rows])
    return [*blocks]


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """Returns batches of equal size as one, with a leading dimension for the batch."""
    x, *others = zip(*batches, strict=True)
    stacked = (None if tensors[0] is None else torch.stack(tensors) for tensors in others)
    return Batch(torch.stack(x), *stacked)
