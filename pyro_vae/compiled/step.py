"""A step of inference: loss and gradients, compiled, and checked against the eager one."""

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import is_validation_enabled
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vae.compiled.call import Call
from pyro_vae.compiled.check import TOLERANCE_OF_BFLOAT16, check, check_changes
from pyro_vae.compiled.constants import Constants
from pyro_vae.compiled.cuda import recorded
from pyro_vae.compiled.graph import Captured, NotCapturedError, capture, to_machine_code
from pyro_vae.compiled.precision import use_bfloat16
from pyro_vae.compiled.products import choose_products, eligible, use_onednn
from pyro_vae.compiled.reasons import check_objective, point_masses, reason_of
from pyro_vae.compiled.stand_in import stand_in
from pyro_vae.compiled.state import HostNoise, Surroundings
from pyro_vae.compiled.support import SupportChecks, enabled_checks
from pyro_vae.compiled.tensors import clear, copies, laid_out, leaves, shared
from pyro_vae.compiled.update import Update, check_optimizer
from pyro_vae.guard import guard_process_state
from pyro_vae.validation import check_choice, check_flag, check_positive, describe_value

__all__ = ["Step", "compile"]

LIMIT = 16
"""How many graphs a step keeps; more of them mean that something changes with each call."""

VARIANTS = 2
"""How many graphs a step keeps that differ only in numbers of the user's functions."""

PRECISIONS = ("float32", "bfloat16")


class Known(NamedTuple):
    """What is known of one kind of call.

    Attributes:
        run: Machine code, called as ``run(*lifted, *tensors)``, or ``None`` for an eager step.
        reached: The parameters on which the loss depends, in the order of their gradients.
        lifted: The tensors that the step found elsewhere than among its arguments.
        shared: Which of the results are no tensors of their own.
        engine: As :attr:`Step.engine`.
        constants: The numbers of the user's functions that the graph holds.
        checked: Whether the last result is whether the step is valid.
    """

    run: Callable[..., Sequence[Tensor]] | None = None
    reached: Sequence[Tensor] = ()
    lifted: Sequence[Tensor] = ()
    shared: Sequence[int] = ()
    engine: str = "eager"
    constants: Constants = Constants(())
    checked: bool = False


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
    settings = Settings(products, precision, strict, divide_by, validate)
    return Step(objective, model, guide, parameters, settings, update)


def is_read(loss: Tensor) -> bool:
    """Whether reading if a step is valid does not wait for a device."""
    return loss.device.type == "cpu"


@dataclass
class Settings:
    """How a step is compiled; see :func:`compile`."""

    products: str
    precision: str
    strict: bool
    divide_by: float
    validate: bool | None = None

    def is_validating(self) -> bool:
        """Returns whether calls are checked."""
        return bool(is_validation_enabled()) if self.validate is None else self.validate


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
        self._follows = parameters is None
        if update is not None and parameters is None:
            parameters = update.parameters()
        self.given = None if parameters is None else list(parameters)
        self.parameters = list(self.given or [])
        self.settings = settings
        self.engine: str | None = None
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
            return self._eager(args, kwargs)
        call = Call(args, kwargs)
        try:
            variants = self._variants(call)
        except TypeError as error:
            self._hopeless = True
            self._complain(call.without_hash() or error)
            return self._eager(args, kwargs)
        for known in variants:
            if known.constants.current() == known.constants.values:
                return self._again(known, call)
        return self._first(call)

    def _again(self, known: Known, call: Call) -> Tensor:
        """Makes a step of a kind that is known."""
        if known.run is None:
            return self._eager(call.args, call.kwargs)
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
        loss = self._eager(call.args, call.kwargs)
        warn_if_nan(loss, "loss")
        return loss

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
            loss = self._loss(*args, **kwargs)
            reached = self._reached(loss)
            clear(self.parameters)
            if reached:
                (loss / self.settings.divide_by).backward(inputs=reached)
        return loss.detach()

    def _loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the loss; without a gradient where Pyro's objective refuses to give one."""
        noise = torch.get_rng_state()
        try:
            loss = self.loss(*args, **kwargs)
        except ValueError as error:
            if "cannot be differentiated" not in str(error):
                raise
            # TraceEnum_ELBO raises this error for a model without parameters.
            torch.set_rng_state(noise)
            loss = self.objective.loss(*self.loss.args, *args, **kwargs)
        return torch.as_tensor(loss)

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
        self._look(call)
        put_back_attributes, host_noise = self.surroundings.save_attributes(), HostNoise()
        # The first run makes what is made lazily, and checks what Pyro is set to check.
        with self.surroundings.undone(), torch.enable_grad():
            reached = self._reached(self._loss(*call.args, **call.kwargs))
        draws_on_host = host_noise.is_used()
        host_noise.put_back()
        if not reached:
            return self._eager(call.args, call.kwargs)
        if self.update is not None:
            self.update.prepare(reached)
        validating, variants = self.settings.is_validating(), self._variants(call)
        put_back = self.surroundings.save(self._updated())
        known: Known | None = Known()
        try:
            with pyro.validation_enabled(False):
                if draws_on_host:
                    self._hopeless = True
                    raise NotCapturedError(
                        "random numbers are drawn by Python or NumPy: draw them by PyTorch"
                    )
                self._check_limits(variants)
                known = self._compiled(call, reached, put_back, validating)
        except Exception as error:
            put_back_attributes()
            self._complain(error)
        finally:
            put_back()
        if known is None:
            return self._eager(call.args, call.kwargs)
        self._known.setdefault(self._key(call), []).append(known)
        return self._again(known, call)

    def _compiled(
        self, call: Call, reached: list[Tensor], put_back: Callable[[], None], validating: bool
    ) -> Known | None:
        """Captures, compiles and checks a step; ``None`` if there is no number to check by.

        Raises:
            NotCapturedError: If it gives something else than the eager step.
        """
        constants = self._look(call)
        key, versions = self.surroundings.key(), self.surroundings.versions()
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
        if name := constants.changed():
            self._hopeless = True
            raise NotCapturedError(f"each call changes {name}")
        if not all(bool(value.isfinite().all()) for value in expected):
            return None
        changing = self.surroundings.changed_since(versions)
        put_back()
        captured = self._captured(call, reached, validating, changing)
        engine = self._choose(captured.graph)
        run = to_machine_code(captured, call.tensors)
        run = recorded(run, captured.lifted, call.tensors)
        put_back()
        inputs = [*captured.lifted, *call.tensors]
        with torch.no_grad():
            raw = list(run(*inputs))
        results = [result.clone() for result in raw]
        checked = len(results) > len(expected)
        if checked and not results.pop():
            raise NotCapturedError("a check of a value or parameter fails in the graph only")
        least = TOLERANCE_OF_BFLOAT16 if engine == "compiled-bfloat16" else 0.0
        self._check_loss(call, results[:1], expected[:1], least)
        check("gradient", results[1:], expected[1:], least)
        own = set(map(id, self._updated())) if self.update and self.update.captured else set()
        others = [i for i, t in enumerate(self.surroundings.tensors()) if id(t) not in own]
        found = self.surroundings.copies()
        check("state of modules", [found[i] for i in others], [changed[i] for i in others], least)
        if own:
            self._check_update(reached, results[1:], put_back)
        of_inputs = shared(raw, inputs)
        return Known(run, reached, captured.lifted, of_inputs, engine, constants, checked)

    def _check_loss(
        self, call: Call, found: list[Tensor], expected: list[Tensor], least: float
    ) -> None:
        """Raises a ``NotCapturedError`` if the loss differs from the eager one."""
        try:
            check("loss", found, expected, least)
        except NotCapturedError as error:
            if type(self.objective) is not TraceMeanField_ELBO:
                raise
            with self.surroundings.undone():
                names = point_masses(self.loss.args, call)
            if not names:
                raise
            raise NotCapturedError(
                f"TraceMeanField_ELBO leaves out the log density of Delta sites, here of "
                f"{names[0]!r}: use pyro_vae.objectives.ELBO()"
            ) from error

    def _functions(self) -> list[Any]:
        """Returns the functions and modules that a step runs."""
        return [self.objective, *self.loss.args, *self.surroundings.modules]

    def _look(self, call: Call) -> Constants:
        """Returns the numbers of the user's functions; adds modules and tensors that they reach."""
        found = Constants([*self._functions(), *call.others])
        for module in found.modules:
            self.surroundings.add(module)
        self.surroundings.others = found.tensors
        return found

    def _check_limits(self, variants: Sequence[Known]) -> None:
        """Raises a ``NotCapturedError`` if there are too many graphs already."""
        if len(variants) >= VARIANTS:
            self._hopeless = True
            raise NotCapturedError(
                f"{variants[-1].constants.changed()} changes between calls; make it a scalar "
                f"tensor, and change it in place with fill_"
            )
        if sum(map(len, self._known.values())) >= LIMIT:
            self._hopeless = True
            raise NotCapturedError(
                f"there were {LIMIT} kinds of calls; make a number that changes with each call a "
                f"scalar tensor"
            )

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

    def _captured(
        self,
        call: Call,
        reached: list[Tensor],
        validating: bool = False,
        changing: Sequence[Tensor] = (),
    ) -> Captured:
        """Returns the graph of a step that sets these gradients; changes what the step does."""
        if any(parameter._post_accumulate_grad_hooks for parameter in reached):
            raise NotCapturedError("a parameter has a hook that waits for its gradient to be set")
        loss_of = self._capturable(call)
        enabled = self._enabled_checks(loss_of, call) if validating else None
        results = partial(self._results, loss_of, call, reached, enabled, changing)
        return capture(results, call.tensors)

    def _enabled_checks(self, loss_of: Callable[..., Tensor], call: Call) -> list[bool]:
        """Returns which checks of values and parameters belong into the graph."""
        with self.surroundings.undone(), pyro.validation_enabled(True), torch.enable_grad():
            return enabled_checks(partial(loss_of, *call.args, **call.kwargs))

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
        enabled: list[bool] | None,
        changing: Sequence[Tensor],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns the loss and the gradients for other tensors, and whether checks passed."""
        args, kwargs = call.of(tensors)
        before = [] if enabled is None else copies(changing)
        checks = SupportChecks(enabled)
        with torch.enable_grad(), nullcontext() if enabled is None else checks:
            loss = loss_of(*args, **kwargs)
            gradients = torch.autograd.grad(loss / self.settings.divide_by, reached)
        gradients, loss = tuple(map(laid_out, gradients, reached)), loss.detach()
        valid = None if enabled is None else checks.all_passed(loss)
        if self.update is not None and self.update.captured:
            with torch.no_grad():
                self.update.apply(reached, gradients, valid)
        if valid is None:
            return (loss, *gradients)
        with torch.no_grad():
            for tensor, old in zip(changing, before, strict=True):
                tensor.copy_(torch.where(valid, tensor, old))
        if is_read(loss):
            return (loss, *gradients, valid)
        zeros = [torch.where(valid, gradient, 0) for gradient in gradients]
        return (torch.where(valid, loss, torch.nan), *zeros)

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
        if self.update is not None and self._follows:
            # The optimizer may have taken in others since.
            self.given = self.update.parameters()
        if self.given is not None:
            given = set(map(id, self.given))
            found = [leaf for leaf in found if id(leaf) in given]
        if not found and self.given:
            raise ValueError(
                "Expected a loss that depends on one of the parameters, got a loss of none of them"
            )
        known = set(map(id, self.parameters))
        self.parameters += [leaf for leaf in found if id(leaf) not in known]
        self.surroundings.note(found)
        return found

    def _complain(self, error: Exception) -> None:
        """Says why a step is not compiled: once, or by an error if the step is strict."""
        reason = reason_of(error)
        if self.settings.strict:
            raise RuntimeError(f"Expected a step that can be compiled, but {reason}") from error
        if not self._warned:
            self._warned = True
            warnings.warn(f"The step is eager, not compiled: {reason}", stacklevel=5)
