"""Implicit inputs and side effects of a step."""

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

from pyro_vae.compiled.tensors import save_tensors

__all__ = ["HostNoise", "StepEnvironment", "is_in_key"]

_KEY_TYPES = frozenset({bool, int, float, complex, str, Tensor})
"""Types of attributes in the key: numbers and strings by value, tensors by identity.

NumPy numbers on modules are watched by ``Constants``.
"""

_MAX_ELEMENTS = 2**20
"""Tensors of closures and globals with more elements count as data, which steps do not change."""

_COMMON_ATTRIBUTES = frozenset(vars(nn.Module()))
"""The attributes of every module."""

_read_contents = itemgetter(
    "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks",
    "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
"""Returns the tensors, layers and hooks in the attributes of a module."""

_Restore = Callable[[], None]


class StepEnvironment:
    """The objective, modules, tensors and random state that a step reads and changes.

    Arguments:
        objective: The objective.
        sides: Model and guide. If they are functions, :meth:`undo_changes` finds the modules that
            they call.

    Attributes:
        modules: The modules.
        outer_tensors: Tensors that functions read from closures and globals.
    """

    def __init__(self, objective: Any, *sides: Callable[..., Any]) -> None:
        self.objective = objective
        self.modules: dict[nn.Module, _ModuleKey] = {}
        self.outer_tensors: list[Tensor] = []
        self.reads_store = False
        for side in (objective, *sides):
            if isinstance(side, nn.Module):
                self.add(side)

    def add(self, module: nn.Module) -> None:
        """Adds a module and its submodules."""
        self.modules |= {m: _ModuleKey(m) for m in module.modules() if m not in self.modules}

    def key(self) -> tuple[Any, ...]:
        """Returns the state that a graph fixes: modes, numbers, and the identity of tensors."""
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
            torch.get_autocast_dtype("cpu"),
            torch.get_autocast_dtype("cuda"),
            *map(_describe_setting, vars(self.objective).values()),
            *(map(id, pyro.get_param_store()._params.values()) if self.reads_store else ()),
            *chain.from_iterable(module_key.read() for module_key in self.modules.values()),
        )

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that a step may change."""
        values = [t for m in self.modules for t in (*m._parameters.values(), *m._buffers.values())]
        values += [value for owner in self.owners() for value in vars(owner).values()]
        values += [
            tensor
            for tensor in self.outer_tensors
            if tensor.layout is torch.strided and tensor.numel() <= _MAX_ELEMENTS
        ]
        return list({id(value): value for value in values if isinstance(value, Tensor)}.values())

    def versions(self) -> list[int | None]:
        """Returns the number of in-place changes of each of :meth:`tensors`."""
        return [None if t.is_inference() else t._version for t in self.tensors()]

    def find_changed_tensors(self, versions: Sequence[int | None]) -> list[Tensor]:
        """Returns the tensors that were changed in place since the given :meth:`versions`."""
        pairs = zip(self.tensors(), versions, self.versions(), strict=True)
        return [tensor for tensor, before, after in pairs if before != after]

    def track_parameters(self, parameters: Iterable[Tensor]) -> None:
        """Makes Pyro's parameter store part of the key if it contains one of the parameters."""
        stored = set(map(id, pyro.get_param_store()._params.values()))
        self.reads_store |= not stored.isdisjoint(map(id, parameters))

    def owners(self) -> list[Any]:
        """Returns the objects whose attributes belong to the step: objective and modules."""
        return [self.objective, *self.modules]

    def save_state(self, others: Sequence[Tensor] = ()) -> _Restore:
        """Returns a function that restores the current tensors and random state."""
        tensors = [*self.tensors(), *others]
        data = {id(tensor) for tensor in self.outer_tensors if not tensor.requires_grad}
        restore_tensors = save_tensors(tensors, read_only=data)
        noise = torch.get_rng_state()
        devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
        device_noise = [torch.cuda.get_rng_state(device) for device in devices]

        def restore() -> None:
            restore_tensors()
            torch.set_rng_state(noise)
            for device, state in zip(devices, device_noise, strict=True):
                torch.cuda.set_rng_state(state, device)

        return restore

    def save_attributes(self) -> _Restore:
        """Returns a function that restores attributes: numbers, and references to tensors."""
        saved = [
            (attributes, {name: v for name, v in attributes.items() if v.__class__ in _KEY_TYPES})
            for owner in self.owners()
            for attributes in (vars(owner), vars(owner).get("_buffers", {}))
        ]

        def restore() -> None:
            for attributes, values in saved:
                attributes.update(values)

        return restore

    @contextmanager
    def undo_changes(self) -> Iterator[None]:
        """Restores tensors and random state at its end; adds modules that are called within."""
        restores = [self.save_state()]

        def add_called(module: nn.Module, _: Any) -> None:
            if module not in self.modules:
                self.add(module)
                restores.append(self.save_state())

        hook = register_module_forward_pre_hook(add_called)
        try:
            yield
        finally:
            hook.remove()
            # The first is restored last, because only it precedes every change.
            for restore in reversed(restores):
                restore()


class HostNoise:
    """The random state of Python and NumPy, whose numbers a graph would fix."""

    def __init__(self) -> None:
        self.python = random.getstate()
        self.numpy = np.random.get_state()

    def is_used(self) -> bool:
        """Whether numbers were drawn since."""
        current = np.random.get_state()
        same = all(np.array_equal(a, b) for a, b in zip(self.numpy, current, strict=True))
        return not same or random.getstate() != self.python

    def restore(self) -> None:
        """Restores the state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)


class _ModuleKey:
    """The state of one module that a graph fixes: numbers, mode, and identity of tensors.

    Arguments:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.attributes = vars(module)
        self.select_attributes()

    def select_attributes(self) -> None:
        """Selects the attributes that not every module has."""
        self.size = len(self.attributes)
        names = [name for name in self.attributes if name not in _COMMON_ATTRIBUTES]
        # An itemgetter returns a tuple only for two or more names.
        self.read_values = itemgetter("training", "training", *names)

    def read(self) -> list[Any]:
        """Returns the current key; kept short because it runs in every step."""
        if len(self.attributes) != self.size:
            self.select_attributes()
        key = [
            id(value) if value.__class__ is Tensor else value
            for value in self.read_values(self.attributes)
            if value.__class__ in _KEY_TYPES
        ]
        parameters, buffers, children, *all_hooks = _read_contents(self.attributes)
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


def is_in_key(value: Any) -> bool:
    """Whether the attribute of a module is part of the key of a ``StepEnvironment``."""
    return value.__class__ in _KEY_TYPES or isinstance(value, nn.Module)


def _describe_setting(value: Any) -> Any:
    """Returns a hashable description of an attribute of an objective."""
    if isinstance(value, Tensor):
        return id(value), value.dtype, value.requires_grad
    if isinstance(value, (Number, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_describe_setting, value))
    if isinstance(value, dict):
        return tuple((name, _describe_setting(item)) for name, item in value.items())
    if isinstance(value, pyro.infer.ELBO):
        return tuple(map(_describe_setting, vars(value).values()))
    return None
