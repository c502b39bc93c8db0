"""Transposed convolutions to few channels, as a product of matrices within a graph."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["conv_transpose", "replace_thin_convolutions", "use_channels_last"]

_MAX_NUMBERS = 64
"""The most numbers of a kernel, channels times width times height, for which this is faster."""


def replace_thin_convolutions(graph: Any) -> int:
    """Replaces transposed convolutions to few channels by :func:`conv_transpose`.

    The last layer of a decoder of images has one or three channels. The libraries of convolutions
    for processors need several times as long for it.

    Arguments:
        graph: A graph, which is changed.

    Returns:
        The number of convolutions that were replaced.
    """
    nodes = [node for node in graph.graph.nodes if _is_thin(node)]
    for node in nodes:
        _replace_node(graph.graph, node)
    if nodes:
        graph.recompile()
    return len(nodes)


def use_channels_last(graph: Any) -> None:
    """Makes the convolutions of a graph on a processor store images channels-last.

    That is the order in which they are computed. PyTorch takes it over from the weights, of which
    the graph makes copies in that order.
    """
    aten = torch.ops.aten
    nodes = list(graph.graph.nodes)
    places = {aten.convolution.default: 1, aten.convolution_backward.default: 2}
    convolutions = [node for node in nodes if _has_contiguous_weight(node, places)]
    if not convolutions or any(node.target is aten.as_strided.default for node in nodes):
        return
    for node in convolutions:
        place = places[node.target]
        # Copied where it is used, because the model may change a weight in place before.
        with graph.graph.inserting_before(node):
            weight = _copy(graph.graph, node.args[place], torch.channels_last)
        node.update_arg(place, weight)
        for result in node.users:
            if node.target is aten.convolution_backward.default and result.args[1] == 1:
                with graph.graph.inserting_after(result):
                    gradient = _copy(graph.graph, result, torch.contiguous_format)
                result.replace_all_uses_with(gradient, lambda user, own=gradient: user is not own)
    for node in nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    graph.recompile()


def _has_contiguous_weight(node: Any, places: dict[Any, int]) -> bool:
    if node.target not in places:
        return False
    # Factors that are rounded to bfloat16 have no example.
    weight = node.args[places[node.target]].meta.get("val")
    if weight is None or weight.dim() != 4:
        return False
    return weight.device.type == "cpu" and weight.is_contiguous()


def _copy(graph: Any, node: Any, memory_format: torch.memory_format) -> Any:
    return graph.call_function(
        torch.ops.aten.clone.default, (node,), {"memory_format": memory_format}
    )


def _is_thin(node: Any) -> bool:
    if node.target is not torch.ops.aten.convolution.default:
        return False
    x, weight = (argument.meta.get("val") for argument in node.args[:2])
    if x is None or weight is None:
        return False
    _, _, dilation, transposed, _, groups = node.args[3:]
    return (
        transposed
        and groups == 1
        and all(size == 1 for size in dilation)
        and weight.dim() == 4
        and weight[0].numel() <= _MAX_NUMBERS
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
    )


def _replace_node(graph: Any, node: Any) -> None:
    """Replaces a node by the operations of :func:`conv_transpose`, and adds the bias."""
    from torch.fx.experimental.proxy_tensor import make_fx

    x, weight, bias, stride, padding, _, _, output_padding, _ = node.args
    values = [argument.meta["val"] for argument in (x, weight)]
    examples = [torch.zeros(v.shape, dtype=v.dtype, device=v.device) for v in values]
    settings = {"stride": stride, "padding": padding, "output_padding": output_padding}
    with torch.no_grad():
        traced = make_fx(partial(conv_transpose, **settings))(*examples).graph
    placeholders = [n for n in traced.nodes if n.op == "placeholder"]
    aten = torch.ops.aten
    with graph.inserting_before(node):
        result = graph.graph_copy(traced, dict(zip(placeholders, (x, weight), strict=True)))
        if bias is not None:
            column = graph.call_function(aten.reshape.default, (bias, [-1, 1, 1]))
            result = graph.call_function(aten.add.Tensor, (result, column))
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
) -> Tensor:
    """Computes a transposed convolution of images without bias, as ``conv_transpose2d``.

    Each input pixel adds a small image to the output. One product of matrices computes all of
    them. Those whose pixels coincide are shifted and summed.
    """
    channels, kernel, image = weight.shape[1], weight.shape[2:], x.shape[2:]
    size = [
        (image[i] - 1) * stride[i] - 2 * padding[i] + kernel[i] + output_padding[i] for i in (0, 1)
    ]
    parts = x.permute(0, 2, 3, 1).flatten(0, 2) @ weight.flatten(1)
    parts = parts.view(len(x), *image, channels, *kernel).permute(4, 5, 0, 3, 1, 2)
    # Output pixels at the same position between strides get their parts from the same places.
    lengths = [-(-size[i] // stride[i]) for i in (0, 1)]
    shape = (len(x), channels, *lengths)
    phases = []
    for phase in product(range(stride[0]), range(stride[1])):
        total = x.new_zeros(shape)
        for place in product(range(kernel[0]), range(kernel[1])):
            gaps = [phase[i] + padding[i] - place[i] for i in (0, 1)]
            if gaps[0] % stride[0] == gaps[1] % stride[1] == 0:
                total = total + _shift(
                    parts[place], gaps[0] // stride[0], gaps[1] // stride[1], shape
                )
        phases.append(total)
    grid = torch.stack(phases, -1).view(*shape, *stride).permute(0, 1, 2, 4, 3, 5)
    return grid.flatten(4, 5).flatten(2, 3)[:, :, : size[0], : size[1]]


def _shift(image: Tensor, down: int, right: int, shape: tuple[int, ...]) -> Tensor:
    """Returns the images from a first row and column on, cropped or filled with zeros."""
    height, width = image.shape[-2:]
    return pad(image, (-right, shape[-1] - width + right, -down, shape[-2] - height + down))
