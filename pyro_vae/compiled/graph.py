"""From a function of tensors to one graph, and from the graph to machine code."""

import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.validation import check_choice

__all__ = [
    "Backend",
    "Captured",
    "NeverCapturedError",
    "NotCapturedError",
    "capture",
    "check_backend",
    "to_machine_code",
]

_AnyGraph = Any
"""A ``torch.fx.GraphModule``, whose module is imported when it is needed."""

Backend = Literal["inductor", "eager"] | Callable[[_AnyGraph, list[Tensor]], Callable[..., Any]]
"""What makes a function of a graph and its example inputs, as ``torch.compile`` has it."""


class NotCapturedError(Exception):
    """A function does more than one graph can hold; the message says what."""


class NeverCapturedError(NotCapturedError):
    """A function does so at each call, so that no later call can be captured either."""


class Captured(NamedTuple):
    """A function as a graph.

    Attributes:
        graph: The graph, called as ``graph(*lifted, *inputs)``; returns a tuple of tensors.
        lifted: The tensors that the function found elsewhere than among its inputs: parameters,
            buffers, constants. As inputs they are read anew at each call, and written to.
    """

    graph: _AnyGraph
    lifted: list[Tensor]


class _NoReading(TorchDispatchMode):
    """Raises where a number is read off a tensor: the graph would hold it for good."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation, unless what it gives other than tensors depends on their values."""
        if torch.Tag.data_dependent_output in func.tags or _has_free_shape(func, args):
            raise NotCapturedError(
                f"a number or a shape depends on the values of a tensor, by {func.name()} "
                f"(.item(), if, bool() or a mask as an index)"
            )
        return func(*args, **(kwargs or {}))


def _has_free_shape(func: Any, args: tuple[Any, ...]) -> bool:
    """Tells whether the shape of a result depends on the values of a tensor."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    if func is not torch.ops.aten.index.Tensor:
        return True
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def capture(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> Captured:
    """Runs a function once and returns what it computed as a graph.

    Arguments:
        function: A function of tensors; operations of autograd within it are part of the graph.
        inputs: The tensors to run it on.

    Raises:
        NotCapturedError: If the function reads a number off a tensor.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def watched(*tensors: Tensor) -> tuple[Tensor, ...]:
        with _NoReading():
            return function(*tensors)

    # Copies, since a tensor that is given twice, or is also found elsewhere, is two inputs.
    return _lift(make_fx(watched)(*(tensor.detach().clone() for tensor in inputs)))


def _lift(graph: _AnyGraph) -> Captured:
    """Makes inputs of the tensors that a graph holds, one for each tensor."""
    nodes = graph.graph.nodes
    # A node that stays: without inputs the first is a tensor that the graph holds.
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
    """Returns a backend, or raises a ``ValueError`` for what is none."""
    if callable(backend):
        return backend
    return check_choice("backend", backend, ("inductor", "eager"))


def to_machine_code(
    captured: Captured, inputs: Sequence[Tensor], backend: Backend = "inductor"
) -> Callable[..., Sequence[Tensor]]:
    """Compiles a graph, its noise drawn from PyTorch's generators as in the function itself.

    Arguments:
        captured: The graph.
        inputs: Its inputs, without the lifted ones.
        backend: As of :func:`pyro_vae.compile`.
    """
    if backend == "eager":
        return captured.graph
    if callable(backend):
        return backend(captured.graph, [*captured.lifted, *inputs])
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    decompositions = {**select_decomp_table(), torch.ops.aten.log1p.default: log1p}
    with config.patch(fallback_random=True), torch.no_grad(), warnings.catch_warnings():
        # What the compiler itself calls, its callers cannot change.
        warnings.simplefilter("ignore", FutureWarning)
        compiled: Any = compile_fx(
            captured.graph, [*captured.lifted, *inputs], decompositions=decompositions
        )
    return compiled


def log1p(x: Tensor) -> Tensor:
    r"""Returns :math:`\log(1 + x)` to full precision by way of a logarithm.

    The rounding of 1 + x is undone by a factor, x over what is left of it. On processors this
    takes a small part of the time of PyTorch's own, which the Bernoulli's density waits for.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    rounded = 1 + x
    left = rounded - 1
    # Where nothing is lost, infinity included, there is nothing to undo.
    corrected = torch.where(left == x, rounded.log(), rounded.log() * (x / left))
    return torch.where(left == 0, x, corrected)
