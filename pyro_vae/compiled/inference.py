"""Functions without gradients as compiled graphs."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.compiled.bfloat16 import use_bfloat16
from pyro_vae.compiled.constants import Constants
from pyro_vae.compiled.convolutions import replace_convolutions
from pyro_vae.compiled.cuda_graph import record_graph
from pyro_vae.compiled.environment import HostNoise, StepEnvironment
from pyro_vae.compiled.graph import Backend, NotCapturedError, capture_graph, compile_graph
from pyro_vae.compiled.matmul import use_onednn
from pyro_vae.compiled.reasons import describe_capture_failure
from pyro_vae.compiled.tensors import find_shared
from pyro_vae.compiled.verify import BFLOAT16_TOLERANCE, FLOAT32_TOLERANCE, check_close
from pyro_vae.distributions.flatten import find_tensors, replace_tensors
from pyro_vae.objectives.core.user_lines import find_stacklevel

__all__ = ["CompiledFunction"]

MAX_GRAPHS = 16
"""The largest number of graphs of a function."""

_NUM_VERIFIED = 2
"""The calls of each kind that are compared with eager ones.

Two calls differ in their arguments. A number or tensor that the graph should have read from the
arguments but has fixed makes the second differ.
"""


class _Graph(NamedTuple):
    """The graph of one kind of call.

    Attributes:
        run: The compiled function, called as ``run(*lifted, *tensors)``.
        lifted: The tensors that it reads besides its arguments.
        aliases: The indices of results that share memory with an argument or another result.
    """

    run: Callable[..., Sequence[Tensor]]
    lifted: Sequence[Tensor]
    aliases: Sequence[int]


class CompiledFunction:
    """A function that runs as a compiled graph, without gradients.

    The graph is captured at the first call of each kind: structure, shapes, strides, dtypes and
    devices of the arguments, values of arguments that are not tensors, modes and settings of the
    module. The first two calls of a kind are compared with eager ones under the same noise. If
    they differ, or if the function cannot be captured, this and all later calls are eager, and a
    warning names the reason. What a function computes by NumPy, and state that it keeps in lists
    and dictionaries, is fixed in the graph.

    The graph draws the noise of the eager function from the generators of PyTorch. Pyro's
    validation is off within it.

    Arguments:
        function: A function that returns a tuple of tensors. Its arguments are tensors,
            distributions, hashable values, and tuples of them.
        module: The module that it runs, whose tensors it reads at each call.
        precision: The precision of matmuls and convolutions.
        strict: Whether to raise an error instead of making eager calls.
        backend: As of :func:`pyro_vae.compile`.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        module: nn.Module,
        *,
        precision: Literal["float32", "bfloat16"] = "float32",
        strict: bool = False,
        backend: Backend = "inductor",
    ) -> None:
        self.function = function
        self.environment = StepEnvironment(SimpleNamespace(), module)
        self.precision = precision
        self.strict = strict
        self.backend = backend
        self._graphs: dict[Hashable, _Graph] = {}
        self._verified: dict[Hashable, int] = {}
        self._constants: Constants | None = None
        self._stays_eager = False

    @torch.no_grad()
    def __call__(self, *args: Any) -> Sequence[Tensor]:
        """Returns the results of the function."""
        if self._stays_eager:
            return self.function(*args)
        try:
            tensors, description = find_tensors(args)
            key = description, *self._compute_key()
            if any(tensor.is_inference() for tensor in self.environment.tensors()):
                raise NotCapturedError("the module was built in inference mode")
        except Exception as error:
            self._give_up(error)
            return self.function(*args)
        if key in self._graphs and self._verified[key] >= _NUM_VERIFIED:
            return self._run(self._graphs[key], tensors)
        return self._run_verified(key, args, tensors)

    def _compute_key(self) -> tuple[Hashable, ...]:
        """Returns the state that a graph fixes."""
        if self._constants is None:
            self._constants = Constants([self.function, *self.environment.modules])
        return *self.environment.key(), *self._constants.read_values()

    def _run(self, graph: _Graph, tensors: list[Tensor]) -> Sequence[Tensor]:
        results = list(graph.run(*graph.lifted, *tensors))
        for i in graph.aliases:
            results[i] = results[i].clone()
        return results

    def _run_verified(
        self, key: Hashable, args: tuple[Any, ...], tensors: list[Tensor]
    ) -> Sequence[Tensor]:
        """Makes an eager call, and compares its results with those of the graph."""
        host_noise, restore, state = HostNoise(), self.environment.save_state(), self._compute_key()
        # A distribution may store derived tensors, which would change the kind of the next call.
        copied = replace_tensors(args, iter(tensors))
        expected = self.function(*copied)
        continue_from = self.environment.save_state()
        try:
            if host_noise.is_used():
                raise NotCapturedError("random numbers are drawn by Python or NumPy")
            if self._compute_key() != state:
                raise NotCapturedError("the module replaces a number or a tensor at each call")
            if len(self._graphs) >= MAX_GRAPHS:
                raise NotCapturedError(f"{MAX_GRAPHS} graphs for different calls exist already")
            restore()
            if key not in self._graphs:
                self._graphs[key] = self._build(args, tensors)
                restore()
            actual = self._run(self._graphs[key], tensors)
            self._compare(actual, expected)
        except Exception as error:
            actual = expected
            self._give_up(error)
        finally:
            continue_from()
        self._verified[key] = self._verified.get(key, 0) + 1
        # Equal calls of two processes give equal bits, whichever is the first.
        return actual

    def _build(self, args: tuple[Any, ...], tensors: list[Tensor]) -> _Graph:
        def run_on(*others: Tensor) -> tuple[Tensor, ...]:
            return self.function(*replace_tensors(args, iter(others)))

        with pyro.validation_enabled(False):
            captured = capture_graph(run_on, tensors)
        if self.precision == "bfloat16":
            use_bfloat16(captured.graph)
        else:
            if self.backend == "inductor":
                replace_convolutions(captured.graph)
            # Without a timing, so that the figures of a run can be reproduced to the bit.
            use_onednn(captured.graph)
        run = compile_graph(captured, tensors, self.backend)
        recorded = record_graph(run, captured.lifted, tensors)
        inputs = [*captured.lifted, *tensors]
        results = list(recorded(*inputs))
        # The next replay of a CUDA graph overwrites the results.
        aliases = find_shared(results, inputs) if recorded is run else range(len(results))
        return _Graph(recorded, captured.lifted, aliases)

    def _compare(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Raises a ``NotCapturedError`` unless the results agree up to rounding."""
        # Results may be sums of single precision in double.
        is_double = all(
            t.dtype == torch.float64 for t in self.environment.tensors() if t.is_floating_point()
        )
        tolerance = 0.0 if is_double else FLOAT32_TOLERANCE
        if self.precision == "bfloat16":
            tolerance = BFLOAT16_TOLERANCE
        check_close("result", actual, expected, tolerance)

    def _give_up(self, error: Exception) -> None:
        """Makes all later calls eager, and warns of it, or raises an error if it is strict."""
        reason = describe_capture_failure(error)
        if self.strict:
            raise RuntimeError(f"Expected a function that can be compiled, but {reason}") from error
        self._stays_eager = True
        warnings.warn(
            f"The evaluation is eager, not compiled: {reason}", stacklevel=find_stacklevel()
        )
