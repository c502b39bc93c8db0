"""A step of inference: loss and gradients, compiled, and checked against the eager one."""

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from pyro_vae.compiled.call import Call
from pyro_vae.compiled.check import TOLERANCE_OF_BFLOAT16, check, check_changes
from pyro_vae.compiled.cuda import recorded
from pyro_vae.compiled.graph import Captured, NotCapturedError, capture, to_machine_code
from pyro_vae.compiled.precision import use_bfloat16
from pyro_vae.compiled.products import choose_products, eligible, use_onednn
from pyro_vae.compiled.stand_in import stand_in
from pyro_vae.compiled.state import Surroundings
from pyro_vae.compiled.tensors import clear, copies, laid_out, leaves, shared
from pyro_vae.compiled.update import Update
from pyro_vae.guard import guard_process_state

__all__ = ["Step", "compile"]

LIMIT = 16
"""How many graphs a step keeps; more of them mean that something changes with each call."""

PRECISIONS = ("float32", "bfloat16")


class Known(NamedTuple):
    """What is known of one kind of call.

    Attributes:
        run: Machine code, called as ``run(*lifted, *tensors)``, or ``None`` for an eager step.
        reached: The parameters on which the loss depends, in the order of their gradients.
        lifted: The tensors that the step found elsewhere than among its arguments.
        shared: Which of the results are no tensors of their own.
        engine: As :attr:`Step.engine`.
    """

    run: Callable[..., Sequence[Tensor]] | None = None
    reached: Sequence[Tensor] = ()
    lifted: Sequence[Tensor] = ()
    shared: Sequence[int] = ()
    engine: str = "eager"


def compile(
    objective: Any,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    parameters: Iterable[Tensor] | None = None,
    products: Literal["auto", "mkl", "onednn"] = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    strict: bool = False,
    divide_by: float = 1.0,
    optimizer: torch.optim.Optimizer | None = None,
    clip_norm: float | None = None,
) -> "Step":
    r"""Compiles loss and gradients of a Pyro model and guide into one graph of machine code.

    The objective is run once through all of Pyro's handlers, the tensor operations of the way
    there and of the way back are captured, and Inductor compiles them. This works for models of
    static structure: the operations must not depend on the values of tensors.

    The step draws fresh noise from PyTorch's generators, the same as the eager one. Tensors that
    it finds elsewhere than among its arguments, such as parameters, running statistics or a beta
    that is a scalar tensor, are read anew at each call, and changed in place where the model
    changes them. All else is part of the graph. A graph is kept for each kind of call: shapes,
    strides, dtypes and devices of tensor arguments, values of others, modes, and numbers that are
    attributes of modules and objective; a new kind is captured once.

    The first call of each kind compares loss, gradients and changed tensors with the eager
    step's, under the same noise; on a mismatch, where capturing or compiling fails, or without a
    C++ compiler, that kind of call is eager, with one warning that says why. The comparison
    leaves no trace. What the graph cannot show: noise from elsewhere than PyTorch, and state of
    Python objects other than modules and objective, are those of the first call for good.

    Arguments:
        objective: Any with a ``differentiable_loss`` that reads no number off a tensor, as those
            of :mod:`pyro_vae.objectives`; or :class:`pyro.infer.Trace_ELBO` or
            :class:`pyro.infer.TraceMeanField_ELBO`, whose graph is that of our :class:`ELBO`.
        model: A Pyro model.
        guide: Its guide.
        parameters: The tensors to differentiate by; by default all on which the loss depends,
            whether of modules, of Pyro's parameter store (unconstrained) or otherwise.
        products: By which library float32 matrices are multiplied on a processor: ``"mkl"``,
            PyTorch's default; ``"onednn"``, much faster on some; or ``"auto"``, the one that a
            short timing of the graph's own products finds faster, when the first is compiled.
        precision: ``"bfloat16"`` makes matrix products and convolutions with 8 bits of precision,
            factors and results, and leaves all else in float32: faster on processors and GPUs that
            are made for it. The comparison with the eager step then allows for a fifth of a norm.
        strict: Whether to raise an error instead of falling back to the eager step.
        divide_by: What the gradient is divided by, such as the number of rows.
        optimizer: An optimizer to make a step of, too. The update of Adam, AdamW and SGD becomes
            part of the graph, but for AMSGrad, ``maximize``, dampening and hooks; that of others
            follows the graph. State and learning rate remain those of the optimizer, so that
            checkpoints and schedules work as ever.
        clip_norm: The norm to which the gradient of all parameters together is clipped before the
            optimizer's step.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from pyro_vae import VAE, objectives
        >>> vae = VAE((8,), 2)
        >>> optimizer = torch.optim.Adam(vae.parameters())
        >>> step = compile(objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer)
        >>> for x in torch.ones(3, 20, 8):
        ...     loss = step(x)
        >>> loss.shape, loss.requires_grad
        (torch.Size([]), False)
    """
    if not hasattr(objective, "differentiable_loss"):
        raise ValueError(
            f"Expected an objective with differentiable_loss, got {type(objective).__name__}"
        )
    if products not in ("auto", "mkl", "onednn"):
        raise ValueError(f"Expected products to be auto, mkl or onednn, got {products!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"Expected precision to be one of {PRECISIONS}, got {precision!r}")
    if not divide_by > 0:
        raise ValueError(f"Expected divide_by to be positive, got {divide_by}")
    if clip_norm is not None and not (clip_norm > 0 and optimizer is not None):
        raise ValueError(
            f"Expected clip_norm to be positive, and an optimizer that it is for, got {clip_norm}"
        )
    update = None if optimizer is None else Update(optimizer, clip_norm)
    settings = Settings(products, precision, strict, divide_by)
    return Step(objective, model, guide, parameters, settings, update)


@dataclass
class Settings:
    """How a step is compiled; see :func:`compile`."""

    products: str
    precision: str
    strict: bool
    divide_by: float


class Step:
    """What :func:`compile` returns: a step of inference.

    Attributes:
        parameters: The parameters found so far: all that were given, or that calls depended on.
        engine: How the last call was computed: ``"eager"``, ``"compiled"``,
            ``"compiled-onednn"`` with products by oneDNN, or ``"compiled-bfloat16"`` with products
            of that precision; ``None`` before the first.
    """

    def __init__(
        self,
        objective: Any,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        parameters: Iterable[Tensor] | None,
        settings: Settings,
        update: Update | None = None,
    ) -> None:
        self.objective = objective
        self.loss = partial(objective.differentiable_loss, model, guide)
        self.surroundings = Surroundings(objective, model, guide)
        self.update = update
        if update is not None:
            parameters = update.parameters() if parameters is None else parameters
        self.given = None if parameters is None else list(parameters)
        self.parameters = list(self.given or [])
        self.settings = settings
        self.engine: str | None = None
        self._known: dict[Hashable, Known] = {}
        self._hopeless = False
        self._warned = False

    @guard_process_state
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the loss, sets the gradient of each parameter, and updates if it is to.

        Gradients are set, not added to what is there; a parameter on which the loss does not
        depend gets ``None``. On a GPU the step is a CUDA graph, and the next one writes its
        gradients to the same tensors. Within Pyro handlers of the caller's the step is eager.

        Arguments:
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.

        Returns:
            The loss, a scalar without gradient.

        Raises:
            ValueError: If the loss depends on no parameter.
            RuntimeError: If the step is strict and cannot be compiled.
        """
        if _PYRO_STACK or self._hopeless:
            return self._eager(args, kwargs)
        call = Call(args, kwargs)
        try:
            known = self._known.get(self._key(call))
        except TypeError as error:
            self._hopeless = True
            self._complain(error)
            return self._eager(args, kwargs)
        return self._first(call) if known is None else self._again(known, call)

    def _again(self, known: Known, call: Call) -> Tensor:
        """Makes a step of a kind that is known."""
        if known.run is None:
            return self._eager(call.args, call.kwargs)
        self.engine = known.engine
        if self.update is not None and self.update.captured:
            self.update.set_scalars()
        with torch.no_grad():
            results = list(known.run(*known.lifted, *call.tensors))
            for i in known.shared:
                results[i] = results[i].clone()
        if len(known.reached) < len(self.parameters):
            clear(self.parameters)
        for parameter, gradient in zip(known.reached, results[1:], strict=True):
            parameter.grad = gradient
        if self.update is not None and not self.update.captured:
            self.update.eager()
        return results[0]

    def _eager(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Makes an eager step, which may depend on other parameters each time."""
        self.engine = "eager"
        loss = self.backward(*args, **kwargs)
        if self.update is not None:
            self.update.eager()
        return loss

    def backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the loss and sets the gradients by autograd, without an update."""
        with torch.enable_grad():
            loss = self.loss(*args, **kwargs)
            reached = self._reached(loss)
            clear(self.parameters)
            (loss / self.settings.divide_by).backward(inputs=reached)
        return loss.detach()

    def tried(self, call: Call) -> list[Tensor]:
        """Makes a step eagerly, undone in tensors and random state.

        Returns:
            The parameters that have a gradient.
        """
        with self.surroundings.undone():
            self.backward(*call.args, **call.kwargs)
        reached = [parameter for parameter in self.parameters if parameter.grad is not None]
        clear(self.parameters)
        return reached

    def graph(self, call: Call, reached: list[Tensor]) -> Captured:
        """Returns the graph of a step that sets these gradients; leaves no trace in tensors.

        Raises:
            NotCapturedError: If a number is read off a tensor.
        """
        if self.update is not None:
            self.update.prepare(reached)
        put_back = self.surroundings.save(self._updated())
        try:
            with pyro.validation_enabled(False):
                return self._captured(call, reached)
        finally:
            put_back()

    def _key(self, call: Call) -> Hashable:
        """Returns what tells one kind of call from others."""
        if self.update is None:
            return call.key, self.surroundings.key()
        return call.key, self.surroundings.key(), self.update.key()

    def _first(self, call: Call) -> Tensor:
        """Makes a step of a kind that is new, compiled if that gives what the eager one gives."""
        put_back_attributes = self.surroundings.save_attributes()
        # The first run makes what is made lazily, and checks what Pyro is set to check.
        with self.surroundings.undone(), torch.enable_grad():
            reached = self._reached(self.loss(*call.args, **call.kwargs))
        if self.update is not None:
            self.update.prepare(reached)
        put_back = self.surroundings.save(self._updated())
        known: Known | None = Known()
        try:
            with pyro.validation_enabled(False):
                known = self._compiled(call, reached, put_back)
        except Exception as error:
            put_back_attributes()
            self._complain(error)
        finally:
            put_back()
        if known is None:
            return self._eager(call.args, call.kwargs)
        self._known[self._key(call)] = known
        return self._again(known, call)

    def _compiled(
        self, call: Call, reached: list[Tensor], put_back: Callable[[], None]
    ) -> Known | None:
        """Captures, compiles and checks a step; ``None`` if there is no number to check by.

        Raises:
            NotCapturedError: If it gives something else than the eager step.
        """
        if len(self._known) >= LIMIT:
            self._hopeless = True
            raise NotCapturedError(
                f"there were {LIMIT} kinds of calls; a number that changes with each call is best "
                f"a scalar tensor"
            )
        key = self.surroundings.key()
        loss = self.backward(*call.args, **call.kwargs)
        # A parameter may have a part in the loss, but none in its gradient.
        reached = [parameter for parameter in reached if parameter.grad is not None]
        expected = [loss, *(torch.as_tensor(parameter.grad).clone() for parameter in reached)]
        changed = self.surroundings.copies()
        if self.surroundings.key() != key:
            self._hopeless = True
            raise NotCapturedError(
                "the objective or a module sets a number or a tensor anew with each call"
            )
        if not all(bool(value.isfinite().all()) for value in expected):
            return None
        put_back()
        captured = self._captured(call, reached)
        engine = self._choose(captured.graph)
        run = to_machine_code(captured, call.tensors)
        run = recorded(run, captured.lifted, call.tensors)
        put_back()
        inputs = [*captured.lifted, *call.tensors]
        with torch.no_grad():
            raw = list(run(*inputs))
        results = [result.clone() for result in raw]
        least = TOLERANCE_OF_BFLOAT16 if engine == "compiled-bfloat16" else 0.0
        check("loss", results[:1], expected[:1], least)
        check("gradient", results[1:], expected[1:], least)
        own = set(map(id, self._updated())) if self.update and self.update.captured else set()
        others = [i for i, t in enumerate(self.surroundings.tensors()) if id(t) not in own]
        found = self.surroundings.copies()
        check("state of modules", [found[i] for i in others], [changed[i] for i in others], least)
        if own:
            self._check_update(reached, results[1:], put_back)
        return Known(run, reached, captured.lifted, shared(raw, inputs), engine)

    def _updated(self) -> list[Tensor]:
        """Returns the tensors that an update changes."""
        return [] if self.update is None else [*self.parameters, *self.update.tensors()]

    def _check_update(
        self, reached: list[Tensor], gradients: list[Tensor], put_back: Callable[[], None]
    ) -> None:
        """Compares what the graph changed with what the optimizer does with the same gradients.

        Raises:
            NotCapturedError: If it is something else.
        """
        assert self.update is not None
        found = copies(self._updated())
        put_back()
        before = copies(self._updated())
        for parameter, gradient in zip(reached, gradients, strict=True):
            parameter.grad = gradient
        self.update.eager()
        check_changes("update", before, found, copies(self._updated()))

    def _captured(self, call: Call, reached: list[Tensor]) -> Captured:
        """Returns the graph of a step that sets these gradients; changes what the step does."""
        if any(parameter._post_accumulate_grad_hooks for parameter in reached):
            raise NotCapturedError("a parameter has a hook that waits for its gradient to be set")
        loss_of = self._capturable(call)
        return capture(partial(self._results, loss_of, call, reached), call.tensors)

    def _capturable(self, call: Call) -> Callable[..., Tensor]:
        """Returns the loss as a function that reads no number off a tensor, if there is one."""
        standing_in = stand_in(self.objective)
        if standing_in is self.objective:
            return self.loss
        found = partial(standing_in.differentiable_loss, *self.loss.args)
        # It makes a run of its own to find out about the model, which is no part of the graph.
        with self.surroundings.undone():
            found(*call.args, **call.kwargs)
        return found

    def _results(
        self,
        loss_of: Callable[..., Tensor],
        call: Call,
        reached: list[Tensor],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns the loss and the gradients for other tensors."""
        args, kwargs = call.of(tensors)
        with torch.enable_grad():
            loss = loss_of(*args, **kwargs)
            gradients = torch.autograd.grad(loss / self.settings.divide_by, reached)
        gradients = tuple(map(laid_out, gradients, reached))
        if self.update is not None and self.update.captured:
            with torch.no_grad():
                self.update.apply(reached, gradients)
        return (loss.detach(), *gradients)

    def _choose(self, graph: Any) -> str:
        """Sets the library for the products of a graph, and returns the engine's name."""
        if self.settings.precision == "bfloat16":
            return "compiled-bfloat16" if use_bfloat16(graph) else "compiled"
        if eligible(graph):
            if self.settings.products == "auto":
                self.settings.products = choose_products(graph)
            if self.settings.products == "onednn":
                use_onednn(graph)
                return "compiled-onednn"
        return "compiled"

    def _reached(self, loss: Tensor) -> list[Tensor]:
        """Returns the parameters on which a loss depends, and enters those that are new."""
        found = leaves(loss)
        if self.given is not None:
            given = set(map(id, self.given))
            found = [leaf for leaf in found if id(leaf) in given]
        if not found:
            raise ValueError("Expected a loss that depends on a parameter, got one of none")
        known = set(map(id, self.parameters))
        self.parameters += [leaf for leaf in found if id(leaf) not in known]
        self.surroundings.note(found)
        return found

    def _complain(self, error: Exception) -> None:
        """Says why a step is not compiled: once, or by an error if the step is strict."""
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if self.settings.strict:
            raise RuntimeError(f"Expected a step that can be compiled, but {reason}") from error
        if not self._warned:
            self._warned = True
            warnings.warn(f"The step is eager, not compiled: {reason}", stacklevel=5)
