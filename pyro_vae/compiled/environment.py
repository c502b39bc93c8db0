"""What a step reads besides its arguments, and what it changes besides its result."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from numbers import Number
from operator import itemgetter
from typing import Any

import numpy as np
import pyro.infer
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["HostNoise", "Surroundings", "is_in_key"]

_OWN = frozenset({bool, int, float, complex, str, Tensor})
"""Types of attributes that a graph holds, the value of a number and the place of a tensor.

NumPy numbers on modules are watched by ``Constants``.
"""

_LARGE = 2**20
"""Tensors of closures and globals with more elements are data, which no step changes."""

_OF_ALL = frozenset(vars(nn.Module()))
"""The attributes of every module."""

_CONTENTS = itemgetter(
    "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks",
    "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
"""Returns the tensors, layers and hooks in the attributes of a module."""

_PutBack = Callable[[], None]


class Surroundings:
    """An objective, and the modules of a model and a guide.

    Arguments:
        objective: The objective.
        sides: Model and guide. If they are no modules, those that they call are found by
            :meth:`undone`.

    Attributes:
        modules: The modules.
        others: Tensors that functions read elsewhere.
    """

    def __init__(self, objective: Any, *sides: Callable[..., Any]) -> None:
        self.objective = objective
        self.modules: dict[nn.Module, _Facts] = {}
        self.others: list[Tensor] = []
        self.reads_store = False
        for side in (objective, *sides):
            if isinstance(side, nn.Module):
                self.add(side)

    def add(self, module: nn.Module) -> None:
        """Adds a module and those within it."""
        self.modules |= {m: _Facts(m) for m in module.modules() if m not in self.modules}

    def key(self) -> tuple[Any, ...]:
        """Returns what a graph holds for good: modes, numbers, and which tensors it reads."""
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
            torch.get_autocast_dtype("cpu"),
            torch.get_autocast_dtype("cuda"),
            *map(_described, vars(self.objective).values()),
            *(map(id, pyro.get_param_store()._params.values()) if self.reads_store else ()),
            *chain.from_iterable(facts.key() for facts in self.modules.values()),
        )

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that a step may change."""
        found = [t for m in self.modules for t in (*m._parameters.values(), *m._buffers.values())]
        found += [value for owner in self.owners() for value in vars(owner).values()]
        found += [t for t in self.others if t.layout is torch.strided and t.numel() <= _LARGE]
        return list({id(value): value for value in found if isinstance(value, Tensor)}.values())

    def copies(self) -> list[Tensor]:
        """Returns copies of these tensors."""
        return [tensor.detach().clone() for tensor in self.tensors()]

    def versions(self) -> list[int | None]:
        """Returns how often each of these tensors was changed in place."""
        return [None if t.is_inference() else t._version for t in self.tensors()]

    def changed_since(self, versions: Sequence[int | None]) -> list[Tensor]:
        """Returns the tensors that were changed in place since :meth:`versions`."""
        pairs = zip(self.tensors(), versions, self.versions(), strict=True)
        return [tensor for tensor, before, after in pairs if before != after]

    def note(self, parameters: Iterable[Tensor]) -> None:
        """Takes Pyro's parameter store into account, if it holds one of these."""
        held = set(map(id, pyro.get_param_store()._params.values()))
        self.reads_store |= not held.isdisjoint(map(id, parameters))

    def owners(self) -> list[Any]:
        """Returns the objects that have attributes."""
        return [self.objective, *self.modules]

    def save(self, others: Sequence[Tensor] = ()) -> _PutBack:
        """Returns a function that puts tensors and random state back to what they are now."""
        tensors = [*self.tensors(), *others]
        copies = [tensor.detach().clone() for tensor in tensors]
        data = {id(tensor) for tensor in self.others if not tensor.requires_grad}
        noise = torch.get_rng_state()
        devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
        device_noise = [torch.cuda.get_rng_state(device) for device in devices]

        @torch.no_grad()
        def put_back() -> None:
            for tensor, copy in zip(tensors, copies, strict=True):
                # Data in closures may lie in memory that nobody can write to.
                if id(tensor) not in data or not _equal(tensor, copy):
                    tensor.copy_(copy)
            torch.set_rng_state(noise)
            for device, state in zip(devices, device_noise, strict=True):
                torch.cuda.set_rng_state(state, device)

        return put_back

    def save_attributes(self) -> _PutBack:
        """Returns a function that puts numbers, and which tensors they are, back."""
        known = [
            (attributes, {name: v for name, v in attributes.items() if v.__class__ in _OWN})
            for owner in self.owners()
            for attributes in (vars(owner), vars(owner).get("_buffers", {}))
        ]

        def put_back() -> None:
            for attributes, values in known:
                attributes.update(values)

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


class HostNoise:
    """The random state of Python and NumPy, of which a graph holds only the numbers drawn."""

    def __init__(self) -> None:
        self.python = random.getstate()
        self.numpy = np.random.get_state()

    def is_used(self) -> bool:
        """Whether numbers were drawn since."""
        now = np.random.get_state()
        same = all(np.array_equal(a, b) for a, b in zip(self.numpy, now, strict=True))
        return not same or random.getstate() != self.python

    def put_back(self) -> None:
        """Restores the state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)


class _Facts:
    """What a graph holds of a module for good: its numbers and mode, and which tensors it has.

    Arguments:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.own = vars(module)
        self.look()

    def look(self) -> None:
        """Finds out which attributes a module has besides what every module has."""
        self.size = len(self.own)
        names = [name for name in self.own if name not in _OF_ALL]
        # With two names or more it returns a tuple.
        self.values = itemgetter("training", "training", *names)

    def key(self) -> list[Any]:
        """Returns them; short, since every step waits for it."""
        if len(self.own) != self.size:
            self.look()
        key = [
            id(value) if value.__class__ is Tensor else value
            for value in self.values(self.own)
            if value.__class__ in _OWN
        ]
        parameters, buffers, children, *all_hooks = _CONTENTS(self.own)
        for tensors in (parameters, buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    key += (id(tensor), tensor.dtype, tensor.requires_grad)
        if children:
            key += map(id, children.values())
        for hooks in all_hooks:
            if hooks:
                key += hooks
        return key


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def is_in_key(value: Any) -> bool:
    """Whether the attribute of a module is part of the key of its ``Surroundings``."""
    return value.__class__ in _OWN or isinstance(value, nn.Module)


def _described(value: Any) -> Any:
    """Returns what tells a value of an objective from others; hashable."""
    if isinstance(value, Tensor):
        return id(value), value.dtype, value.requires_grad
    if isinstance(value, (Number, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, dict):
        return tuple((name, _described(item)) for name, item in value.items())
    if isinstance(value, pyro.infer.ELBO):
        return tuple(map(_described, vars(value).values()))
    return None
