"""Tensor helpers of a step: parameters of a loss, copies, memory layout and shared memory."""

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor

from pyro_vae.objectives.core.tracing import SAMPLE_MARK

__all__ = [
    "clear_gradients",
    "clone_tensors",
    "find_leaves",
    "find_shared",
    "match_layout",
    "save_tensors",
]


def find_leaves(loss: Tensor) -> list[Tensor]:
    """Returns the leaf tensors on which the gradient of a loss depends."""
    leaves: list[Tensor] = []
    visited, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable") and not hasattr(node.variable, SAMPLE_MARK):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves


def match_layout(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Returns a gradient in the memory layout of its parameter, as ``backward`` does."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def clone_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns copies, detached from the autograd graph."""
    return [tensor.detach().clone() for tensor in tensors]


def save_tensors(tensors: Iterable[Tensor], read_only: Collection[int] = ()) -> Callable[[], None]:
    """Returns a function that restores the current values of tensors in place.

    Arguments:
        tensors: The tensors.
        read_only: The ``id`` of tensors whose memory may be read-only, such as data in closures;
            they are written only if they have changed.
    """
    tensors = list(tensors)
    copies = clone_tensors(tensors)

    @torch.no_grad()
    def restore() -> None:
        for tensor, copy in zip(tensors, copies, strict=True):
            if id(tensor) not in read_only or not _have_equal_values(tensor, copy):
                tensor.copy_(copy)

    return restore


def _have_equal_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same numbers; NaN equals NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def clear_gradients(parameters: Iterable[Tensor]) -> None:
    """Sets gradients to ``None``."""
    for parameter in parameters:
        parameter.grad = None


def find_shared(results: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[int]:
    """Returns the indices of results that share memory with an input or an earlier result."""
    addresses = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    indices = []
    for i, result in enumerate(results):
        address = result.untyped_storage().data_ptr()
        if address in addresses:
            indices.append(i)
        addresses.add(address)
    return indices
