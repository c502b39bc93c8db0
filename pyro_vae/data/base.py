"""What every data set is here: tensors, split, named with the protocol that made them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PROTOCOLS", "Data", "Rows", "Split", "make", "split"]

PROTOCOLS = ("none", "threshold", "fixed", "dynamic")
"""How grey values become zeros and ones.

``none``: they stay; ``threshold``: one where a value exceeds one half; ``fixed``: drawn once, with
the value as probability, by the seed of the split; ``dynamic``: training rows are drawn anew each
time they are presented, validation and test rows once, as ``fixed``.
"""


class Split(NamedTuple):
    """One tensor for each part of the split."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Split":
        """Returns the split of what a function makes of each part."""
        return Split(*map(function, self))


class Rows(NamedTuple):
    """Rows to train on, with what is observed of them, and whether they are drawn anew.

    Attributes:
        x: Data of shape ``(N, *event_shape)``.
        mask: True where a value is observed, of the shape of ``x``, or ``None``.
        dynamic: Whether ``x`` holds the probabilities of zeros and ones that are drawn anew at
            each presentation.
    """

    x: Tensor
    mask: Tensor | None = None
    dynamic: bool = False

    def batch(
        self, index: Tensor | slice, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns some rows, drawn on their device if they are dynamic, and their mask."""
        x = self.x[index]
        if self.dynamic:
            x = torch.bernoulli(x, generator=generator)
        return x, None if self.mask is None else self.mask[index]


class Data(NamedTuple):
    """A data set.

    Attributes:
        name: The set's name.
        binarize: The protocol of binarization, one of ``PROTOCOLS``; part of every result.
        x: Data, each part of shape ``(rows, *event_shape)``. With the protocol ``dynamic`` the
            training part holds probabilities.
        labels: Labels, each part of shape ``(rows,)``, for pictures only; or ``None``.
        source: Where the data come from, in a line.
        mask: True where a value is observed, each part of the shape of ``x``; or ``None``.
    """

    name: str
    binarize: str
    x: Split
    labels: Split | None
    source: str
    mask: Split | None = None

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum."""
        return self.x.train.shape[1:]

    @property
    def train(self) -> Rows:
        """The training rows, for :func:`pyro_vae.fit`."""
        mask = None if self.mask is None else self.mask.train
        return Rows(self.x.train, mask, self.binarize == "dynamic")

    @property
    def valid(self) -> Rows:
        """The validation rows."""
        return Rows(self.x.valid, None if self.mask is None else self.mask.valid)

    @property
    def test(self) -> Rows:
        """The test rows."""
        return Rows(self.x.test, None if self.mask is None else self.mask.test)

    def to(self, device: torch.device | str) -> "Data":
        """Returns the same data on another device."""
        mask = None if self.mask is None else self.mask.map(lambda part: part.to(device))
        return self._replace(x=self.x.map(lambda part: part.to(device)), mask=mask)

    @property
    def title(self) -> str:
        """The name with the protocol, without which no figure can be compared."""
        return self.name if self.binarize == "none" else f"{self.name}, binarized: {self.binarize}"


def make(
    name: str, x: Split, labels: Split | None, *, binarize: str, seed: int, source: str
) -> Data:
    """Returns a data set of values in [0, 1], binarized by a protocol.

    Raises:
        ValueError: If there is no such protocol.
    """
    if binarize not in PROTOCOLS:
        raise ValueError(f"Expected binarize to be one of {PROTOCOLS}, got {binarize!r}")
    if binarize == "threshold":
        x = x.map(lambda part: (part > 0.5).to(part.dtype))
    elif binarize in ("fixed", "dynamic"):
        generator = torch.Generator().manual_seed(seed)
        drawn = x.map(lambda part: torch.bernoulli(part, generator=generator))
        x = drawn if binarize == "fixed" else drawn._replace(train=x.train)
    return Data(name, binarize, x, labels, source)


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
