"""Pathwise gradients, for estimators that weight them separately from density gradients."""

import torch
from torch import Tensor

from pyro_vae.objectives.core.sites import Pair

__all__ = ["pathwise_surrogate", "zero_with_gradient"]


def pathwise_surrogate(loss: Tensor, pairs: list[Pair]) -> Tensor:
    """Returns zero, with the pathwise gradient of a loss.

    Each sample is a function of the parameters of the guide and, through the leaves, of earlier
    samples. The total derivative by a leaf is the partial derivative of the loss, plus the terms
    through later samples that depend on the leaf.

    Arguments:
        loss: A scalar, computed from the leaves.
        pairs: The traces of runs with detached samples.
    """
    samples = [sample for pair in pairs for sample in pair.samples.values()]
    leaves = [pair.guide.nodes[name]["value"] for pair in pairs for name in pair.samples]
    slopes = list(_derivatives(loss, leaves))
    gradient = torch.zeros((), dtype=loss.dtype, device=loss.device)
    for i, sample in reversed(list(enumerate(samples))):
        slope = slopes[i]
        # The samples of a frozen guide have no gradient.
        if slope is None or not sample.requires_grad:
            continue
        gradient = gradient + (slope * zero_with_gradient(sample)).sum()
        for j, term in enumerate(_derivatives((slope * sample).sum(), leaves[:i])):
            partial = slopes[j]
            slopes[j] = term if partial is None else partial if term is None else partial + term
    return gradient


def _derivatives(value: Tensor, by: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Returns the derivatives of a scalar, ``None`` for tensors that it does not depend on."""
    if not by:
        return ()
    return torch.autograd.grad(value, by, retain_graph=True, allow_unused=True)


def zero_with_gradient(value: Tensor) -> Tensor:
    """Returns zeros with the gradient of a tensor."""
    return value - value.detach()
