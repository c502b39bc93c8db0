"""An eager training step: loss, gradients by autograd, and update."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyro_vae.compiled.environment import StepEnvironment
from pyro_vae.compiled.graph import Backend
from pyro_vae.compiled.optimizer_step import Update
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.tensors import clear_gradients, find_leaves

__all__ = ["EagerStep", "Settings"]


@dataclass
class Settings:
    """How a step is compiled; see :func:`compile`."""

    products: str
    precision: str
    strict: bool
    divide_by: float
    validate: bool | None = None
    backend: Backend = "inductor"

    def is_validating(self) -> bool:
        """Whether calls are checked."""
        return bool(is_validation_enabled()) if self.validate is None else self.validate


class EagerStep:
    """A step that runs the objective through Pyro's handlers at each call.

    Attributes:
        parameters: All parameters that were passed, or on which the loss of a call has depended.
        engine: The engine of the last call; ``None`` before the first.
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
        self.environment = StepEnvironment(objective, model, guide)
        self.update = update
        self._follows_optimizer = parameters is None
        if update is not None and parameters is None:
            parameters = update.parameters()
        self.requested = None if parameters is None else list(parameters)
        self.parameters = list(self.requested or [])
        self.settings = settings
        self.engine: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.objective!r}, engine={self.engine!r})"

    def run_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Makes an eager step, whose parameters may differ between calls."""
        self.engine = "eager"
        loss = self.backward(*args, **kwargs)
        if self.update is not None:
            self.update.step_eagerly()
        return loss

    def backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the loss and sets the gradients by autograd, without an update."""
        with torch.enable_grad():
            loss = self.evaluate_loss(*args, **kwargs)
            reached = self.find_reached_parameters(loss)
            clear_gradients(self.parameters)
            if reached:
                (loss / self.settings.divide_by).backward(inputs=reached)
        return loss.detach()

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the loss, without gradient where Pyro's objective has no differentiable one."""
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

    def try_eagerly(self, call: Call) -> list[Tensor]:
        """Makes an eager step, and restores tensors and random state.

        Returns:
            The parameters with a gradient.
        """
        with self.environment.undo_changes():
            self.backward(*call.args, **call.kwargs)
        reached = [parameter for parameter in self.parameters if parameter.grad is not None]
        clear_gradients(self.parameters)
        return reached

    def updated_tensors(self) -> list[Tensor]:
        """Returns the tensors that an update changes."""
        return [] if self.update is None else [*self.parameters, *self.update.tensors()]

    def find_reached_parameters(self, loss: Tensor) -> list[Tensor]:
        """Returns the parameters on which a loss depends; adds new ones to ``parameters``."""
        reached = find_leaves(loss)
        if self.update is not None and self._follows_optimizer:
            # Parameter groups may have been added to the optimizer.
            self.requested = self.update.parameters()
        if self.requested is not None:
            requested = set(map(id, self.requested))
            reached = [leaf for leaf in reached if id(leaf) in requested]
        if not reached and self.requested:
            raise ValueError(
                "Expected a loss that depends on the parameters, got one that depends on none"
            )
        existing = set(map(id, self.parameters))
        self.parameters += [leaf for leaf in reached if id(leaf) not in existing]
        self.environment.track_parameters(reached)
        return reached
