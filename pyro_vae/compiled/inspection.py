"""What can be reached from Python objects: told apart by its content, and put back."""

import hashlib
import random
import types
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled.graph import NotCapturedError

__all__ = ["Look", "held_by", "kept"]

_PLAIN = (
    bool, int, complex, str, bytes, range, slice, type, Enum, torch.dtype, torch.device,
    torch.layout, torch.memory_format, types.BuiltinFunctionType, types.ModuleType, types.CodeType,
)  # fmt: skip
"""Types of values that never change and are equal if they are the same."""

_MOST = 20_000
"""How many things are looked at before giving up."""


class Look:
    """A look at all that can be reached from some objects, each thing once.

    Arguments:
        names: By identity, what is told by a name and not looked into, such as a VAE's tensors.

    Attributes:
        things: What was met that may change, in order.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.met: dict[int, int] = {}
        self.things: list[Any] = []

    def told(self, value: Any) -> Hashable:
        """Returns what tells a value from others; equal for two that are alike in all they hold.

        Raises:
            NotCapturedError: If too much can be reached from it, or something does not let itself
                be looked into.
        """
        if id(value) in self.names:
            return "named", self.names[id(value)]
        if isinstance(value, float):
            return type(value), float.hex(value)
        if value is None or isinstance(value, _PLAIN):
            return type(value), str(value) if isinstance(value, slice) else value
        if id(value) in self.met:
            return "met", self.met[id(value)]
        if len(self.things) >= _MOST:
            raise NotCapturedError(f"more than {_MOST} objects can be reached from a module")
        self.met[id(value)] = len(self.met)
        self.things.append(value)
        try:
            return self.content(value)
        except NotCapturedError:
            raise
        except Exception as error:
            kind = type(value).__name__
            raise NotCapturedError(f"a {kind} cannot be looked into: {error}") from error

    def content(self, value: Any) -> Hashable:
        """Returns what tells the content of a thing."""
        if isinstance(value, Tensor):
            return "tensor", value.shape, value.dtype, value.requires_grad, _digest(value)
        if _is_array(value):
            return type(value), str(value.dtype), value.shape, value.tobytes()
        if isinstance(value, Mapping):
            return type(value), self.each(pair for item in value.items() for pair in item)
        if isinstance(value, (list, tuple, deque)):
            return type(value), self.each(value)
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(map(self.told, value))
        if isinstance(value, (torch.Generator, random.Random)):
            return type(value), _state_of(value)
        parts = _parts_of(value)
        if parts is not None:
            return type(value), self.each(parts)
        return "the object itself", id(value)

    def each(self, values: Iterable[Any]) -> tuple[Hashable, ...]:
        """Returns what tells some values, in their order."""
        return tuple(map(self.told, values))


def _digest(tensor: Tensor) -> str:
    """Returns what tells the numbers of a tensor."""
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha1(numbers.numpy().tobytes()).hexdigest()


def _state_of(generator: Any) -> Hashable:
    """Returns the state of a generator of random numbers."""
    if isinstance(generator, torch.Generator):
        return _digest(generator.get_state())
    return generator.getstate()


def _parts_of(value: Any) -> Iterable[Any] | None:
    """Returns what an object is made of, or ``None`` if it cannot be looked into."""
    if isinstance(value, types.FunctionType):
        return (value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__)
    if isinstance(value, types.CellType):
        return _contents(value)
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, weakref.ref):
        return (value(),)
    if hasattr(value, "__dict__"):
        # In the order of names, since two of a kind may have set them in another.
        attributes = sorted(held_by(value).items(), key=lambda item: str(item[0]))
        return (*_slots(value), *(part for item in attributes for part in item))
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        return None
    if isinstance(reduced, str):
        return None
    return [*reduced[:3], *map(list, filter(None, reduced[3:5]))]


def held_by(value: Any) -> dict[str, Any]:
    """Returns the attributes of an object, less caches that it does not count as its state."""
    own = getattr(type(value), "__getstate__", None)
    if own is getattr(object, "__getstate__", None):
        return vars(value)
    try:
        state = value.__getstate__()
    except Exception:
        # Some raise rather than be pickled.
        return vars(value)
    return state if isinstance(state, dict) else vars(value)


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    """Returns what a variable of a closure holds, if it holds anything."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _slots(value: Any) -> list[Any]:
    """Returns what an object holds besides its dictionary."""
    declared = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [n for d in declared for n in ((d,) if isinstance(d, str) else d)]
    return [getattr(value, n) for n in names if not n.startswith("__") and hasattr(value, n)]


def kept(things: Iterable[Any]) -> Callable[[], None]:
    """Returns a function that puts back what things hold now, each in its place."""
    restore = [put_back for thing in things if (put_back := _kept_one(thing)) is not None]

    def put_back_all() -> None:
        for put_back in restore:
            put_back()

    return put_back_all


def _kept_one(thing: Any) -> Callable[[], Any] | None:
    """Returns a function that puts back what a thing holds now, or ``None`` if it cannot change."""
    if isinstance(thing, Tensor):
        return partial(torch.no_grad()(thing.copy_), thing.detach().clone())
    if isinstance(thing, torch.Generator):
        return partial(thing.set_state, thing.get_state())
    if isinstance(thing, random.Random):
        return partial(thing.setstate, thing.getstate())
    if isinstance(thing, types.CellType):
        held = _contents(thing)
        return partial(setattr, thing, "cell_contents", *held) if held else None
    if isinstance(thing, list):
        return partial(thing.__setitem__, slice(None), list(thing))
    if isinstance(thing, dict):
        return partial(_refill, thing, list(thing.items()))
    if isinstance(thing, (set, deque)):
        return partial(_refill, thing, list(thing))
    if _is_array(thing):
        return partial(thing.__setitem__, Ellipsis, thing.copy()) if _writeable(thing) else None
    if hasattr(thing, "__dict__") and isinstance(vars(thing), dict):
        return partial(_refill, vars(thing), list(vars(thing).items()))
    return None


def _is_array(value: Any) -> bool:
    """Tells whether a value is an array of NumPy's kind, or a number of such a type."""
    return hasattr(value, "dtype") and hasattr(value, "tobytes")


def _writeable(array: Any) -> bool:
    """Tells whether the numbers of an array can be set."""
    return bool(array.ndim and array.flags.writeable)


def _refill(container: Any, content: list[Any]) -> None:
    """Makes a container hold what it held."""
    container.clear()
    if isinstance(container, deque):
        container.extend(content)
    else:
        container.update(content)
