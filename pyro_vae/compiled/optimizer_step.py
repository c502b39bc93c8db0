"""The update of an optimizer as operations of a graph."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_vae.compiled.tensors import clone_tensors
from pyro_vae.validation import describe_value

__all__ = ["Update", "check_optimizer", "is_capturable"]

_MAX_SCALARS = 5
"""The largest number of scalars that an update rule reads."""

_Group = dict[str, Any]
_State = dict[str, Tensor]
_Rule = Callable[[Tensor, Tensor, _State, _Group, Sequence[Tensor]], None]
"""Updates a parameter, given its gradient, state, group and the scalars of the step."""


def check_optimizer(name: str, optimizer: Any) -> None:
    """Raises a ``ValueError`` for an optimizer that needs more than dense gradients."""
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
    """The update of all parameters of an optimizer, which reads and changes the optimizer's state.

    Checkpoints of the optimizer, learning rate schedules, and eager steps in between still work.

    Arguments:
        optimizer: The optimizer.
        clip_norm: The norm to which the gradient of all parameters together is clipped.

    Attributes:
        is_capturable: Whether the update can be part of a graph, as of the last :meth:`key`.
    """

    def __init__(self, optimizer: Optimizer, clip_norm: float | None) -> None:
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.is_capturable = is_capturable(optimizer)
        # One row per parameter; all graphs read the scalars of a step from this tensor.
        self.scalars = torch.zeros(0, _MAX_SCALARS, dtype=torch.float64)

    def parameters(self) -> list[Tensor]:
        """Returns the optimizer's parameters."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def step_eagerly(self) -> None:
        """Clips the current gradients and calls the optimizer's ``step``."""
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)
        self.optimizer.step()

    def tensors(self) -> list[Tensor]:
        """Returns the optimizer's state of all parameters, which an update changes."""
        states = (self.optimizer.state.get(p, {}) for p in self.parameters())
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]

    def key(self) -> tuple[Hashable, ...]:
        """Returns the state that a graph fixes; kept short because it runs in every step.

        It contains the settings of the groups, and the identity of parameters, state and scalars.
        """
        self.is_capturable = is_capturable(self.optimizer)
        if not self.is_capturable:
            return tuple(map(id, self.parameters()))
        key: list[Hashable] = [self.clip_norm, id(self.scalars)]
        states = self.optimizer.state
        for group in self.optimizer.param_groups:
            key += (
                group["weight_decay"],
                group.get("eps"),
                group.get("nesterov"),
                group.get("decoupled_weight_decay"),
                bool(group.get("momentum")),
            )
            for parameter in group["params"]:
                key.append(id(parameter))
                if parameter in states:
                    key += map(id, states[parameter].values())
        return tuple(key)

    def prepare(self, parameters: Sequence[Tensor]) -> None:
        """Initializes state and scalars, as the optimizer does in its first step."""
        if not self.is_capturable:
            return
        reached = set(map(id, parameters))
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state = _INITIALIZERS[type(self.optimizer)](parameter, group)
                if state and id(parameter) in reached and not self.optimizer.state[parameter]:
                    self.optimizer.state[parameter] = state
        if len(self.scalars) != len(self.parameters()):
            self.scalars = torch.zeros(len(self.parameters()), _MAX_SCALARS, dtype=torch.float64)
        self.set_scalars()

    def set_scalars(self) -> None:
        """Writes the scalars of the next step, which the graphs read."""
        self.scalars.copy_(self.plan_scalars(1)[0])

    def plan_scalars(self, count: int) -> Tensor:
        """Returns the scalars of the next steps, one row of :attr:`scalars` after the other."""
        plan = torch.zeros(count, *self.scalars.shape, dtype=torch.float64)
        rows, index, states = plan.numpy(), 0, self.optimizer.state
        compute_scalars = _SCALAR_RULES[type(self.optimizer)]
        for group in self.optimizer.param_groups:
            previous, values = -1.0, [[0.0]]
            for parameter in group["params"]:
                steps = float(states[parameter].get("step", 0.0)) if parameter in states else 0.0
                # Usually all parameters have the same number of steps.
                if steps != previous:
                    previous = steps
                    values = [compute_scalars(group, steps + i) for i in range(count)]
                rows[:, index, : len(values[0])] = values
                index += 1
        return plan

    def apply(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        valid: Tensor | None = None,
    ) -> None:
        """Updates parameters and state in place by clipped gradients, unless ``valid`` is false."""
        if valid is None:
            self._apply(parameters, gradients)
            return
        changing = (*parameters, *self.tensors())
        before = clone_tensors(changing)
        self._apply(parameters, gradients)
        for tensor, old in zip(changing, before, strict=True):
            tensor.copy_(torch.where(valid, tensor, old))

    def _apply(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        gradient_of = dict(zip(map(id, parameters), gradients, strict=True))
        index = 0
        for group in self.optimizer.param_groups:
            is_decoupled = group.get("decoupled_weight_decay")
            rule = _update_adamw if is_decoupled else _UPDATE_RULES[type(self.optimizer)]
            for parameter in group["params"]:
                gradient = gradient_of.get(id(parameter))
                if gradient is not None:
                    state = self.optimizer.state.get(parameter, {})
                    scalars = self.scalars[index].to(parameter.dtype).unbind()
                    rule(parameter, gradient, state, group, scalars)
                index += 1

    def clip_gradients(self, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the gradients, scaled to a total norm of at most ``clip_norm``."""
        if self.clip_norm is None:
            return tuple(gradients)
        factor = self.compute_clip_factor(gradients, self.clip_norm)
        return tuple(g * factor for g in gradients)

    def compute_clip_factor(self, gradients: Sequence[Tensor], clip_norm: float) -> Tensor:
        """Returns the factor of ``torch.nn.utils.clip_grad_norm_``, a scalar tensor."""
        norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm()
        return (clip_norm / (norm + 1e-6)).clamp(max=1.0)


def _update_adam(
    parameter: Tensor, gradient: Tensor, state: _State, group: _Group, scalars: Sequence[Tensor]
) -> None:
    """Makes an update of Adam, with weight decay as part of the gradient."""
    if group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * parameter
    _update_moments(parameter, gradient, state, group, scalars)


def _update_adamw(
    parameter: Tensor, gradient: Tensor, state: _State, group: _Group, scalars: Sequence[Tensor]
) -> None:
    """Makes an update of AdamW, with weight decay apart from the gradient."""
    if group["weight_decay"]:
        parameter.mul_(1 - scalars[0] * group["weight_decay"])
    _update_moments(parameter, gradient, state, group, scalars)


def _update_moments(
    parameter: Tensor, gradient: Tensor, state: _State, group: _Group, scalars: Sequence[Tensor]
) -> None:
    """Makes an update of Adam without weight decay."""
    _, step_size, root_factor, mean_weight, square_weight = scalars
    state["step"].add_(1)
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    mean.add_((gradient - mean) * mean_weight)
    square.add_((gradient * gradient - square) * square_weight)
    parameter.sub_(step_size * mean / (square.sqrt() * root_factor + group["eps"]))


def _compute_adam_scalars(group: _Group, steps: float) -> list[float]:
    """Returns the scalars of Adam's next step.

    These are the learning rate, the factors of the mean and of the root of the mean square, and
    the weights of the new gradient in both moments.
    """
    beta1, beta2 = group["betas"]
    rate, steps = float(group["lr"]), steps + 1
    step_size, root_factor = rate / (1 - beta1**steps), (1 - beta2**steps) ** -0.5
    return [rate, step_size, root_factor, 1 - beta1, 1 - beta2]


def _initialize_adam(parameter: Tensor, group: _Group) -> _State:
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def _update_sgd(
    parameter: Tensor, gradient: Tensor, state: _State, group: _Group, scalars: Sequence[Tensor]
) -> None:
    """Makes an update of gradient descent, with momentum if it is not zero."""
    rate, momentum, *_ = scalars
    if group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * parameter
    if group["momentum"]:
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        gradient = gradient + momentum * buffer if group["nesterov"] else buffer
    parameter.sub_(rate * gradient)


def _compute_sgd_scalars(group: _Group, steps: float) -> list[float]:
    """Returns learning rate and momentum."""
    return [float(group["lr"]), group["momentum"]]


def _initialize_sgd(parameter: Tensor, group: _Group) -> _State:
    return {"momentum_buffer": torch.zeros_like(parameter)} if group["momentum"] else {}


_UPDATE_RULES: dict[type[Optimizer], _Rule] = {
    Adam: _update_adam,
    AdamW: _update_adamw,
    SGD: _update_sgd,
}
_SCALAR_RULES: dict[type[Optimizer], Callable[[_Group, float], list[float]]] = {
    Adam: _compute_adam_scalars, AdamW: _compute_adam_scalars, SGD: _compute_sgd_scalars,
}  # fmt: skip
"""Scalars are computed outside of the graph, which would repeat the work for each weight."""
_INITIALIZERS: dict[type[Optimizer], Callable[[Tensor, _Group], _State]] = {
    Adam: _initialize_adam, AdamW: _initialize_adam, SGD: _initialize_sgd,
}  # fmt: skip


def is_capturable(optimizer: Optimizer) -> bool:
    """Whether the update of an optimizer can be part of a graph."""
    # Reading the number of steps would wait for any device other than the processor.
    if any(p.device.type != "cpu" for group in optimizer.param_groups for p in group["params"]):
        return False
    return (
        type(optimizer) in _UPDATE_RULES
        and not _has_hooks(optimizer)
        and not any(
            # With dampening, the first step of momentum differs from the others.
            group.get(name)
            for group in optimizer.param_groups
            for name in ("amsgrad", "maximize", "differentiable", "dampening")
        )
    )


def _has_hooks(optimizer: Optimizer) -> bool:
    """Whether hooks or a replaced ``step`` method do more than the update."""
    hooks = (
        *optimizer._optimizer_step_pre_hooks,
        *optimizer._optimizer_step_post_hooks,
        *_global_optimizer_pre_hooks,
        *_global_optimizer_post_hooks,
    )
    # A learning rate scheduler wraps the method without changing the update.
    step = vars(optimizer).get("step", type(optimizer).step)
    inner = getattr(step, "__wrapped__", None) if hasattr(step, "_wrapped_by_lr_sched") else step
    return bool(hooks) or inner is not type(optimizer).step
