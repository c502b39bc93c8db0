"""Matmuls of a graph by the faster of MKL and oneDNN."""

import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["choose_matmul_library", "find_eligible_matmuls", "use_onednn"]

_Library = Literal["mkl", "onednn"]

_MAX_TIME_RATIO = 0.9
"""oneDNN is chosen up to this share of MKL's time, so that noise rarely decides."""

MIN_MULTIPLICATIONS = 1_000_000
"""The size from which oneDNN is used for a matmul, because its calls have more overhead."""


class _MatmulShape(NamedTuple):
    """The shapes and strides of the two factors."""

    left: tuple[tuple[int, ...], tuple[int, ...]]
    right: tuple[tuple[int, ...], tuple[int, ...]]


def find_eligible_matmuls(graph: Any) -> list[Any]:
    """Returns the nodes of a graph that oneDNN can compute.

    These are large ``mm`` and plain ``addmm`` of float32 matrices on the processor. The size does
    not depend on timing, so that a resumed training reproduces the same bits.
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
        and _count_multiplications(node) >= MIN_MULTIPLICATIONS
    ]


def _count_multiplications(node: Any) -> int:
    return node.args[-2].meta["val"].numel() * node.args[-1].meta["val"].shape[1]


def choose_matmul_library(graph: Any) -> _Library:
    """Returns the library that takes less time for the matmuls of a graph, by a short timing."""
    shapes = Counter(_read_shape(node) for node in find_eligible_matmuls(graph))
    seconds = {"mkl": 0.0, "onednn": 0.0}
    for shape, count in shapes.items():
        left, right = (_make_factor(*shape.left), _make_factor(*shape.right))
        seconds["mkl"] += count * _time_matmul(torch.mm, left, right)
        seconds["onednn"] += count * _time_matmul(get_onednn_matmul(), left, right.t())
    return "onednn" if seconds["onednn"] < _MAX_TIME_RATIO * seconds["mkl"] else "mkl"


def use_onednn(graph: Any) -> None:
    """Replaces the eligible matmuls of a graph by oneDNN's."""
    aten = torch.ops.aten
    for node in find_eligible_matmuls(graph):
        *bias, left, right = node.args
        with graph.graph.inserting_before(node):
            transposed = graph.graph.call_function(aten.t.default, (right,))
            result = graph.graph.call_function(get_onednn_matmul(), (left, transposed))
            if bias:
                result = graph.graph.call_function(aten.add.Tensor, (result, bias[0]))
        node.replace_all_uses_with(result)
        graph.graph.erase_node(node)
    graph.recompile()


@cache
def get_onednn_matmul() -> Callable[[Tensor, Tensor], Tensor]:
    """Returns an operator that multiplies a matrix with the transpose of another by oneDNN.

    Inductor compiles PyTorch's operator only for a constant second factor.
    """
    library = torch.library.Library("pyro_vae", "FRAGMENT")
    library.define("matmul(Tensor left, Tensor right) -> Tensor")
    linear = torch.ops.mkldnn._linear_pointwise.default

    def multiply(left: Tensor, right: Tensor) -> Tensor:
        return linear(left, right, None, "none", [], "")

    def infer_shape(left: Tensor, right: Tensor) -> Tensor:
        return left.new_empty(left.shape[0], right.shape[0])

    library.impl("matmul", multiply, "CPU")
    library.impl("matmul", infer_shape, "Meta")
    _libraries.append(library)
    _register_lowering()
    return torch.ops.pyro_vae.matmul.default


def _register_lowering() -> None:
    """Makes compiled code call oneDNN's operator directly instead of through Python."""
    from torch._inductor.lowering import fallback_handler, register_lowering

    linear = fallback_handler(torch.ops.mkldnn._linear_pointwise.default, add_to_fallback_set=False)

    @register_lowering(torch.ops.pyro_vae.matmul.default, type_promotion_kind=None)
    def multiply(left: Any, right: Any) -> Any:
        return linear(left, right, None, "none", [], "")


_libraries: list[torch.library.Library] = []
"""Keeps libraries alive, because their operators are removed with the object."""


def _read_shape(node: Any) -> _MatmulShape:
    left, right = (argument.meta["val"] for argument in node.args[-2:])
    return _MatmulShape((tuple(left.shape), left.stride()), (tuple(right.shape), right.stride()))


def _make_factor(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(shape, stride).fill_(1.0)


def _time_matmul(
    function: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor
) -> float:
    """Returns the shortest of 15 durations, in seconds."""
    durations = []
    for _ in range(15):
        start = time.perf_counter()
        function(left, right)
        durations.append(time.perf_counter() - start)
    return min(durations)
