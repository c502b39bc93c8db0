"""A compiled training step, verified against the eager one."""

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Literal

import pyro
import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vae.compiled.eager_step import EagerStep, Settings
from pyro_vae.compiled.environment import HostNoise
from pyro_vae.compiled.graph import Backend, NeverCapturedError, check_backend
from pyro_vae.compiled.graph_builder import CachedStep, GraphBuilder
from pyro_vae.compiled.optimizer_step import Update, check_optimizer
from pyro_vae.compiled.reasons import check_compilable, describe_capture_failure
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.tensors import clear_gradients
from pyro_vae.guard import guard_process_state
from pyro_vae.validation import check_choice, check_flag, check_positive, describe_value

__all__ = ["Step", "compile"]

MAX_GRAPHS = 16
"""The largest number of graphs of a step; more mean that something changes with each call."""

_MAX_VARIANTS = 2
"""The largest number of graphs that differ only in numbers of the user's functions."""

PRECISIONS = ("float32", "bfloat16")


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
    validate: bool | None = None,
    backend: Backend = "inductor",
) -> "Step":
    r"""Compiles loss and gradients of a Pyro model and guide into one graph.

    The objective is run once through all of Pyro's handlers. The tensor operations of the forward
    and backward pass are captured, and Inductor compiles them. This works for models of static
    structure: the operations must not depend on the values of tensors.

    The step draws new noise from PyTorch's generators at each call, as the eager step does. Other
    tensors besides the arguments, such as parameters, running statistics or a beta that is a
    scalar tensor, are read at each call, and changed in place where the model changes them.
    Everything else is fixed in the graph. There is one graph for each kind of call, which is
    captured once: shapes, strides, dtypes and devices of tensor arguments, values of other
    arguments, modes, and numbers that are attributes of modules and objective.

    The first call of each kind compares loss, gradients and changed tensors with those of the
    eager step, under the same noise. On a mismatch, where capturing or compiling fails, or without
    a C++ compiler, that kind of call is eager; one warning names the reason and the line. The
    comparison restores tensors, attributes of modules and random state.

    A graph fixes the numbers that your functions read besides their arguments. Up to 256 numbers
    that the code names are watched: variables of closures and modules, default arguments,
    attributes of objects and classes, entries of dictionaries and lists up to 64. If one changes,
    the step is captured again, and it is eager from the third value on. Turn a number that changes
    into a scalar tensor, and change it in place: ``beta = torch.tensor(0.0)``, then
    ``beta.fill_(0.5)``. Changes of numbers that functions find in another way (``getattr`` with a
    computed name, a set, an environment variable, a file) are ignored silently, and side effects
    of Python code are not repeated. Functions that draw random numbers by Python or NumPy are
    detected at the first call.

    While Pyro's validation is enabled, each call checks that values are in the support of their
    distributions, that parameters satisfy their constraints, and that the loss is not NaN. A
    call that fails is undone and repeated as an eager step with the same noise. That step raises
    Pyro's error; for a NaN loss it warns, and updates as SVI does. On a GPU nothing waits for
    the result: the loss of such a call is NaN, and its gradients are zero.

    Arguments:
        objective: An object with a ``differentiable_loss`` that reads no number off a tensor, such
            as those of :mod:`pyro_vae.objectives`; or :class:`pyro.infer.Trace_ELBO` or
            :class:`pyro.infer.TraceMeanField_ELBO`, whose graph is that of our :class:`ELBO`.
            Pyro's ``RenyiELBO``, ``TraceGraph_ELBO`` and Jit classes raise an error that names a
            replacement.
        model: A Pyro model.
        guide: Its guide.
        parameters: The tensors to differentiate by; by default all on which the loss depends,
            whether of modules, of Pyro's parameter store (unconstrained) or otherwise.
        products: The library for float32 matmuls on a processor: ``"mkl"``, PyTorch's default;
            ``"onednn"``, much faster on some processors; or ``"auto"``, the faster one in a short
            timing of the graph's matmuls when the first graph is compiled.
        precision: ``"bfloat16"`` rounds the factors and results of matmuls and convolutions to 8
            bits, and leaves the rest in float32. It is faster on processors and GPUs that support
            it. The comparison with the eager step then allows a relative difference of a fifth.
        strict: Whether to raise an error instead of falling back to the eager step. A loss that
            does not depend on any parameter, and a call within Pyro handlers, are always eager.
        divide_by: The divisor of the gradient, such as the number of rows.
        optimizer: A PyTorch optimizer whose step follows the gradient. The update of Adam, AdamW
            and SGD becomes part of the graph, except with AMSGrad, ``maximize``, dampening or
            hooks; other updates follow the graph. State and learning rate remain those of the
            optimizer, so that checkpoints and schedules work as usual.
        clip_norm: The norm to which the gradient of all parameters together is clipped before the
            optimizer's step.
        validate: Whether each call is checked; by default while Pyro's validation is enabled. The
            first call of each kind follows Pyro's setting alone.
        backend: The compiler of the graph: ``"inductor"``; ``"eager"``, which runs its operations
            one by one and needs no C++ compiler; or a function of a ``torch.fx.GraphModule`` and a
            list of example inputs that returns a function, like a backend of ``torch.compile``.

    Raises:
        ValueError: If an argument is out of range, or the objective cannot be compiled.

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
    check_compilable(objective)
    for name, side in (("model", model), ("guide", guide)):
        if not callable(side):
            raise ValueError(f"Expected {name} to be callable, got {describe_value(side)}")
    check_choice("products", products, ("auto", "mkl", "onednn"))
    check_choice("precision", precision, PRECISIONS)
    check_choice("validate", validate, (True, False, None))
    strict = check_flag("strict", strict)
    divide_by = check_positive("divide_by", divide_by)
    clip_norm = None if clip_norm is None else check_positive("clip_norm", clip_norm)
    if clip_norm is not None and optimizer is None:
        raise ValueError(f"Expected clip_norm to come with an optimizer, got {clip_norm} alone")
    if optimizer is not None:
        check_optimizer("optimizer", optimizer)
    update = None if optimizer is None else Update(optimizer, clip_norm)
    settings = Settings(products, precision, strict, divide_by, validate, check_backend(backend))
    return Step(objective, model, guide, parameters, settings, update)


class Step(EagerStep):
    """A training step, as returned by :func:`compile`.

    Attributes:
        parameters: All parameters that were passed, or on which the loss of a call has depended.
        engine: The engine of the last call: ``"eager"``, ``"compiled"``, ``"compiled-onednn"``
            with matmuls by oneDNN, or ``"compiled-bfloat16"`` with matmuls of that precision;
            ``None`` before the first call.
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
        super().__init__(objective, model, guide, parameters, settings, update)
        self._cache: dict[Hashable, list[CachedStep]] = {}
        self._stays_eager = False
        self._has_warned = False

    @guard_process_state
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the loss, sets the gradients, and makes an update if there is an optimizer.

        Gradients are set, not accumulated; a parameter on which the loss does not depend gets
        ``None``. On a GPU the step is a CUDA graph, and the next call overwrites its gradients.
        Within Pyro handlers of the caller the step is eager.

        Arguments:
            args: Arguments of model and guide.
            kwargs: Keyword arguments of model and guide.

        Returns:
            The loss, a scalar without gradient.

        Raises:
            ValueError: If the loss does not depend on any of the parameters that were passed.
            RuntimeError: If the step is strict and cannot be compiled.
        """
        if _PYRO_STACK or self._stays_eager:
            return self.run_eagerly(args, kwargs)
        call = Call(args, kwargs)
        try:
            variants = self._find_variants(call)
        except TypeError as error:
            self._stays_eager = True
            self._report_failure(call.find_unhashable() or error)
            return self.run_eagerly(args, kwargs)
        for cached in variants:
            if cached.constants.read_values() == cached.constants.values:
                return self._run_cached(cached, call)
        return self._run_first(call)

    @guard_process_state
    def loop(self, *args: Any, **kwargs: Any) -> Tensor:
        """Makes one step for each slice of the tensors along their first dimension.

        It is equal to a loop over calls, with less time between them, which matters for small
        batches. Settings and modes are read only before the first step.

        Arguments:
            args: Arguments of model and guide, with a first dimension of the number of steps for
                each tensor. Other values are those of every step.
            kwargs: Keyword arguments of model and guide, in the same way.

        Returns:
            The losses, one per step.

        Raises:
            ValueError: If there is no tensor, or their first dimensions differ or are zero.
            RuntimeError: If the step is strict and cannot be compiled.

        Example:
            >>> from pyro_vae import VAE, objectives
            >>> vae = VAE((8,), 2)
            >>> optimizer = torch.optim.Adam(vae.parameters())
            >>> step = compile(objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer)
            >>> step.loop(torch.ones(3, 20, 8)).shape
            torch.Size([3])
        """
        calls = Call(args, kwargs)
        sizes = {len(t) if t.dim() else 0 for t in calls.tensors}
        if len(sizes) != 1 or not all(sizes):
            raise ValueError(
                f"Expected tensors with one first dimension, the number of steps, got "
                f"{[tuple(t.shape) for t in calls.tensors]}"
            )
        slices = list(zip(*(t.unbind() for t in calls.tensors), strict=True))
        losses: list[Tensor] = []
        while len(losses) < len(slices):
            start = len(losses)
            args, kwargs = calls.with_tensors(slices[start])
            losses.append(self(*args, **kwargs).clone())
            if start + 1 < len(slices):
                args, kwargs = calls.with_tensors(slices[start + 1])
                losses += self._run_many(Call(args, kwargs), slices[start + 1 :])
        return torch.stack(losses)

    def _run_many(self, call: Call, slices: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Makes steps by one graph, as many as it can, and returns their losses."""
        cached = self._find_cached(call)
        if cached is None or cached.run is None or cached.returns_valid:
            return []
        if self.update is None or not self.update.is_capturable:
            return []
        losses: list[Tensor] = []
        results: list[Tensor] = []
        plan = self.update.plan_scalars(len(slices))
        with torch.no_grad():
            for scalars, tensors in zip(plan, slices, strict=True):
                self.update.scalars.copy_(scalars)
                # Frees the gradients of the step before, whose memory is still in the cache.
                results.clear()
                try:
                    results += cached.run(*cached.lifted, *tensors)
                except RuntimeError:
                    # A call by itself raises the error of the eager step.
                    return losses
                losses.append(results[0].clone())
        gradients = [r.clone() if i in cached.aliases else r for i, r in enumerate(results)][1:]
        self._set_gradients(cached, gradients)
        return losses

    def _find_cached(self, call: Call) -> CachedStep | None:
        """Returns the graph for a call, if there is one."""
        if _PYRO_STACK or self._stays_eager:
            return None
        for cached in self._find_variants(call):
            if cached.constants.read_values() == cached.constants.values:
                return cached
        return None

    def _run_cached(self, cached: CachedStep, call: Call) -> Tensor:
        if cached.run is None:
            return self.run_eagerly(call.args, call.kwargs)
        self.engine = cached.engine
        if self.update is not None and self.update.is_capturable:
            self.update.set_scalars()
        noise = torch.get_rng_state() if cached.returns_valid else None
        try:
            with torch.no_grad():
                results = list(cached.run(*cached.lifted, *call.tensors))
        except RuntimeError:
            # The eager step raises Pyro's error, for example for an index out of bounds.
            return self._repeat_eagerly(call, noise)
        for i in cached.aliases:
            results[i] = results[i].clone()
        if cached.returns_valid and not results.pop():
            return self._repeat_eagerly(call, noise)
        self._set_gradients(cached, results[1:])
        if self.update is not None and not self.update.is_capturable:
            self.update.step_eagerly()
        return results[0]

    def _set_gradients(self, cached: CachedStep, gradients: Sequence[Tensor]) -> None:
        if len(cached.reached) < len(self.parameters):
            clear_gradients(self.parameters)
        for parameter, gradient in zip(cached.reached, gradients, strict=True):
            parameter.grad = gradient

    def _repeat_eagerly(self, call: Call, noise: Tensor | None) -> Tensor:
        """Repeats a call that failed a check; raises Pyro's error, or warns of a NaN loss."""
        if noise is not None:
            torch.set_rng_state(noise)
        loss = self.run_eagerly(call.args, call.kwargs)
        warn_if_nan(loss, "loss")
        return loss

    def _find_variants(self, call: Call) -> Sequence[CachedStep]:
        """Returns the graphs for a kind of call, one for each set of the user's numbers."""
        return self._cache.get(self._compute_key(call), ())

    def _compute_key(self, call: Call) -> Hashable:
        """Returns the key of a kind of call: the state of arguments and step that a graph fixes."""
        hooks: list[int] = []
        for parameter in self.parameters:
            for own_hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks):
                if own_hooks:
                    hooks += own_hooks
        key = call.key, self.environment.key(), self.settings.is_validating(), *hooks
        return key if self.update is None else (*key, self.update.key())

    def _run_first(self, call: Call) -> Tensor:
        """Makes the first step of its kind, compiled if its results equal the eager ones."""
        GraphBuilder(self).find_constants(call)
        restore_attributes, host_noise = self.environment.save_attributes(), HostNoise()
        # The first run initializes lazy modules, and makes the checks that Pyro is set to make.
        with self.environment.undo_changes(), torch.enable_grad():
            reached = self.find_reached_parameters(self.evaluate_loss(*call.args, **call.kwargs))
        draws_on_host = host_noise.is_used()
        host_noise.restore()
        if not reached:
            return self.run_eagerly(call.args, call.kwargs)
        if self.update is not None:
            self.update.prepare(reached)
        validating, variants = self.settings.is_validating(), self._find_variants(call)
        restore = self.environment.save_state(self.updated_tensors())
        cached: CachedStep | None = CachedStep()
        try:
            with pyro.validation_enabled(False):
                if draws_on_host:
                    raise NeverCapturedError(
                        "random numbers are drawn by Python or NumPy: draw them by PyTorch"
                    )
                self._check_limits(variants)
                cached = GraphBuilder(self).build(call, reached, restore, validating)
        except Exception as error:
            restore_attributes()
            self._stays_eager |= isinstance(error, NeverCapturedError)
            self._report_failure(error)
        finally:
            restore()
        if cached is None:
            return self.run_eagerly(call.args, call.kwargs)
        self._cache.setdefault(self._compute_key(call), []).append(cached)
        return self._run_cached(cached, call)

    def _check_limits(self, variants: Sequence[CachedStep]) -> None:
        """Raises a ``NeverCapturedError`` if there are too many graphs already."""
        if len(variants) >= _MAX_VARIANTS:
            raise NeverCapturedError(
                f"{variants[-1].constants.describe_change()} changes between calls; make it a "
                f"scalar tensor, and change it in place with fill_"
            )
        if sum(map(len, self._cache.values())) >= MAX_GRAPHS:
            raise NeverCapturedError(
                f"{MAX_GRAPHS} graphs for different calls exist already; pass a number that "
                f"changes with each call as a scalar tensor"
            )

    def _report_failure(self, error: Exception) -> None:
        """Warns once why a step is not compiled, or raises an error if the step is strict."""
        reason = describe_capture_failure(error)
        if self.settings.strict:
            raise RuntimeError(f"Expected a step that can be compiled, but {reason}") from error
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"The step is eager, not compiled: {reason}", stacklevel=5)
