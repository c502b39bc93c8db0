"""Matrix products of a graph by the faster of two libraries."""

import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["choose_products", "eligible", "use_onednn"]

_Products = Literal["mkl", "onednn"]

_WORTH = 0.85
"""Up to which part of the time oneDNN's products are taken, lest the choice hang on noise."""

LARGE = 1_000_000
"""From how many multiplications on a product is one for oneDNN, whose calls cost more."""


class _Shape(NamedTuple):
    """The shapes and strides of the two factors of a product."""

    left: tuple[tuple[int, ...], tuple[int, ...]]
    right: tuple[tuple[int, ...], tuple[int, ...]]


def eligible(graph: Any) -> list[Any]:
    """Returns the nodes of a graph that are products which oneDNN could take over.

    Those are large ``mm`` and plain ``addmm`` of float32 matrices on the processor. Which are
    large does not hang on a clock, so that a training that goes on has the bits it began with.
    """
    if not torch.backends.mkldnn.is_available():
        return []
    aten = torch.ops.aten
    return [
        node
        for node in graph.graph.nodes
        if node.target in (aten.mm.default, aten.addmm.default)
        and not node.kwargs
        and node.meta["val"].dtype == torch.float32
        and node.meta["val"].device.type == "cpu"
        and _multiplications(node) >= LARGE
    ]


def _multiplications(node: Any) -> int:
    """Returns how many multiplications a product takes."""
    return node.args[-2].meta["val"].numel() * node.args[-1].meta["val"].shape[1]


def choose_products(graph: Any) -> _Products:
    """Returns the library that takes less time for the products of a graph, by a short timing."""
    shapes = Counter(_shape_of(node) for node in eligible(graph))
    seconds = {"mkl": 0.0, "onednn": 0.0}
    for shape, count in shapes.items():
        left, right = (_factor(*shape.left), _factor(*shape.right))
        seconds["mkl"] += count * _quickest(torch.mm, left, right)
        seconds["onednn"] += count * _quickest(by_onednn(), left, right.t())
    return "onednn" if seconds["onednn"] < _WORTH * seconds["mkl"] else "mkl"


def use_onednn(graph: Any) -> None:
    """Replaces the eligible products of a graph by oneDNN's."""
    aten = torch.ops.aten
    for node in eligible(graph):
        *bias, left, right = node.args
        with graph.graph.inserting_before(node):
            transposed = graph.graph.call_function(aten.t.default, (right,))
            product = graph.graph.call_function(by_onednn(), (left, transposed))
            if bias:
                product = graph.graph.call_function(aten.add.Tensor, (product, bias[0]))
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.recompile()


@cache
def by_onednn() -> Callable[[Tensor, Tensor], Tensor]:
    """Returns an operator for a product, of a matrix with the transpose of another, by oneDNN.

    Inductor compiles PyTorch's own operator only where the second factor never changes.
    """
    library = torch.library.Library("pyro_vae", "FRAGMENT")
    library.define("product(Tensor left, Tensor right) -> Tensor")
    linear = torch.ops.mkldnn._linear_pointwise.default

    def product(left: Tensor, right: Tensor) -> Tensor:
        return linear(left, right, None, "none", [], "")

    def shape(left: Tensor, right: Tensor) -> Tensor:
        return left.new_empty(left.shape[0], right.shape[0])

    library.impl("product", product, "CPU")
    library.impl("product", shape, "Meta")
    _libraries.append(library)
    _call_directly()
    return torch.ops.pyro_vae.product.default


def _call_directly() -> None:
    """Lets machine code call oneDNN's operator itself, without the way through Python."""
    from torch._inductor.lowering import fallback_handler, register_lowering

    linear = fallback_handler(torch.ops.mkldnn._linear_pointwise.default, add_to_fallback_set=False)

    @register_lowering(torch.ops.pyro_vae.product.default, type_promotion_kind=None)
    def product(left: Any, right: Any) -> Any:
        return linear(left, right, None, "none", [], "")


_libraries: list[torch.library.Library] = []
"""What was registered, which ends with the object."""


def _shape_of(node: Any) -> _Shape:
    """Returns the shapes and strides of the factors of a node."""
    left, right = (argument.meta["val"] for argument in node.args[-2:])
    return _Shape((tuple(left.shape), left.stride()), (tuple(right.shape), right.stride()))


def _factor(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Returns a matrix of ones of a shape and stride."""
    return torch.empty_strided(shape, stride).fill_(1.0)


def _quickest(function: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> float:
    """Returns the shortest of a few times of a product, in seconds."""
    times = []
    for _ in range(15):
        began = time.perf_counter()
        function(left, right)
        times.append(time.perf_counter() - began)
    return min(times)
