"""Gradients by the way of the samples, for estimators that weigh it apart from densities."""

import torch
from torch import Tensor

from pyro_vae.objectives.core.sites import Pair

__all__ = ["along_samples", "value_free"]


def along_samples(loss: Tensor, pairs: list[Pair]) -> Tensor:
    """Returns zero, with the gradient that a loss has by the way of the samples.

    Each sample is a function of the parameters of the guide and, by the leaves, of the samples
    before it. The derivative by a leaf is what the loss owes to it itself, and what it owes to
    later samples that depend on it.

    Arguments:
        loss: A scalar, computed from the leaves.
        pairs: The traces of runs that were cut.
    """
    samples = [sample for pair in pairs for sample in pair.drawn.values()]
    leaves = [pair.guide.nodes[name]["value"] for pair in pairs for name in pair.drawn]
    slopes = list(_derivatives(loss, leaves))
    gradient = torch.zeros((), dtype=loss.dtype, device=loss.device)
    for i, sample in reversed(list(enumerate(samples))):
        slope = slopes[i]
        # A guide that is not trained has no way to its parameters.
        if slope is None or not sample.requires_grad:
            continue
        gradient = gradient + (slope * value_free(sample)).sum()
        for j, more in enumerate(_derivatives((slope * sample).sum(), leaves[:i])):
            known = slopes[j]
            slopes[j] = more if known is None else known if more is None else known + more
    return gradient


def _derivatives(value: Tensor, by: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Returns the derivatives of a scalar, ``None`` by what it does not depend on."""
    if not by:
        return ()
    return torch.autograd.grad(value, by, retain_graph=True, allow_unused=True)


def value_free(value: Tensor) -> Tensor:
    """Returns zero, with the gradient of a value."""
    return value - value.detach()
