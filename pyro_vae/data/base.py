"""What every data set is here: tensors, split, named with the protocol that made them."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Data", "Split", "binarized", "split"]

PROTOCOLS = ("none", "threshold")


class Split(NamedTuple):
    """One tensor for each part of the split."""

    train: Tensor
    valid: Tensor
    test: Tensor


class Data(NamedTuple):
    """A data set.

    Attributes:
        name: The set's name.
        binarize: The protocol of binarization; part of every result.
        x: Data, each part of shape ``(rows, *event_shape)``.
        labels: Labels, each part of shape ``(rows,)``, for pictures only; or ``None``.
        source: Where the data come from, in a line.
    """

    name: str
    binarize: str
    x: Split
    labels: Split | None
    source: str

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum."""
        return self.x.train.shape[1:]

    def to(self, device: torch.device | str) -> "Data":
        """Returns the same data on another device."""
        moved = Split(*(part.to(device) for part in self.x))
        return self._replace(x=moved)

    @property
    def title(self) -> str:
        """The name with the protocol, without which no figure can be compared."""
        return (
            self.name if self.binarize == "none" else f"{self.name}, binarized by {self.binarize}"
        )


def split(tensor: Tensor, *, valid: float, test: float, seed: int) -> Split:
    """Splits rows at random, by a generator of its own.

    Raises:
        ValueError: If the fractions leave no row for a part.
    """
    order = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(seed))
    counts = round(len(tensor) * valid), round(len(tensor) * test)
    if min(counts) < 1 or sum(counts) >= len(tensor):
        raise ValueError(
            f"Expected valid and test to be fractions that leave rows for each part of "
            f"{len(tensor)}, got {valid=}, {test=}"
        )
    sizes = [len(tensor) - sum(counts), *counts]
    return Split(*(tensor[rows] for rows in order.split(sizes)))


def binarized(x: Tensor, protocol: str) -> Tensor:
    """Returns values of [0, 1] as they are, or as zeros and ones by a protocol.

    Arguments:
        x: Values between zero and one.
        protocol: ``"none"``, or ``"threshold"``: one where ``x`` exceeds one half.

    Raises:
        ValueError: If there is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"Expected binarize to be one of {PROTOCOLS}, got {protocol!r}")
    return x if protocol == "none" else (x > 0.5).to(x.dtype)
