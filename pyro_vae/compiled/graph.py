"""Capture of a function of tensors as one graph, and compilation of the graph."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.compiled.convolutions import use_channels_last
from pyro_vae.validation import check_choice

__all__ = [
    "Backend",
    "Captured",
    "NeverCapturedError",
    "NotCapturedError",
    "capture_graph",
    "check_backend",
    "compile_graph",
    "keep_freed_memory",
    "make_log1p_pass",
]

_AnyGraph = Any
"""A ``torch.fx.GraphModule``; its module is imported lazily."""

Backend = Literal["inductor", "eager"] | Callable[[_AnyGraph, list[Tensor]], Callable[..., Any]]
"""A name, or a function of a graph and example inputs, as a backend of ``torch.compile``."""


class NotCapturedError(Exception):
    """A function cannot be captured as one graph, for the reason in the message."""


class NeverCapturedError(NotCapturedError):
    """A function can never be captured, because each call would fail in the same way."""


class Captured(NamedTuple):
    """A function as a graph.

    Attributes:
        graph: The graph, called as ``graph(*lifted, *inputs)``; returns a tuple of tensors.
        lifted: The tensors that the function reads besides its inputs: parameters, buffers,
            constants. As inputs of the graph they are read, and changed, at each call.
    """

    graph: _AnyGraph
    lifted: list[Tensor]


class _ForbidDataDependence(TorchDispatchMode):
    """Raises an error where a number is read off a tensor, which the graph would fix."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation, unless a number or shape that it returns depends on values."""
        if torch.Tag.data_dependent_output in func.tags or _has_free_shape(func, args):
            raise NotCapturedError(
                f"a number or a shape depends on the values of a tensor, by {func.name()} "
                f"(.item(), if, bool() or a mask as an index)"
            )
        return func(*args, **(kwargs or {}))


def _has_free_shape(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the shape of a result depends on the values of a tensor."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    if func is not torch.ops.aten.index.Tensor:
        return True
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def capture_graph(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> Captured:
    """Runs a function once and returns its operations as a graph.

    Arguments:
        function: A function of tensors; operations of autograd within it are part of the graph.
        inputs: The tensors to run it on.

    Raises:
        NotCapturedError: If the function reads a number off a tensor.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def run_guarded(*tensors: Tensor) -> tuple[Tensor, ...]:
        with _ForbidDataDependence():
            return function(*tensors)

    # Copies keep an input apart from an equal input, and from a tensor that is read elsewhere.
    return _lift(make_fx(run_guarded)(*(tensor.detach().clone() for tensor in inputs)))


def _lift(graph: _AnyGraph) -> Captured:
    """Turns the constant tensors of a graph into inputs, one for each tensor."""
    nodes = graph.graph.nodes
    # Without inputs, the first nodes are constants, which are erased below.
    first = next(node for node in nodes if node.op != "get_attr")
    placeholders: dict[int, Any] = {}
    lifted: list[Tensor] = []
    for node in [node for node in nodes if node.op == "get_attr"]:
        tensor = attrgetter(node.target)(graph)
        if id(tensor) not in placeholders:
            with graph.graph.inserting_before(first):
                placeholders[id(tensor)] = graph.graph.placeholder(f"lifted_{len(lifted)}")
            placeholders[id(tensor)].meta.update(node.meta)
            lifted.append(tensor)
        node.replace_all_uses_with(placeholders[id(tensor)])
        graph.graph.erase_node(node)
    graph.recompile()
    return Captured(graph, lifted)


def check_backend(backend: Backend) -> Backend:
    """Returns a backend, or raises a ``ValueError`` for an invalid one."""
    if callable(backend):
        return backend
    return check_choice("backend", backend, ("inductor", "eager"))


def compile_graph(
    captured: Captured, inputs: Sequence[Tensor], backend: Backend = "inductor"
) -> Callable[..., Sequence[Tensor]]:
    """Compiles a graph that draws its noise from PyTorch's generators, as the function does.

    Arguments:
        captured: The graph.
        inputs: Its inputs, without the lifted ones.
        backend: As of :func:`pyro_vae.compile`.
    """
    if backend == "eager":
        return captured.graph
    if callable(backend):
        return backend(captured.graph, [*captured.lifted, *inputs])
    use_channels_last(captured.graph)
    keep_freed_memory()
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Without a context of this kind, PyTorch does not use its cache of compiled graphs.
    context = TracingContext(FakeTensorMode(shape_env=ShapeEnv(assume_static_by_default=True)))
    settings = config.patch(fallback_random=True, post_grad_custom_pre_pass=make_log1p_pass())
    with settings, tracing(context), torch.no_grad(), warnings.catch_warnings():
        # These warnings concern calls within the compiler.
        warnings.simplefilter("ignore", FutureWarning)
        compiled: Any = compile_fx(captured.graph, [*captured.lifted, *inputs])
    return compiled


def keep_freed_memory() -> None:
    """Lets the C library of Linux keep up to 62 MiB of freed memory for the process.

    It returns less by default. A graph would then request its memory from the system at each call,
    which takes up to a tenth of the time of an evaluation. The limit grows with the largest block
    of up to 32 MiB that was freed, even if nothing was written to it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@cache
def make_log1p_pass() -> Callable[[Any], None]:
    """Returns a pass of Inductor that replaces ``log1p`` by :func:`log1p`.

    A table of decompositions would do the same, but PyTorch does not cache graphs with one. The id
    of a pass is part of the key of the cache.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass
    from torch._inductor.pattern_matcher import (
        Arg,
        CallFunction,
        PatternMatcherPass,
        register_graph_pattern,
    )

    patterns = PatternMatcherPass()

    @register_graph_pattern(CallFunction(torch.ops.aten.log1p.default, Arg()), pass_dict=patterns)
    def replace(match: Any, x: Any) -> None:
        value = x.meta["val"]
        if value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64):
            match.replace_by_example(log1p, [x])

    class ReplaceLog1p(CustomGraphPass):
        def __call__(self, graph: Any) -> None:
            patterns.apply(graph)

        def uuid(self) -> bytes:
            return f"{__name__}.log1p: {inspect.getsource(log1p)}".encode()

    return ReplaceLog1p()


def log1p(x: Tensor) -> Tensor:
    r"""Returns :math:`\log(1 + x)` to full precision, computed by a logarithm.

    With :math:`y = 1 + x` rounded, it is :math:`x \log(y) / (y - 1)`. On processors this is much
    faster than PyTorch's ``log1p``, which dominates the time of the Bernoulli density.
    """
    rounded = 1 + x
    remainder = rounded - 1
    # Without rounding error no factor is needed; at infinity it would be NaN.
    corrected = torch.where(remainder == x, rounded.log(), rounded.log() * (x / remainder))
    return torch.where(remainder == 0, x, corrected)
