"""Gradients by the way of the samples, for estimators that weigh it apart from densities."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.objectives.traces import Pair

__all__ = ["along_samples", "samples_and_leaves", "value_free"]


def samples_and_leaves(pairs: list[Pair]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the samples that were cut, and the leaves that hold them, in the same order."""
    both = [(pair.drawn[n], pair.guide.nodes[n]["value"]) for pair in pairs for n in pair.drawn]
    return [sample for sample, _ in both], [leaf for _, leaf in both]


def along_samples(samples: list[Tensor], slopes: Sequence[Tensor | None]) -> Tensor:
    """Returns zero, whose gradient by each sample is a slope, or nothing where that is ``None``."""
    along = [
        (slope.detach() * value_free(sample)).sum()
        for sample, slope in zip(samples, slopes, strict=True)
        if slope is not None
    ]
    return torch.stack(along).sum() if along else torch.zeros(())


def value_free(value: Tensor) -> Tensor:
    """Returns zero, with the gradient of a value."""
    return value - value.detach()
