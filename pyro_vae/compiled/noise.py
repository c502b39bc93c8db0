"""Noise that a graph draws, as tensors that it is given."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiled.graph import Captured, NotCapturedError

__all__ = ["Noise", "noise_as_inputs"]


class Noise(NamedTuple):
    """Noise that a graph draws.

    Attributes:
        fill: Draws it into a tensor, as ``fill(tensor, *numbers, generator=...)``.
        shape: Its shape.
        dtype: Its dtype.
        numbers: The numbers of its distribution.
    """

    fill: Callable[..., Tensor]
    shape: torch.Size
    dtype: torch.dtype
    numbers: tuple[float, ...]


FILLS = {
    torch.ops.aten.randn.default: torch.ops.aten.normal_.default,
    torch.ops.aten.randn_like.default: torch.ops.aten.normal_.default,
    torch.ops.aten.rand.default: torch.ops.aten.uniform_.default,
    torch.ops.aten.rand_like.default: torch.ops.aten.uniform_.default,
}
"""How noise that is a new tensor is drawn into one that is there."""


def noise_as_inputs(captured: Captured) -> list[Noise]:
    """Makes inputs of the noise that a graph draws, in the order in which it is drawn.

    Raises:
        NotCapturedError: If the distribution of noise depends on tensors.
    """
    graph = captured.graph.graph
    noises: list[Noise] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op != "call_function" or not draws(node.target):
            continue
        noises.append(noise_of(node))
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(noises) - 1}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    captured.graph.recompile()
    return noises


def draws(target: Any) -> bool:
    """Tells whether an operation draws noise."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def noise_of(node: Any) -> Noise:
    """Returns what noise a node draws."""
    value = node.meta["val"]
    if node.target in FILLS:
        return Noise(FILLS[node.target], value.shape, value.dtype, ())
    into, *numbers = node.args or (None,)
    fresh = str(getattr(into, "target", "")).startswith(("aten.empty", "aten.new_empty"))
    if not fresh or any(hasattr(number, "op") for number in numbers):
        raise NotCapturedError(f"the noise of {node.target} depends on the values of tensors")
    return Noise(node.target, value.shape, value.dtype, tuple(numbers))
