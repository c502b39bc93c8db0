"""Capture and compilation of an eager step, and verification against it."""

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
from pyro_vae.compiled.convolutions import replace_convolutions
from pyro_vae.compiled.cuda_graph import record_graph
from pyro_vae.compiled.eager_step import EagerStep
from pyro_vae.compiled.graph import (
    Captured,
    NeverCapturedError,
    NotCapturedError,
    capture_graph,
    compile_graph,
)
from pyro_vae.compiled.matmul import choose_matmul_library, find_eligible_matmuls, use_onednn
from pyro_vae.compiled.pyro_objectives import replace_pyro_objective
from pyro_vae.compiled.reasons import find_delta_sites
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.support import SupportChecks, find_enabled_checks
from pyro_vae.compiled.tensors import clone_tensors, find_shared, match_layout
from pyro_vae.compiled.verify import BFLOAT16_TOLERANCE, check_changes, check_close

__all__ = ["CachedStep", "GraphBuilder"]


class CachedStep(NamedTuple):
    """The step for one kind of call.

    Attributes:
        run: The compiled function, called as ``run(*lifted, *tensors)``; ``None`` for an eager
            step.
        reached: The parameters on which the loss depends, in the order of their gradients.
        lifted: The tensors that the step reads besides its arguments.
        aliases: The indices of results that share memory with an input or another result.
        engine: As :attr:`Step.engine`.
        constants: The numbers of the user's functions that the graph fixes.
        returns_valid: Whether the last result is a boolean: whether the step is valid.
    """

    run: Callable[..., Sequence[Tensor]] | None = None
    reached: Sequence[Tensor] = ()
    lifted: Sequence[Tensor] = ()
    aliases: Sequence[int] = ()
    engine: str = "eager"
    constants: Constants = Constants(())
    returns_valid: bool = False


def can_read_validity(loss: Tensor) -> bool:
    """Whether the validity of a step can be read without waiting for a device."""
    return loss.device.type == "cpu"


class GraphBuilder:
    """Captures, compiles and verifies the graphs of a step."""

    def __init__(self, step: EagerStep) -> None:
        self.step = step

    def capture(self, call: Call, reached: list[Tensor]) -> Captured:
        """Captures a step that sets these gradients, and restores all tensors.

        Raises:
            NotCapturedError: If a number is read off a tensor.
        """
        if self.step.update is not None:
            self.step.update.prepare(reached)
        restore = self.step.environment.save_state(self.step.updated_tensors())
        try:
            with pyro.validation_enabled(False):
                return self._capture_step(call, reached)
        finally:
            restore()

    def build(
        self, call: Call, reached: list[Tensor], restore: Callable[[], None], validating: bool
    ) -> CachedStep | None:
        """Captures, compiles and verifies a step.

        Returns:
            The step, or ``None`` if it cannot be verified because eager results are not finite.

        Raises:
            NotCapturedError: If its results differ from those of the eager step.
        """
        constants = self.find_constants(call)
        key, versions = self.step.environment.key(), self.step.environment.versions()
        loss = self.step.backward(*call.args, **call.kwargs)
        # The loss may depend on a parameter whose gradient autograd does not set.
        reached = [parameter for parameter in reached if parameter.grad is not None]
        expected = [loss, *(torch.as_tensor(parameter.grad).clone() for parameter in reached)]
        expected_state = clone_tensors(self.step.environment.tensors())
        if self.step.environment.key() != key:
            raise NeverCapturedError(
                "the objective or a module replaces a number or a tensor at each call"
            )
        if name := constants.describe_change():
            raise NeverCapturedError(f"each call changes {name}")
        if not all(bool(value.isfinite().all()) for value in expected):
            return None
        changing = self.step.environment.find_changed_tensors(versions)
        restore()
        captured = self._capture_step(call, reached, validating, changing)
        engine = self._choose_engine(captured.graph)
        run = compile_graph(captured, call.tensors, self.step.settings.backend)
        run = record_graph(run, captured.lifted, call.tensors)
        restore()
        inputs = [*captured.lifted, *call.tensors]
        with torch.no_grad():
            raw_results = list(run(*inputs))
        results = [result.clone() for result in raw_results]
        returns_valid = len(results) > len(expected)
        if returns_valid and not results.pop():
            raise NotCapturedError("a check of a value or parameter fails in the graph only")
        tolerance = BFLOAT16_TOLERANCE if engine == "compiled-bfloat16" else 0.0
        self._check_loss(call, results[:1], expected[:1], tolerance)
        update = self.step.update
        in_graph = update is not None and update.is_capturable
        gradients: Sequence[Tensor] = expected[1:]
        if update is not None and in_graph:
            gradients = update.clip_gradients(gradients)
        check_close("gradient", results[1:], gradients, tolerance)
        updated = set(map(id, self.step.updated_tensors())) if in_graph else set()
        others = [i for i, t in enumerate(self.step.environment.tensors()) if id(t) not in updated]
        state = clone_tensors(self.step.environment.tensors())
        check_close(
            "state of modules",
            [state[i] for i in others],
            [expected_state[i] for i in others],
            tolerance,
        )
        if updated:
            self._check_update(reached, results[1:], restore)
        aliases = find_shared(raw_results, inputs)
        return CachedStep(run, reached, captured.lifted, aliases, engine, constants, returns_valid)

    def _check_loss(
        self, call: Call, actual: list[Tensor], expected: list[Tensor], tolerance: float
    ) -> None:
        """Raises a ``NotCapturedError`` if the loss differs from the eager one."""
        try:
            check_close("loss", actual, expected, tolerance)
        except NotCapturedError as error:
            if type(self.step.objective) is not TraceMeanField_ELBO:
                raise
            with self.step.environment.undo_changes():
                names = find_delta_sites(self.step.loss.args, call)
            if not names:
                raise
            raise NotCapturedError(
                f"TraceMeanField_ELBO leaves out the log density of Delta sites, here of "
                f"{names[0]!r}: use pyro_vae.objectives.ELBO()"
            ) from error

    def _list_functions(self) -> list[Any]:
        """Returns the functions and modules that a step runs."""
        return [self.step.objective, *self.step.loss.args, *self.step.environment.modules]

    def find_constants(self, call: Call) -> Constants:
        """Returns the numbers of the user's functions; notes the modules and tensors they read."""
        constants = Constants([*self._list_functions(), *call.non_tensors])
        for module in constants.modules:
            self.step.environment.add(module)
        self.step.environment.outer_tensors = constants.tensors
        return constants

    def _check_update(
        self, reached: list[Tensor], gradients: list[Tensor], restore: Callable[[], None]
    ) -> None:
        """Compares the update of the graph with that of the optimizer for the same gradients.

        They are clipped already.

        Raises:
            NotCapturedError: If they differ.
        """
        assert self.step.update is not None
        actual = clone_tensors(self.step.updated_tensors())
        restore()
        before = clone_tensors(self.step.updated_tensors())
        for parameter, gradient in zip(reached, gradients, strict=True):
            parameter.grad = gradient
        self.step.update.optimizer.step()
        check_changes("update", before, actual, clone_tensors(self.step.updated_tensors()))

    def _capture_step(
        self,
        call: Call,
        reached: list[Tensor],
        validating: bool = False,
        changing: Sequence[Tensor] = (),
    ) -> Captured:
        """Captures a step that sets these gradients; the run changes tensors as the step does."""
        if any(parameter._post_accumulate_grad_hooks for parameter in reached):
            raise NotCapturedError("a parameter has a hook that waits for its gradient to be set")
        loss_of = self._make_capturable(call)
        enabled = self._find_enabled_checks(loss_of, call) if validating else None
        results = partial(self._compute_results, loss_of, call, reached, enabled, changing)
        return capture_graph(results, call.tensors)

    def _find_enabled_checks(self, loss_of: Callable[..., Tensor], call: Call) -> list[bool]:
        """Returns, for each check of a value or parameter, whether it belongs into the graph."""
        with (
            self.step.environment.undo_changes(),
            pyro.validation_enabled(True),
            torch.enable_grad(),
        ):
            return find_enabled_checks(partial(loss_of, *call.args, **call.kwargs))

    def _make_capturable(self, call: Call) -> Callable[..., Tensor]:
        """Returns the loss, with the objective replaced if it reads numbers off tensors."""
        objective = replace_pyro_objective(self.step.objective)
        if objective is self.step.objective:
            return self.step.loss
        loss_of = partial(objective.differentiable_loss, *self.step.loss.args)
        # Its first call inspects the model by a further run, which must not enter the graph.
        with self.step.environment.undo_changes():
            loss_of(*call.args, **call.kwargs)
        return loss_of

    def _compute_results(
        self,
        loss_of: Callable[..., Tensor],
        call: Call,
        reached: list[Tensor],
        enabled: list[bool] | None,
        changing: Sequence[Tensor],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns loss and gradients for other tensors, and whether the step is valid."""
        args, kwargs = call.with_tensors(tensors)
        before = [] if enabled is None else clone_tensors(changing)
        checks = SupportChecks(enabled)
        with torch.enable_grad(), nullcontext() if enabled is None else checks:
            loss = loss_of(*args, **kwargs)
            gradients = torch.autograd.grad(loss / self.step.settings.divide_by, reached)
        gradients, loss = tuple(map(match_layout, gradients, reached)), loss.detach()
        valid = None if enabled is None else checks.all_passed(loss)
        if self.step.update is not None and self.step.update.is_capturable:
            with torch.no_grad():
                gradients = self.step.update.clip_gradients(gradients)
                self.step.update.apply(reached, gradients, valid)
        if valid is None:
            return (loss, *gradients)
        with torch.no_grad():
            for tensor, old in zip(changing, before, strict=True):
                tensor.copy_(torch.where(valid, tensor, old))
        if can_read_validity(loss):
            return (loss, *gradients, valid)
        zeros = [torch.where(valid, gradient, 0) for gradient in gradients]
        return (torch.where(valid, loss, torch.nan), *zeros)

    def _choose_engine(self, graph: Any) -> str:
        """Chooses precision and library for the matmuls of a graph; returns the engine's name."""
        if self.step.settings.precision == "bfloat16":
            return "compiled-bfloat16" if use_bfloat16(graph) else "compiled"
        if self.step.settings.backend == "inductor":
            replace_convolutions(graph)
        if find_eligible_matmuls(graph):
            if self.step.settings.products == "auto":
                self.step.settings.products = choose_matmul_library(graph)
            if self.step.settings.products == "onednn":
                use_onednn(graph)
                return "compiled-onednn"
        return "compiled"
