"""What a step does with tensors: finds parameters, copies, and tells which share memory."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyro_vae.objectives.core.tracing import OF_A_SAMPLE

__all__ = ["clear", "copies", "laid_out", "leaves", "shared"]


def leaves(loss: Tensor) -> list[Tensor]:
    """Returns the tensors, not made by operations, on which the gradient of a loss depends."""
    found: list[Tensor] = []
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable") and not hasattr(node.variable, OF_A_SAMPLE):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Returns a gradient in the memory layout of its parameter, as ``backward`` leaves it."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns copies that no graph of autograd knows of."""
    return [tensor.detach().clone() for tensor in tensors]


def clear(parameters: Iterable[Tensor]) -> None:
    """Removes gradients."""
    for parameter in parameters:
        parameter.grad = None


def shared(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[int]:
    """Returns the places of the results that share memory with an input or an earlier result."""
    taken = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    found = []
    for i, result in enumerate(results):
        place = result.untyped_storage().data_ptr()
        if place in taken:
            found.append(i)
        taken.add(place)
    return found
