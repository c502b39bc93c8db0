"""What a step reads besides its arguments, and what it changes besides its result."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.infer
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["Surroundings"]

OWN = frozenset({bool, int, float, complex, str, Tensor})
"""Types of attributes that a graph holds, the value of a number and the place of a tensor."""

PutBack = Callable[[], None]


class Surroundings:
    """An objective, and the modules of a model and a guide.

    Arguments:
        objective: The objective.
        sides: Model and guide. If they are no modules, those that they call are found by
            :meth:`undone`.
    """

    def __init__(self, objective: Any, *sides: Callable[..., Any]) -> None:
        self.objective = objective
        self.modules: dict[nn.Module, None] = {}
        self.reads_store = False
        for side in (objective, *sides):
            if isinstance(side, nn.Module):
                self.add(side)

    def add(self, module: nn.Module) -> None:
        """Adds a module and those within it."""
        self.modules.update(dict.fromkeys(module.modules()))

    def key(self) -> tuple[Any, ...]:
        """Returns what a graph holds for good: modes, numbers, and which tensors it reads."""
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
            *map(described, vars(self.objective).values()),
            *(map(id, pyro.get_param_store()._params.values()) if self.reads_store else ()),
            *modules_key(self.modules),
        )

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that a step may change."""
        found = [t for m in self.modules for t in (*m._parameters.values(), *m._buffers.values())]
        found += [value for owner in self.owners() for value in vars(owner).values()]
        return [value for value in found if isinstance(value, Tensor)]

    def copies(self) -> list[Tensor]:
        """Returns copies of these tensors."""
        return [tensor.detach().clone() for tensor in self.tensors()]

    def note(self, parameters: Iterable[Tensor]) -> None:
        """Takes Pyro's parameter store into account, if it holds one of these."""
        held = set(map(id, pyro.get_param_store()._params.values()))
        self.reads_store |= not held.isdisjoint(map(id, parameters))

    def owners(self) -> list[Any]:
        """Returns the objects that have attributes."""
        return [self.objective, *self.modules]

    def save(self) -> PutBack:
        """Returns a function that puts tensors and random state back to what they are now."""
        tensors = self.tensors()
        copies = self.copies()
        noise = torch.get_rng_state()
        devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
        device_noise = [torch.cuda.get_rng_state(device) for device in devices]

        @torch.no_grad()
        def put_back() -> None:
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
            torch.set_rng_state(noise)
            for device, state in zip(devices, device_noise, strict=True):
                torch.cuda.set_rng_state(state, device)

        return put_back

    def save_attributes(self) -> PutBack:
        """Returns a function that puts numbers, and which tensors they are, back."""
        known = [
            (owner, {name: value for name, value in vars(owner).items() if value.__class__ in OWN})
            for owner in self.owners()
        ]

        def put_back() -> None:
            for owner, attributes in known:
                vars(owner).update(attributes)

        return put_back

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Undoes what is done within to tensors and random state; adds modules that are called."""
        saved = [self.save()]

        def meet(module: nn.Module, _: Any) -> None:
            if module not in self.modules:
                self.add(module)
                saved.append(self.save())

        hook = register_module_forward_pre_hook(meet)
        try:
            yield
        finally:
            hook.remove()
            # The first of them last: it alone is from before everything.
            for put_back in reversed(saved):
                put_back()


def modules_key(modules: Iterable[nn.Module]) -> list[Any]:
    """Returns numbers and tensors of modules; short, since every step waits for it."""
    key: list[Any] = []
    for module in modules:
        own = vars(module)
        key += [id(v) if v.__class__ is Tensor else v for v in own.values() if v.__class__ in OWN]
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            if tensor is not None:
                key += (id(tensor), tensor.dtype, tensor.requires_grad)
    return key


def described(value: Any) -> Any:
    """Returns what tells a value of an objective from others; hashable."""
    if isinstance(value, Tensor):
        return id(value), value.dtype, value.requires_grad
    if value.__class__ in OWN:
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(described, value))
    if isinstance(value, dict):
        return tuple((name, described(item)) for name, item in value.items())
    if isinstance(value, pyro.infer.ELBO):
        return tuple(map(described, vars(value).values()))
    return None
