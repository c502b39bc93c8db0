"""Gradient estimators that weight pathwise and density gradients separately: STL and DReG."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.objectives.core.importance_weights import Weights
from pyro_vae.objectives.core.sites import Pair

__all__ = [
    "GradientWeights",
    "doubly_reparameterize",
    "pathwise_surrogate",
    "weighted_surrogate",
    "zero_with_gradient",
]


class GradientWeights(NamedTuple):
    r"""The weight of each particle in the gradient, each ``(particles, *plates)``.

    Attributes:
        density: The weight of the derivative of log p by the parameters of the model.
        path: The weight of the derivative of log w by the sample.
    """

    density: Tensor
    path: Tensor


def doubly_reparameterize(
    slope: Tensor, curvature: Tensor, alpha: float | Tensor = 0.0
) -> GradientWeights:
    r"""Returns the weights of the doubly reparameterized gradient (DReG).

    Arguments:
        slope: The derivative of the bound by each log weight.
        curvature: Its second derivative by each log weight alone.
        alpha: The share of the wake-phase update of reweighted wake-sleep.
    """
    return GradientWeights(slope, alpha * curvature + (1 - alpha) * (slope - curvature))


def weighted_surrogate(
    gradient_weights: GradientWeights, weights: Weights, pairs: list[Pair], *, score: bool
) -> Tensor:
    """Returns zero, with the gradient of a bound of importance weights.

    Arguments:
        gradient_weights: The weights of the particles in the gradient.
        weights: The importance weights, computed from the leaves.
        pairs: The traces of runs with detached samples.
        score: Whether to keep the derivative of log q by its parameters at a fixed sample.
    """
    gradient = pathwise_surrogate((gradient_weights.path * weights.log_weights).sum(), pairs)
    gradient = gradient + (gradient_weights.density * zero_with_gradient(weights.log_p)).sum()
    if score:
        gradient = gradient - (gradient_weights.path * zero_with_gradient(weights.log_q)).sum()
    return gradient


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
