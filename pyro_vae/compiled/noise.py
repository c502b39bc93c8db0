"""Noise as inputs of a graph."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiled.graph import Captured, NotCapturedError

__all__ = ["Noise", "lift_noise"]

_FILLS = {
    torch.ops.aten.randn.default: torch.ops.aten.normal_.default,
    torch.ops.aten.randn_like.default: torch.ops.aten.normal_.default,
    torch.ops.aten.rand.default: torch.ops.aten.uniform_.default,
    torch.ops.aten.rand_like.default: torch.ops.aten.uniform_.default,
}
"""The in-place version of each random operation that returns a new tensor."""


class Noise(NamedTuple):
    """The noise of one random operation, filled in as ``fill(tensor, *numbers, generator=...)``."""

    fill: Callable[..., Tensor]
    numbers: tuple[float, ...]
    form: Tensor

    def stack(self, count: int) -> Tensor:
        """Returns an uninitialized tensor for the noise of ``count`` models."""
        shape, strides = self.form.shape, self.form.stride()
        size = (math.prod(shape), *strides)  # Strides determine the order of drawing.
        return torch.empty_strided((count, *shape), size, dtype=self.form.dtype)


def lift_noise(captured: Captured) -> list[Noise]:
    """Turns the noise of a graph into inputs, in the order of drawing."""
    graph = captured.graph.graph
    noises: list[Noise] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            noises.append(_describe_noise(node))
            with graph.inserting_after(last):
                last = graph.placeholder(f"noise_{len(noises) - 1}")
            node.replace_all_uses_with(last)
            graph.erase_node(node)
    captured.graph.recompile()
    return noises


def _describe_noise(node: Any) -> Noise:
    value = node.meta["val"]
    if node.target in _FILLS:
        return Noise(_FILLS[node.target], (), value)
    target, *numbers = node.args or (None,)
    is_new = str(getattr(target, "target", "")).startswith(("aten.empty", "aten.new_empty"))
    if not is_new or node.kwargs or any(hasattr(n, "op") for n in numbers):
        raise NotCapturedError(
            f"the noise of {node.target} depends on the values of tensors, or cannot be drawn for "
            f"each model separately"
        )
    return Noise(node.target, tuple(numbers), value)
