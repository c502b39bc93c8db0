"""Products of a graph in bfloat16, all else as it is."""

from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

__all__ = ["use_bfloat16"]


def use_bfloat16(graph: Any) -> bool:
    """Makes all float32 products in bfloat16, and tells whether there are any.

    Those are the products of matrices and the convolutions, of the way there and of the way back:
    their factors and results are rounded to 8 bits, and summed up in float32 within. All else stays
    in float32, unlike under PyTorch's autocast: biases, activations, densities, the update.
    """
    found = [node for node in graph.graph.nodes if _is_product(node)]
    for node in found:
        _replace(graph.graph, node)
    graph.graph.lint()
    graph.recompile()
    return bool(found)


def _is_product(node: Any) -> bool:
    """Tells whether a node is a product of float32 tensors."""
    aten = torch.ops.aten
    kinds = (
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.convolution.default,
        aten.convolution_backward.default,
    )
    value = node.meta.get("val")
    first = value[1] if isinstance(value, (tuple, list)) else value
    return node.target in kinds and not node.kwargs and first.dtype == torch.float32


def _replace(graph: Any, node: Any) -> None:
    """Puts a product between roundings in the place of one."""
    aten = torch.ops.aten
    args, bias = node.args, None
    target = node.target
    if target is aten.addmm.default:
        bias, *args = args
        target = aten.mm.default
    if target is aten.convolution.default and args[2] is not None:
        bias, args = _channels(graph, node), (*args[:2], None, *args[3:])

    def rounded(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        return graph.call_function(aten._to_copy.default, (value,), {"dtype": torch.bfloat16})

    with graph.inserting_before(node):
        lower = graph.call_function(target, tuple(pytree.tree_map(rounded, list(args))))
        if isinstance(node.meta["val"], (tuple, list)):
            exact = [_whole(graph, lower, i, v) for i, v in enumerate(node.meta["val"])]
            _take_over(graph, node, exact)
            return
        result = graph.call_function(aten._to_copy.default, (lower,), {"dtype": torch.float32})
        if bias is not None:
            result = graph.call_function(aten.add.Tensor, (result, bias))
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _channels(graph: Any, node: Any) -> Any:
    """Returns the bias of a convolution in the form in which it is added to the result."""
    shape = [1, -1, *[1] * (node.meta["val"].dim() - 2)]
    with graph.inserting_before(node):
        return graph.call_function(torch.ops.aten.view.default, (node.args[2], shape))


def _whole(graph: Any, lower: Any, index: int, value: Any) -> Any:
    """Returns one of several results in float32, or ``None`` where there is none."""
    if value is None:
        return None
    one = graph.call_function(getitem, (lower, index))
    return graph.call_function(torch.ops.aten._to_copy.default, (one,), {"dtype": torch.float32})


def _take_over(graph: Any, node: Any, results: list[Any]) -> None:
    """Lets the results of a node with several be others."""
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
