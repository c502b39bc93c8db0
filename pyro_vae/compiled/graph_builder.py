"""From an eager step to a graph that is compiled, and verified against it."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from pyro_vae.compiled.bfloat16 import use_bfloat16
from pyro_vae.compiled.constants import Constants
from pyro_vae.compiled.cuda_graph import recorded
from pyro_vae.compiled.eager_step import EagerStep
from pyro_vae.compiled.graph import (
    Captured,
    NeverCapturedError,
    NotCapturedError,
    capture,
    to_machine_code,
)
from pyro_vae.compiled.matmul import choose_products, eligible, use_onednn
from pyro_vae.compiled.pyro_objectives import stand_in
from pyro_vae.compiled.reasons import point_masses
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.support import SupportChecks, enabled_checks
from pyro_vae.compiled.tensors import copies, laid_out, shared
from pyro_vae.compiled.verify import TOLERANCE_OF_BFLOAT16, check, check_changes

__all__ = ["GraphBuilder", "Known"]


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


def is_read(loss: Tensor) -> bool:
    """Whether reading if a step is valid does not wait for a device."""
    return loss.device.type == "cpu"


class GraphBuilder:
    """Captures, compiles and verifies the graphs of a step."""

    def __init__(self, step: EagerStep) -> None:
        self.step = step

    def capture(self, call: Call, reached: list[Tensor]) -> Captured:
        """Returns the graph of a step that sets these gradients; leaves no trace in tensors.

        Raises:
            NotCapturedError: If a number is read off a tensor.
        """
        if self.step.update is not None:
            self.step.update.prepare(reached)
        put_back = self.step.surroundings.save(self.step.updated_tensors())
        try:
            with pyro.validation_enabled(False):
                return self._captured(call, reached)
        finally:
            put_back()

    def build(
        self, call: Call, reached: list[Tensor], put_back: Callable[[], None], validating: bool
    ) -> Known | None:
        """Captures, compiles and checks a step; ``None`` if there is no number to check by.

        Raises:
            NotCapturedError: If it gives something else than the eager step.
        """
        constants = self.find_constants(call)
        key, versions = self.step.surroundings.key(), self.step.surroundings.versions()
        loss = self.step.backward(*call.args, **call.kwargs)
        # A parameter may have a part in the loss, but none in its gradient.
        reached = [parameter for parameter in reached if parameter.grad is not None]
        expected = [loss, *(torch.as_tensor(parameter.grad).clone() for parameter in reached)]
        changed = self.step.surroundings.copies()
        if self.step.surroundings.key() != key:
            raise NeverCapturedError(
                "the objective or a module sets a number or a tensor anew with each call"
            )
        if name := constants.changed():
            raise NeverCapturedError(f"each call changes {name}")
        if not all(bool(value.isfinite().all()) for value in expected):
            return None
        changing = self.step.surroundings.changed_since(versions)
        put_back()
        captured = self._captured(call, reached, validating, changing)
        engine = self._choose(captured.graph)
        run = to_machine_code(captured, call.tensors, self.step.settings.backend)
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
        update = self.step.update
        in_graph = update is not None and update.captured
        own = set(map(id, self.step.updated_tensors())) if in_graph else set()
        others = [i for i, t in enumerate(self.step.surroundings.tensors()) if id(t) not in own]
        found = self.step.surroundings.copies()
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
            if type(self.step.objective) is not TraceMeanField_ELBO:
                raise
            with self.step.surroundings.undone():
                names = point_masses(self.step.loss.args, call)
            if not names:
                raise
            raise NotCapturedError(
                f"TraceMeanField_ELBO leaves out the log density of Delta sites, here of "
                f"{names[0]!r}: use pyro_vae.objectives.ELBO()"
            ) from error

    def _functions(self) -> list[Any]:
        """Returns the functions and modules that a step runs."""
        return [self.step.objective, *self.step.loss.args, *self.step.surroundings.modules]

    def find_constants(self, call: Call) -> Constants:
        """Returns the numbers of the user's functions; adds modules and tensors that they reach."""
        found = Constants([*self._functions(), *call.others])
        for module in found.modules:
            self.step.surroundings.add(module)
        self.step.surroundings.others = found.tensors
        return found

    def _check_update(
        self, reached: list[Tensor], gradients: list[Tensor], put_back: Callable[[], None]
    ) -> None:
        """Compares what the graph changed with what the optimizer does with the same gradients.

        Raises:
            NotCapturedError: If it is something else.
        """
        assert self.step.update is not None
        found = copies(self.step.updated_tensors())
        put_back()
        before = copies(self.step.updated_tensors())
        for parameter, gradient in zip(reached, gradients, strict=True):
            parameter.grad = gradient
        self.step.update.eager()
        check_changes("update", before, found, copies(self.step.updated_tensors()))

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
        with self.step.surroundings.undone(), pyro.validation_enabled(True), torch.enable_grad():
            return enabled_checks(partial(loss_of, *call.args, **call.kwargs))

    def _capturable(self, call: Call) -> Callable[..., Tensor]:
        """Returns the loss as a function that reads no number off a tensor, if there is one."""
        standing_in = stand_in(self.step.objective)
        if standing_in is self.step.objective:
            return self.step.loss
        found = partial(standing_in.differentiable_loss, *self.step.loss.args)
        # It makes a run of its own to find out about the model, which is no part of the graph.
        with self.step.surroundings.undone():
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
            gradients = torch.autograd.grad(loss / self.step.settings.divide_by, reached)
        gradients, loss = tuple(map(laid_out, gradients, reached)), loss.detach()
        valid = None if enabled is None else checks.all_passed(loss)
        if self.step.update is not None and self.step.update.captured:
            with torch.no_grad():
                self.step.update.apply(reached, gradients, valid)
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
        if self.step.settings.precision == "bfloat16":
            return "compiled-bfloat16" if use_bfloat16(graph) else "compiled"
        if eligible(graph):
            if self.step.settings.products == "auto":
                self.step.settings.products = choose_products(graph)
            if self.step.settings.products == "onednn":
                use_onednn(graph)
                return "compiled-onednn"
        return "compiled"
