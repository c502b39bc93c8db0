"""Noise that a graph draws, as tensors that it is given."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiled.graph import Captured, NotCapturedError

__all__ = ["noise_as_inputs"]


class _Noise(NamedTuple):
    """Noise that a graph draws.

    Attributes:
        fill: Draws it into a tensor, as ``fill(tensor, *numbers, generator=...)``.
        shape: Its shape.
        strides: How it lies in memory, which tells in what order it is drawn.
        dtype: Its dtype.
        numbers: The numbers of its distribution.
    """

    fill: Callable[..., Tensor]
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    numbers: tuple[float, ...]

    def stack(self, count: int) -> Tensor:
        """Returns where noise is drawn for each of some models."""
        size = math.prod(self.shape)
        return torch.empty_strided((count, *self.shape), (size, *self.strides), dtype=self.dtype)


_FILLS = {
    torch.ops.aten.randn.default: torch.ops.aten.normal_.default,
    torch.ops.aten.randn_like.default: torch.ops.aten.normal_.default,
    torch.ops.aten.rand.default: torch.ops.aten.uniform_.default,
    torch.ops.aten.rand_like.default: torch.ops.aten.uniform_.default,
}
"""How noise that is a new tensor is drawn into one that is there."""


def noise_as_inputs(captured: Captured) -> list[_Noise]:
    """Makes inputs of the noise that a graph draws, in the order in which it is drawn.

    Raises:
        NotCapturedError: If the distribution of noise depends on tensors.
    """
    graph = captured.graph.graph
    noises: list[_Noise] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op != "call_function" or not _draws(node.target):
            continue
        noises.append(_noise_of(node))
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(noises) - 1}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    captured.graph.recompile()
    return noises


def _draws(target: Any) -> bool:
    """Tells whether an operation draws noise."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _noise_of(node: Any) -> _Noise:
    """Returns what noise a node draws."""
    value = node.meta["val"]
    form = (value.shape, value.stride(), value.dtype) if _is_dense(value) else None
    if form is not None and node.target in _FILLS:
        return _Noise(_FILLS[node.target], *form, ())
    into, *numbers = node.args or (None,)
    fresh = str(getattr(into, "target", "")).startswith(("aten.empty", "aten.new_empty"))
    if form is None or not fresh or node.kwargs or any(hasattr(n, "op") for n in numbers):
        raise NotCapturedError(
            f"the noise of {node.target} depends on the values of tensors, or cannot be drawn for "
            f"each apart"
        )
    return _Noise(node.target, *form, tuple(numbers))


def _is_dense(value: Any) -> bool:
    """Tells whether a result is one tensor whose numbers fill its memory, in whatever order."""
    if not isinstance(value, Tensor):
        return False
    last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return value.numel() == 0 or last + 1 == value.numel()
