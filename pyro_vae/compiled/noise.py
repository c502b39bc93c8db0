"""Noise as inputs of a graph."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiled.graph import Captured, NotCapturedError

__all__ = ["lift_noise"]


class _Noise(NamedTuple):
    """The noise of one random operation.

    Attributes:
        fill: Draws noise into a tensor, as ``fill(tensor, *numbers, generator=...)``.
        shape: Its shape.
        strides: Its strides, which determine the order of drawing.
        dtype: Its dtype.
        numbers: The parameters of its distribution.
    """

    fill: Callable[..., Tensor]
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    numbers: tuple[float, ...]

    def stack(self, count: int) -> Tensor:
        """Returns an uninitialized tensor for the noise of ``count`` models."""
        size = math.prod(self.shape)
        return torch.empty_strided((count, *self.shape), (size, *self.strides), dtype=self.dtype)


_FILLS = {
    torch.ops.aten.randn.default: torch.ops.aten.normal_.default,
    torch.ops.aten.randn_like.default: torch.ops.aten.normal_.default,
    torch.ops.aten.rand.default: torch.ops.aten.uniform_.default,
    torch.ops.aten.rand_like.default: torch.ops.aten.uniform_.default,
}
"""The in-place version of each random operation that returns a new tensor."""


def lift_noise(captured: Captured) -> list[_Noise]:
    """Turns the noise of a graph into inputs, in the order of drawing.

    Raises:
        NotCapturedError: If the distribution of noise depends on tensors.
    """
    graph = captured.graph.graph
    noises: list[_Noise] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op != "call_function" or not _draws_noise(node.target):
            continue
        noises.append(_describe_noise(node))
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(noises) - 1}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    captured.graph.recompile()
    return noises


def _draws_noise(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _describe_noise(node: Any) -> _Noise:
    value = node.meta["val"]
    form = (value.shape, value.stride(), value.dtype) if _is_dense(value) else None
    if form is not None and node.target in _FILLS:
        return _Noise(_FILLS[node.target], *form, ())
    target, *numbers = node.args or (None,)
    is_new = str(getattr(target, "target", "")).startswith(("aten.empty", "aten.new_empty"))
    if form is None or not is_new or node.kwargs or any(hasattr(n, "op") for n in numbers):
        raise NotCapturedError(
            f"the noise of {node.target} depends on the values of tensors, or cannot be drawn for "
            f"each model separately"
        )
    return _Noise(node.target, *form, tuple(numbers))


def _is_dense(value: Any) -> bool:
    """Whether a result is one tensor without gaps in memory, in any order of dimensions."""
    if not isinstance(value, Tensor):
        return False
    last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return value.numel() == 0 or last + 1 == value.numel()
