"""A step of inference that is computed eagerly: loss, gradients by autograd, and update."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyro_vae.compiled.environment import Surroundings
from pyro_vae.compiled.graph import Backend
from pyro_vae.compiled.optimizer_step import Update
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.tensors import clear, leaves

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
        """Returns whether calls are checked."""
        return bool(is_validation_enabled()) if self.validate is None else self.validate


class EagerStep:
    """A step that runs the objective through Pyro's handlers each time.

    Attributes:
        parameters: The parameters found so far: all that were given, or that calls depended on.
        engine: How the last call was computed; ``None`` before the first.
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

    def make_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Makes an eager step, which may depend on other parameters each time."""
        self.engine = "eager"
        loss = self.backward(*args, **kwargs)
        if self.update is not None:
            self.update.eager()
        return loss

    def backward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the loss and sets the gradients by autograd, without an update."""
        with torch.enable_grad():
            loss = self.evaluate_loss(*args, **kwargs)
            reached = self.reached_parameters(loss)
            clear(self.parameters)
            if reached:
                (loss / self.settings.divide_by).backward(inputs=reached)
        return loss.detach()

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Tensor:
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

    def try_eagerly(self, call: Call) -> list[Tensor]:
        """Makes a step eagerly, undone in tensors and random state.

        Returns:
            The parameters that have a gradient.
        """
        with self.surroundings.undone():
            self.backward(*call.args, **call.kwargs)
        reached = [parameter for parameter in self.parameters if parameter.grad is not None]
        clear(self.parameters)
        return reached

    def updated_tensors(self) -> list[Tensor]:
        """Returns the tensors that an update changes."""
        return [] if self.update is None else [*self.parameters, *self.update.tensors()]

    def reached_parameters(self, loss: Tensor) -> list[Tensor]:
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
