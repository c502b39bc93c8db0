"""The update of an optimizer, as operations that belong into a step's graph."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_vae.compiled.tensors import copies
from pyro_vae.validation import describe_value

__all__ = ["Update", "check_optimizer"]

_SCALARS = 5
"""How many numbers of a step a rule reads at most."""

_Group = dict[str, Any]
_State = dict[str, Tensor]
_Rule = Callable[[Tensor, Tensor, _State, _Group, Sequence[Tensor]], None]
"""Changes a parameter, given its gradient, its state, its group and the numbers of the step."""


def check_optimizer(name: str, optimizer: Any) -> None:
    """Raises a ``ValueError`` for an optimizer that needs more than a gradient for its step."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"Expected {name} to be a torch.optim.Optimizer, got {describe_value(optimizer)}"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    needs = "calls of the loss" if closure and closure.default is closure.empty else ""
    needs = "sparse gradients" if isinstance(optimizer, SparseAdam) else needs
    if needs:
        raise ValueError(
            f"Expected {name} to step by dense gradients alone, such as torch.optim.Adam, got "
            f"{type(optimizer).__name__}, which needs {needs}"
        )


class Update:
    """One update of all parameters of an optimizer, whose own state it reads and changes.

    A checkpoint of the optimizer, a schedule of its numbers, and a step of its own between two of
    these work as ever.

    Arguments:
        optimizer: The optimizer.
        clip_norm: The norm to which the gradient of all parameters together is clipped.

    Attributes:
        captured: Whether the update can be part of a graph, as of the last :meth:`key`.
    """

    def __init__(self, optimizer: Optimizer, clip_norm: float | None) -> None:
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.captured = known(optimizer)
        # The numbers of the step for each parameter, where all graphs read them.
        self.scalars = torch.zeros(0, _SCALARS, dtype=torch.float64)

    def parameters(self) -> list[Tensor]:
        """Returns the optimizer's parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def eager(self) -> None:
        """Makes the optimizer's own step, with the gradients that are set."""
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)
        self.optimizer.step()

    def tensors(self) -> list[Tensor]:
        """Returns the state, which an update changes, for each parameter."""
        held = (self.optimizer.state.get(p, {}) for p in self.parameters())
        return [value for values in held for value in values.values() if isinstance(value, Tensor)]

    def key(self) -> tuple[Hashable, ...]:
        """Returns what a graph holds for good; short, since every step waits for it.

        That are the choices of the groups, and which tensors state and scalars are.
        """
        self.captured = known(self.optimizer)
        if not self.captured:
            return tuple(map(id, self.parameters()))
        found: list[Hashable] = [self.clip_norm, id(self.scalars)]
        states = self.optimizer.state
        for group in self.optimizer.param_groups:
            found += (
                group["weight_decay"],
                group.get("eps"),
                group.get("nesterov"),
                group.get("decoupled_weight_decay"),
                bool(group.get("momentum")),
            )
            for parameter in group["params"]:
                found.append(id(parameter))
                if parameter in states:
                    found += map(id, states[parameter].values())
        return tuple(found)

    def prepare(self, parameters: Sequence[Tensor]) -> None:
        """Makes what an update reads, as the optimizer's first step would."""
        if not self.captured:
            return
        reached = set(map(id, parameters))
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                start = _START[type(self.optimizer)](parameter, group)
                if start and id(parameter) in reached and not self.optimizer.state[parameter]:
                    self.optimizer.state[parameter] = start
        if len(self.scalars) != len(self.parameters()):
            self.scalars = torch.zeros(len(self.parameters()), _SCALARS, dtype=torch.float64)
        self.set_scalars()

    def set_scalars(self) -> None:
        """Writes the numbers of this step to where the graphs read them."""
        rows, place, states = self.scalars.numpy(), 0, self.optimizer.state
        numbers = _NUMBERS[type(self.optimizer)]
        for group in self.optimizer.param_groups:
            last, values = -1.0, [0.0]
            for parameter in group["params"]:
                steps = float(states[parameter].get("step", 0.0)) if parameter in states else 0.0
                # Mostly all parameters have made as many steps.
                if steps != last:
                    last, values = steps, numbers(group, steps)
                rows[place, : len(values)] = values
                place += 1

    def apply(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        valid: Tensor | None = None,
    ) -> None:
        """Changes the parameters in place, unless ``valid`` is false."""
        if valid is None:
            self._apply(parameters, gradients)
            return
        changing = (*parameters, *self.tensors())
        before = copies(changing)
        self._apply(parameters, gradients)
        for tensor, old in zip(changing, before, strict=True):
            tensor.copy_(torch.where(valid, tensor, old))

    def _apply(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        given = dict(zip(map(id, parameters), self.clipped(gradients), strict=True))
        place = 0
        for group in self.optimizer.param_groups:
            rule = _adamw if group.get("decoupled_weight_decay") else _RULES[type(self.optimizer)]
            for parameter in group["params"]:
                gradient = given.get(id(parameter))
                if gradient is not None:
                    state = self.optimizer.state.get(parameter, {})
                    scalars = self.scalars[place].to(parameter.dtype).unbind()
                    rule(parameter, gradient, state, group, scalars)
                place += 1

    def clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns gradients whose norm together is at most ``clip_norm``."""
        if self.clip_norm is None:
            return gradients
        factor = self.factor(gradients, self.clip_norm)
        return [g * factor for g in gradients]

    def factor(self, gradients: Sequence[Tensor], clip_norm: float) -> Tensor:
        """Returns what gradients are to be multiplied by, a scalar."""
        # As torch.nn.utils.clip_grad_norm_ has it.
        norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm()
        return (clip_norm / (norm + 1e-6)).clamp(max=1.0)


def _adam(
    parameter: Tensor, gradient: Tensor, state: _State, group: _Group, scalars: Sequence[Tensor]
) -> None:
    """Makes the update of Adam, whose weight decay is a part of the gradient."""
    if group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * parameter
    _moments(parameter, gradient, state, group, scalars)


def _adamw(
    parameter: Tensor, gradient: Tensor, state: _State, group: _Group, scalars: Sequence[Tensor]
) -> None:
    """Makes the update of AdamW, whose weight decay is a step of its own."""
    if group["weight_decay"]:
        parameter.mul_(1 - scalars[0] * group["weight_decay"])
    _moments(parameter, gradient, state, group, scalars)


def _moments(
    parameter: Tensor, gradient: Tensor, state: _State, group: _Group, scalars: Sequence[Tensor]
) -> None:
    """Makes the update of Adam by first and second moments."""
    _, size, root, of_mean, of_square = scalars
    state["step"].add_(1)
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    mean.add_((gradient - mean) * of_mean)
    square.add_((gradient * gradient - square) * of_square)
    parameter.sub_(size * mean / (square.sqrt() * root + group["eps"]))


def _adam_numbers(group: _Group, steps: float) -> list[float]:
    """Returns the numbers of Adam's next step.

    These are the learning rate, what mean and root are multiplied by, and the share of the new
    gradient in both moments.
    """
    beta1, beta2 = group["betas"]
    rate, steps = float(group["lr"]), steps + 1
    size, root = rate / (1 - beta1**steps), (1 - beta2**steps) ** -0.5
    return [rate, size, root, 1 - beta1, 1 - beta2]


def _adam_start(parameter: Tensor, group: _Group) -> _State:
    """Returns the state before Adam's first step."""
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def _sgd(
    parameter: Tensor, gradient: Tensor, state: _State, group: _Group, scalars: Sequence[Tensor]
) -> None:
    """Makes the update of gradient descent, with momentum if there is one."""
    rate, momentum, *_ = scalars
    if group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * parameter
    if group["momentum"]:
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        gradient = gradient + momentum * buffer if group["nesterov"] else buffer
    parameter.sub_(rate * gradient)


def _sgd_numbers(group: _Group, steps: float) -> list[float]:
    """Returns the numbers of the next step: learning rate and momentum."""
    return [float(group["lr"]), group["momentum"]]


def _sgd_start(parameter: Tensor, group: _Group) -> _State:
    """Returns the state before the first step with momentum."""
    return {"momentum_buffer": torch.zeros_like(parameter)} if group["momentum"] else {}


_RULES: dict[type[Optimizer], _Rule] = {Adam: _adam, AdamW: _adamw, SGD: _sgd}
_NUMBERS: dict[type[Optimizer], Callable[[_Group, float], list[float]]] = {
    Adam: _adam_numbers, AdamW: _adam_numbers, SGD: _sgd_numbers,
}  # fmt: skip
"""What changes from step to step; a graph would find it anew for each weight."""
_START: dict[type[Optimizer], Callable[[Tensor, _Group], _State]] = {
    Adam: _adam_start, AdamW: _adam_start, SGD: _sgd_start,
}  # fmt: skip


def known(optimizer: Optimizer) -> bool:
    """Tells whether the update of an optimizer can be part of a graph."""
    # Elsewhere than on a processor, reading the number of steps would wait for the device.
    if any(p.device.type != "cpu" for group in optimizer.param_groups for p in group["params"]):
        return False
    return (
        type(optimizer) in _RULES
        and not _is_watched(optimizer)
        and not any(
            # With dampening the first step of momentum is unlike the others.
            group.get(name)
            for group in optimizer.param_groups
            for name in ("amsgrad", "maximize", "differentiable", "dampening")
        )
    )


def _is_watched(optimizer: Optimizer) -> bool:
    """Tells whether a step does more than the update, by hooks or a method put in its place."""
    hooks = (
        *optimizer._optimizer_step_pre_hooks,
        *optimizer._optimizer_step_post_hooks,
        *_global_optimizer_pre_hooks,
        *_global_optimizer_post_hooks,
    )
    # A scheduler wraps the method, and leaves it as it is.
    step = vars(optimizer).get("step", type(optimizer).step)
    own = getattr(step, "__wrapped__", None) if hasattr(step, "_wrapped_by_lr_sched") else step
    return bool(hooks) or own is not type(optimizer).step
