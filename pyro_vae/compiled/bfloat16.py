"""Matmuls and convolutions of a graph in bfloat16."""

from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

__all__ = ["use_bfloat16"]


def use_bfloat16(graph: Any) -> bool:
    """Replaces float32 matmuls and convolutions by bfloat16 ones; returns whether there are any.

    This concerns the forward and the backward pass. Factors and results are rounded to 8 bits;
    sums are accumulated in float32. Unlike under PyTorch's autocast, biases, activations,
    densities and the update stay in float32.
    """
    nodes = [node for node in graph.graph.nodes if _is_matmul_or_convolution(node)]
    for node in nodes:
        _replace_node(graph.graph, node)
    graph.graph.lint()
    graph.recompile()
    return bool(nodes)


def _is_matmul_or_convolution(node: Any) -> bool:
    aten = torch.ops.aten
    targets = (
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.convolution.default,
        aten.convolution_backward.default,
    )
    value = node.meta.get("val")
    first = value[1] if isinstance(value, (tuple, list)) else value
    return node.target in targets and not node.kwargs and first.dtype == torch.float32


def _replace_node(graph: Any, node: Any) -> None:
    """Replaces a node by one whose factors and results are rounded."""
    aten = torch.ops.aten
    args, bias = node.args, None
    target = node.target
    if target is aten.addmm.default:
        bias, *args = args
        target = aten.mm.default
    if target is aten.convolution.default and args[2] is not None:
        bias, args = _reshape_bias(graph, node), (*args[:2], None, *args[3:])

    def round_to_bfloat16(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        return graph.call_function(aten._to_copy.default, (value,), {"dtype": torch.bfloat16})

    with graph.inserting_before(node):
        rounded_args = tuple(pytree.tree_map(round_to_bfloat16, list(args)))
        lower = graph.call_function(target, rounded_args)
        if isinstance(node.meta["val"], (tuple, list)):
            outputs = [_upcast_output(graph, lower, i, v) for i, v in enumerate(node.meta["val"])]
            _replace_outputs(graph, node, outputs)
            return
        result = graph.call_function(aten._to_copy.default, (lower,), {"dtype": torch.float32})
        if bias is not None:
            result = graph.call_function(aten.add.Tensor, (result, bias))
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _reshape_bias(graph: Any, node: Any) -> Any:
    """Returns the bias of a convolution in a shape that broadcasts against the result."""
    shape = [1, -1, *[1] * (node.meta["val"].dim() - 2)]
    with graph.inserting_before(node):
        return graph.call_function(torch.ops.aten.view.default, (node.args[2], shape))


def _upcast_output(graph: Any, lower: Any, index: int, value: Any) -> Any:
    """Returns one of several outputs in float32, or ``None`` for a missing one."""
    if value is None:
        return None
    output = graph.call_function(getitem, (lower, index))
    return graph.call_function(torch.ops.aten._to_copy.default, (output,), {"dtype": torch.float32})


def _replace_outputs(graph: Any, node: Any, outputs: list[Any]) -> None:
    for user in list(node.users):
        user.replace_all_uses_with(outputs[user.args[1]])

        graph.erase_node(user)
    graph.erase_node(node)
