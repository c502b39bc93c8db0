"""Convolutions of a graph as matmuls of patches, and the layout of the others."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Geometry", "fold", "replace_convolutions", "unfold", "use_channels_last"]

_MAX_NUMBERS = 64
"""The most numbers in a patch, channels times height times width, for which this is faster."""

_Rows = dict[tuple[Any, "Geometry"], Any]
"""The nodes of patches, by the node of the images."""


class Geometry(NamedTuple):
    """Where the patches of an image lie.

    Attributes:
        kernel: Height and width of a patch.
        stride: The distance of a patch from the next one, down and right.
        padding: The rows and columns of zeros around the image.
        image: Height and width of the image.
        patches: The numbers of patches, down and right.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    image: tuple[int, int]
    patches: tuple[int, int]


def unfold(images: Tensor, geometry: Geometry) -> Tensor:
    """Returns the patches of images, ``(N, channels, height, width)``, as rows of a matrix.

    A row is a patch of shape ``(height, width, channels)``, flattened.
    """
    kernel, stride, padding, image, patches = geometry
    ends = [(patches[i] - 1) * stride[i] + kernel[i] - image[i] - padding[i] for i in (0, 1)]
    x = pad(images.permute(0, 2, 3, 1), (0, 0, padding[1], ends[1], padding[0], ends[0]))
    x = x.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
    return x.permute(0, 1, 2, 4, 5, 3).reshape(len(images) * patches[0] * patches[1], -1)


def fold(rows: Tensor, geometry: Geometry) -> Tensor:
    """Adds patches up to images: the transpose of :func:`unfold`."""
    kernel, stride, padding, image, patches = geometry
    parts = rows.view(-1, *patches, *kernel, rows.shape[1] // (kernel[0] * kernel[1]))
    # Pixels at the same position between strides get their parts from the same places.
    size = [-(-image[i] // stride[i]) for i in (0, 1)]
    lines = []
    for down in range(stride[0]):
        phases = []
        for right in range(stride[1]):
            total = rows.new_zeros(parts.shape[0], *size, parts.shape[-1])
            for place in product(range(kernel[0]), range(kernel[1])):
                gaps = [(down, right)[i] + padding[i] - place[i] for i in (0, 1)]
                starts = [gaps[i] // stride[i] for i in (0, 1)]
                is_inside = all(-size[i] < starts[i] < patches[i] for i in (0, 1))
                if is_inside and gaps[0] % stride[0] == gaps[1] % stride[1] == 0:
                    total = total + _shift(parts[:, :, :, place[0], place[1]], starts, size)
            phases.append(total)
        lines.append(torch.stack(phases, 3))
    grid = torch.stack(lines, 2).flatten(3, 4).flatten(1, 2)
    return grid[:, : image[0], : image[1]].permute(0, 3, 1, 2)


def _shift(x: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    """Returns channels-last images from a row and column on, cropped or filled with zeros."""
    (height, width), (down, right) = x.shape[1:3], starts
    return pad(x, (0, 0, -right, size[1] - width + right, -down, size[0] - height + down))


def convolve(rows: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Computes ``conv2d`` from patches: each output is the product of one with a kernel."""
    images = (rows @ _to_matrix(weight).t()).view(-1, *geometry.patches, len(weight))
    return images.permute(0, 3, 1, 2)


def convolve_transposed(images: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Computes ``conv_transpose2d``: each input adds a patch to the output."""
    return fold(_to_rows(images) @ _to_matrix(weight), geometry)


def find_weight_gradient(rows: Tensor, others: Tensor, geometry: Geometry) -> Tensor:
    """Returns the gradient of the weight of ``conv2d`` or ``conv_transpose2d``.

    Arguments:
        rows: The patches of the input, or of the gradient of a transposed convolution's output.
        others: The gradient of the output, or the input of a transposed convolution.
        geometry: The patches.
    """
    others = _to_rows(others)
    # A library may copy the transposed factor, so it is the smaller one.
    is_smaller = others.shape[1] <= rows.shape[1]
    gradient = others.t() @ rows if is_smaller else (rows.t() @ others).t()
    channels = rows.shape[1] // math.prod(geometry.kernel)
    gradient = gradient.reshape(-1, *geometry.kernel, channels).permute(0, 3, 1, 2)
    # A single channel makes the gradient contiguous, but not with the strides of a weight.
    return gradient.clone(memory_format=torch.contiguous_format)


def _to_rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _to_matrix(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).flatten(1)


def replace_convolutions(graph: Any) -> int:
    """Replaces convolutions that are faster as matmuls of patches, and their gradients.

    These are convolutions of few channels and transposed convolutions to few channels on a
    processor, such as the first layer of an encoder and the last layer of a decoder. The libraries
    of convolutions need up to several times as long for them.

    Arguments:
        graph: A graph, which is changed.

    Returns:
        The number of operations that were replaced.
    """
    aten = torch.ops.aten
    nodes = list(graph.graph.nodes)
    if any(node.target is aten.as_strided.default for node in nodes):
        return 0
    targets = (aten.convolution.default, aten.convolution_backward.default)
    chosen = [node for node in nodes if node.target in targets and _is_faster(node)]
    rows: _Rows = {}
    for node in chosen:
        with graph.graph.inserting_before(node):
            replace = _replace_gradient if _is_gradient(node) else _replace_convolution
            replace(graph.graph, node, rows)
        graph.graph.erase_node(node)
    if chosen:
        _allow_any_layout(graph)
    return len(chosen)


def use_channels_last(graph: Any) -> None:
    """Makes the convolutions of a graph on a processor store images channels-last.

    That is the order in which they are computed. The graph makes copies of images and weights in
    that order, most of them as part of the operation before.
    """
    aten = torch.ops.aten
    nodes = list(graph.graph.nodes)
    targets = (aten.convolution.default, aten.convolution_backward.default)
    convolutions = [node for node in nodes if node.target in targets and _is_contiguous(node)]
    if not convolutions or any(node.target is aten.as_strided.default for node in nodes):
        return
    for node in convolutions:
        # Copied where it is used, because the model may change a weight in place before.
        with graph.graph.inserting_before(node):
            for place in range(3 if _is_gradient(node) else 2):
                node.update_arg(place, _copy(graph.graph, node.args[place], torch.channels_last))
        if _is_gradient(node):
            _finish_gradients(graph.graph, node)
    _allow_any_layout(graph)


def _finish_gradients(graph: Any, node: Any) -> None:
    """Makes the gradient of a weight contiguous, and computes that of a bias apart."""
    for result in list(node.users):
        # Results that nobody needs may be None.
        if not result.users:
            graph.erase_node(result)
            continue
        with graph.inserting_after(result):
            if result.args[1] == 1:
                gradient = _copy(graph, result, torch.contiguous_format)
                result.replace_all_uses_with(gradient, lambda user, own=gradient: user is not own)
            elif result.args[1] == 2:
                total = graph.call_function(
                    torch.ops.aten.sum.dim_IntList, (node.args[0], [0, 2, 3])
                )
                result.replace_all_uses_with(total)
                graph.erase_node(result)
    node.update_arg(10, [*node.args[10][:2], False])


def _allow_any_layout(graph: Any) -> None:
    """Replaces the operations of a graph that need a certain layout, and recompiles it."""
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    graph.recompile()


def _is_contiguous(node: Any) -> bool:
    """Whether a convolution, or its gradient, has a contiguous weight for images."""
    # Factors that are rounded to bfloat16 have no example.
    weight = _find_input(node)[1].meta.get("val")
    if weight is None or weight.dim() != 4:
        return False
    return weight.device.type == "cpu" and weight.is_contiguous()


def _copy(graph: Any, node: Any, memory_format: torch.memory_format) -> Any:
    return graph.call_function(
        torch.ops.aten.clone.default, (node,), {"memory_format": memory_format}
    )


def _is_faster(node: Any) -> bool:
    """Whether a convolution, or its gradient, is faster as matmuls of patches."""
    x, weight = (argument.meta["val"] for argument in _find_input(node))
    _, padding, dilation, _, _, groups = _find_settings(node)
    return (
        groups == 1
        and all(size == 1 for size in dilation)
        and weight.dim() == 4
        and weight[0].numel() <= _MAX_NUMBERS
        and all(map(operator.lt, padding, weight.shape[2:]))
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
    )


def _find_input(node: Any) -> tuple[Any, Any]:
    """Returns the nodes of the input and the weight of a convolution or its gradient."""
    return node.args[1:3] if _is_gradient(node) else node.args[:2]


def _find_settings(node: Any) -> tuple[Any, ...]:
    """Returns stride, padding, dilation, whether it is transposed, output padding and groups."""
    return node.args[4:10] if _is_gradient(node) else node.args[3:9]


def _is_gradient(node: Any) -> bool:
    return node.target is torch.ops.aten.convolution_backward.default


def _find_geometry(node: Any) -> Geometry:
    x, weight = (argument.meta["val"] for argument in _find_input(node))
    stride, padding, _, is_transposed, *_ = _find_settings(node)
    output = (node.args[0] if _is_gradient(node) else node).meta["val"]
    image, patches = (output, x) if is_transposed else (x, output)
    sizes = (weight.shape[2:], stride, padding, image.shape[2:], patches.shape[2:])
    return Geometry(*map(tuple, sizes))


def _replace_convolution(graph: Any, node: Any, rows: _Rows) -> None:
    aten = torch.ops.aten
    x, weight, bias, _, _, _, is_transposed, *_ = node.args
    geometry = _find_geometry(node)
    if is_transposed:
        result = _insert(graph, partial(convolve_transposed, geometry=geometry), x, weight)
    else:
        patches = _find_rows(graph, x, geometry, rows)
        result = _insert(graph, partial(convolve, geometry=geometry), patches, weight)
    if bias is not None:
        column = graph.call_function(aten.reshape.default, (bias, [-1, 1, 1]))
        result = graph.call_function(aten.add.Tensor, (result, column))
        result.meta.update(node.meta)
    node.replace_all_uses_with(result)


def _replace_gradient(graph: Any, node: Any, rows: _Rows) -> None:
    gradient, x, weight, *_ = node.args
    is_transposed, geometry = node.args[7], _find_geometry(node)
    patched, other = (gradient, x) if is_transposed else (x, gradient)
    for result in list(node.users):
        if result.users:
            index = result.args[1]
            if index == 2:
                found = _insert(graph, _sum_bias, gradient)
            elif index == 0 and not is_transposed:
                function = partial(convolve_transposed, geometry=geometry)
                found = _insert(graph, function, gradient, weight)
            else:
                function = partial(find_weight_gradient if index else convolve, geometry=geometry)
                patches = _find_rows(graph, patched, geometry, rows)
                found = _insert(graph, function, patches, other if index else weight)
            result.replace_all_uses_with(found)
        graph.erase_node(result)


def _sum_bias(gradient: Tensor) -> Tensor:
    return gradient.sum((0, 2, 3))


def _find_rows(graph: Any, images: Any, geometry: Geometry, rows: _Rows) -> Any:
    """Returns the node of the patches of images, which a convolution shares with its gradient."""
    if (images, geometry) not in rows:
        rows[images, geometry] = _insert(graph, partial(unfold, geometry=geometry), images)
    return rows[images, geometry]


def _insert(graph: Any, function: Callable[..., Any], *nodes: Any) -> Any:
    """Inserts the operations of a function of tensors, and returns the nodes of its results."""
    from torch.fx.experimental.proxy_tensor import make_fx

    values = [node.meta["val"] for node in nodes]
    examples = [torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in values]
    with torch.no_grad():
        traced = make_fx(function, tracing_mode="fake")(*examples).graph
    placeholders = [node for node in traced.nodes if node.op == "placeholder"]
    return graph.graph_copy(traced, dict(zip(placeholders, nodes, strict=True)))
