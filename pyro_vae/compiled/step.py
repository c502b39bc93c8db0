"""A step of inference: loss and gradients, compiled, and verified against the eager one."""

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
from pyro_vae.compiled.graph_builder import GraphBuilder, Known
from pyro_vae.compiled.optimizer_step import Update, check_optimizer
from pyro_vae.compiled.reasons import check_objective, reason_of
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.tensors import clear
from pyro_vae.guard import guard_process_state
from pyro_vae.validation import check_choice, check_flag, check_positive, describe_value

__all__ = ["Step", "compile"]

LIMIT = 16
"""How many graphs a step keeps; more of them mean that something changes with each call."""

_VARIANTS = 2
"""How many graphs a step keeps that differ only in numbers of the user's functions."""

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
    C++ compiler, that kind of call is eager, with one warning that names the reason and the line.
    The comparison leaves no trace in tensors, attributes of modules and random state.

    A graph holds the numbers that your functions read from elsewhere than their arguments. Those
    that the code names are watched, up to 256 of them: variables of closures and modules, default
    arguments, attributes of objects and classes, entries of dictionaries and lists up to 64. If
    one changes, the step is captured again, and is eager from the third value on. Make a number
    that changes a scalar tensor, and change it in place: ``beta = torch.tensor(0.0)``, then
    ``beta.fill_(0.5)``. A graph keeps without notice the numbers that functions find in another
    way (``getattr`` with a computed name, a set, an environment variable, a file), and it repeats
    no side effect of Python code. A function that draws random numbers by Python or NumPy is
    found at the first call.

    While Pyro's validation is enabled, each call checks that values are in the support of their
    distributions, that parameters are within their constraints, and that the loss is not NaN. A
    call that fails is undone and repeated as an eager step with the same noise. That step raises
    Pyro's error; a NaN loss it warns of, and it updates as SVI does. On a GPU nothing waits for
    the result: the loss of such a call is NaN, and its gradients are zero.

    Arguments:
        objective: Any with a ``differentiable_loss`` that reads no number off a tensor, as those
            of :mod:`pyro_vae.objectives`; or :class:`pyro.infer.Trace_ELBO` or
            :class:`pyro.infer.TraceMeanField_ELBO`, whose graph is that of our :class:`ELBO`.
            Pyro's ``RenyiELBO``, ``TraceGraph_ELBO`` and Jit classes are refused, by an error that
            names what to use.
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
        strict: Whether to raise an error instead of falling back to the eager step. A loss that
            depends on no parameter, and a call within Pyro handlers, are eager all the same.
        divide_by: What the gradient is divided by, such as the number of rows.
        optimizer: An optimizer to make a step of, too. The update of Adam, AdamW and SGD becomes
            part of the graph, but for AMSGrad, ``maximize``, dampening and hooks; that of others
            follows the graph. State and learning rate remain those of the optimizer, so that
            checkpoints and schedules work as ever.
        clip_norm: The norm to which the gradient of all parameters together is clipped before the
            optimizer's step.
        validate: Whether each call is checked; by default while Pyro's validation is enabled. The
            first call of each kind follows Pyro's setting alone.
        backend: What compiles the graph: ``"inductor"``; ``"eager"``, which runs its operations
            one by one and needs no C++ compiler; or a function of a ``torch.fx.GraphModule`` and a
            list of example inputs that returns a function, as a backend of ``torch.compile`` is.

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
    check_objective(objective)
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
        super().__init__(objective, model, guide, parameters, settings, update)
        self._known: dict[Hashable, list[Known]] = {}
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
            ValueError: If the loss depends on none of the parameters that were given.
            RuntimeError: If the step is strict and cannot be compiled.
        """
        if _PYRO_STACK or self._hopeless:
            return self.make_eagerly(args, kwargs)
        call = Call(args, kwargs)
        try:
            variants = self._variants(call)
        except TypeError as error:
            self._hopeless = True
            self._complain(call.without_hash() or error)
            return self.make_eagerly(args, kwargs)
        for known in variants:
            if known.constants.current() == known.constants.values:
                return self._again(known, call)
        return self._first(call)

    def _again(self, known: Known, call: Call) -> Tensor:
        """Makes a step of a kind that is known."""
        if known.run is None:
            return self.make_eagerly(call.args, call.kwargs)
        self.engine = known.engine
        if self.update is not None and self.update.captured:
            self.update.set_scalars()
        noise = torch.get_rng_state() if known.checked else None
        try:
            with torch.no_grad():
                results = list(known.run(*known.lifted, *call.tensors))
        except RuntimeError:
            # Such as an index that is out of bounds, of which the eager step gives Pyro's error.
            return self._invalid(call, noise)
        for i in known.shared:
            results[i] = results[i].clone()
        if known.checked and not results.pop():
            return self._invalid(call, noise)
        if len(known.reached) < len(self.parameters):
            clear(self.parameters)
        for parameter, gradient in zip(known.reached, results[1:], strict=True):
            parameter.grad = gradient
        if self.update is not None and not self.update.captured:
            self.update.eager()
        return results[0]

    def _invalid(self, call: Call, noise: Tensor | None) -> Tensor:
        """Repeats a call that failed a check; raises Pyro's error, or warns as Pyro does."""
        if noise is not None:
            torch.set_rng_state(noise)
        loss = self.make_eagerly(call.args, call.kwargs)
        warn_if_nan(loss, "loss")
        return loss

    def _variants(self, call: Call) -> Sequence[Known]:
        """Returns the graphs for a kind of call, one for each set of the user's numbers."""
        return self._known.get(self._key(call), ())

    def _key(self, call: Call) -> Hashable:
        """Returns what tells one kind of call from others."""
        hooks: list[int] = []
        for parameter in self.parameters:
            for known in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks):
                if known:
                    hooks += known
        key = call.key, self.surroundings.key(), self.settings.is_validating(), *hooks
        return key if self.update is None else (*key, self.update.key())

    def _first(self, call: Call) -> Tensor:
        """Makes a step of a kind that is new, compiled if that gives what the eager one gives."""
        GraphBuilder(self).find_constants(call)
        put_back_attributes, host_noise = self.surroundings.save_attributes(), HostNoise()
        # The first run makes what is made lazily, and checks what Pyro is set to check.
        with self.surroundings.undone(), torch.enable_grad():
            reached = self.reached_parameters(self.evaluate_loss(*call.args, **call.kwargs))
        draws_on_host = host_noise.is_used()
        host_noise.put_back()
        if not reached:
            return self.make_eagerly(call.args, call.kwargs)
        if self.update is not None:
            self.update.prepare(reached)
        validating, variants = self.settings.is_validating(), self._variants(call)
        put_back = self.surroundings.save(self.updated_tensors())
        known: Known | None = Known()
        try:
            with pyro.validation_enabled(False):
                if draws_on_host:
                    raise NeverCapturedError(
                        "random numbers are drawn by Python or NumPy: draw them by PyTorch"
                    )
                self._check_limits(variants)
                known = GraphBuilder(self).build(call, reached, put_back, validating)
        except Exception as error:
            put_back_attributes()
            self._hopeless |= isinstance(error, NeverCapturedError)
            self._complain(error)
        finally:
            put_back()
        if known is None:
            return self.make_eagerly(call.args, call.kwargs)
        self._known.setdefault(self._key(call), []).append(known)
        return self._again(known, call)

    def _check_limits(self, variants: Sequence[Known]) -> None:
        """Raises a ``NotCapturedError`` if there are too many graphs already."""
        if len(variants) >= _VARIANTS:
            raise NeverCapturedError(
                f"{variants[-1].constants.changed()} changes between calls; make it a scalar "
                f"tensor, and change it in place with fill_"
            )
        if sum(map(len, self._known.values())) >= LIMIT:
            raise NeverCapturedError(
                f"there were {LIMIT} kinds of calls; make a number that changes with each call a "
                f"scalar tensor"
            )

    def _complain(self, error: Exception) -> None:
        """Says why a step is not compiled: once, or by an error if the step is strict."""
        reason = reason_of(error)
        if self.settings.strict:
            raise RuntimeError(f"Expected a step that can be compiled, but {reason}") from error
        if not self._warned:
            self._warned = True
            warnings.warn(f"The step is eager, not compiled: {reason}", stacklevel=5)
