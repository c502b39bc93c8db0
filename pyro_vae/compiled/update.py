"""The update of an optimizer, as operations that belong into a step's graph."""

from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

__all__ = ["Update"]

Group = dict[str, Any]
Rule = Callable[[Tensor, Tensor, dict[str, Tensor], Group, Tensor], None]
"""Changes a parameter in place, given its gradient, state, group and the numbers of the step."""


class Update:
    """One update of all parameters of an optimizer, whose own state it reads and changes.

    A checkpoint of the optimizer, a schedule of its learning rate, and a step of its own between
    two of these work as ever.

    Arguments:
        optimizer: The optimizer.
        clip_norm: The norm to which the gradient of all parameters together is clipped.

    Attributes:
        captured: Whether the update can be part of a graph.
    """

    def __init__(self, optimizer: Optimizer, clip_norm: float | None) -> None:
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.captured = known(optimizer)
        self.held: tuple[Any, list[dict[str, Tensor]]] = (None, [])
        names = optimizer.param_groups[0].keys() - {"params", "lr", "initial_lr"}
        self.numbers = itemgetter(*sorted(names))
        self.scalars: list[Tensor] = []

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

        That are the numbers of the groups, and which tensors the state is.
        """
        if not self.captured:
            return ()
        if self.held[0] is not self.optimizer.state:
            states = [self.optimizer.state.get(p, {}) for p in self.parameters()]
            self.held = (self.optimizer.state, states)
        found: list[Hashable] = [self.clip_norm]
        for state in self.held[1]:
            found += map(id, state.values())
        for group in self.optimizer.param_groups:
            found += self.numbers(group)
        return tuple(found)

    def prepare(self, parameters: Sequence[Tensor]) -> None:
        """Makes what an update reads, as the optimizer's first step would."""
        if not self.captured:
            return
        reached = set(map(id, parameters))
        self.scalars = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                start = START[type(self.optimizer)](parameter, group)
                if start and id(parameter) in reached and not self.optimizer.state[parameter]:
                    self.optimizer.state[parameter] = start
            if len({self.steps(parameter) for parameter in group["params"]}) > 1:
                self.captured = False
            self.scalars.append(group["params"][0].new_zeros(3))
        self.set_scalars()

    def steps(self, parameter: Tensor) -> float:
        """Returns how many steps a parameter has made."""
        steps = self.optimizer.state.get(parameter, {}).get("step")
        return 0.0 if steps is None else float(steps)

    def set_scalars(self) -> None:
        """Writes the numbers of this step to where the graph reads them."""
        for scalars, group in zip(self.scalars, self.optimizer.param_groups, strict=True):
            values = SCALARS[type(self.optimizer)](group, self.steps(group["params"][0]))
            scalars.numpy()[:] = values

    def apply(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Changes the parameters in place."""
        given = dict(zip(map(id, parameters), self.clipped(gradients), strict=True))
        for scalars, group in zip(self.scalars, self.optimizer.param_groups, strict=True):
            for parameter in group["params"]:
                gradient = given.get(id(parameter))
                if gradient is not None:
                    state = self.optimizer.state.get(parameter, {})
                    RULES[type(self.optimizer)](parameter, gradient, state, group, scalars)

    def clipped(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Returns gradients whose norm together is at most ``clip_norm``."""
        if self.clip_norm is None:
            return gradients
        # As torch.nn.utils.clip_grad_norm_ has it.
        norm = torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm()
        factor = (self.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return [g * factor for g in gradients]


def adam(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group, scalars: Tensor
) -> None:
    """Makes the update of Adam, whose weight decay is a part of the gradient."""
    if group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * parameter
    moments(parameter, gradient, state, group, scalars)


def adamw(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group, scalars: Tensor
) -> None:
    """Makes the update of AdamW, whose weight decay is a step of its own."""
    if group["weight_decay"]:
        parameter.mul_(1 - scalars[0] * group["weight_decay"])
    moments(parameter, gradient, state, group, scalars)


def moments(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group, scalars: Tensor
) -> None:
    """Makes the update of Adam by first and second moments."""
    beta1, beta2 = group["betas"]
    state["step"].add_(1)
    mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    parameter.sub_(scalars[1] * mean / (square.sqrt() * scalars[2] + group["eps"]))


def adam_scalars(group: Group, steps: float) -> list[float]:
    """Returns the learning rate, and what the moments are multiplied by, in Adam's next step."""
    beta1, beta2 = group["betas"]
    rate, steps = float(group["lr"]), steps + 1
    return [rate, rate / (1 - beta1**steps), (1 - beta2**steps) ** -0.5]


def sgd(
    parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Group, scalars: Tensor
) -> None:
    """Makes the update of gradient descent, with momentum if there is one."""
    if group["weight_decay"]:
        gradient = gradient + group["weight_decay"] * parameter
    if group["momentum"]:
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        gradient = gradient + group["momentum"] * buffer if group["nesterov"] else buffer
    parameter.sub_(scalars[0] * gradient)


def adam_start(parameter: Tensor, group: Group) -> dict[str, Tensor]:
    """Returns the state before Adam's first step."""
    fused = group.get("fused") or group.get("capturable")
    device = parameter.device if fused else torch.device("cpu")
    return {
        "step": torch.zeros((), dtype=torch.float32, device=device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def sgd_scalars(group: Group, steps: float) -> list[float]:
    """Returns the learning rate of the next step."""
    return [float(group["lr"]), 0.0, 0.0]


def sgd_start(parameter: Tensor, group: Group) -> dict[str, Tensor]:
    """Returns the state before the first step with momentum."""
    return {"momentum_buffer": torch.zeros_like(parameter)} if group["momentum"] else {}


RULES: dict[type[Optimizer], Rule] = {Adam: adam, AdamW: adamw, SGD: sgd}
SCALARS: dict[type[Optimizer], Callable[[Group, float], list[float]]] = {
    Adam: adam_scalars, AdamW: adam_scalars, SGD: sgd_scalars,
}  # fmt: skip
"""The numbers of a step, found outside of the graph, which would find them for each weight."""
START: dict[type[Optimizer], Callable[[Tensor, Group], dict[str, Tensor]]] = {
    Adam: adam_start, AdamW: adam_start, SGD: sgd_start,
}  # fmt: skip


def known(optimizer: Optimizer) -> bool:
    """Tells whether the update of an optimizer can be part of a graph."""
    hooks = (*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks)
    # Elsewhere than on a processor, reading the number of steps would wait for the device.
    if any(p.device.type != "cpu" for group in optimizer.param_groups for p in group["params"]):
        return False
    return (
        type(optimizer) in RULES
        and not hooks
        and not any(
            # With dampening the first step of momentum is unlike the others.
            group.get(name)
            for group in optimizer.param_groups
            for name in ("amsgrad", "maximize", "differentiable", "dampening")
        )
    )
