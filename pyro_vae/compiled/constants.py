"""Numbers and tensors that a user's functions read from elsewhere than their arguments."""

import dis
import sys
import types
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import cache, partial
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

__all__ = ["Constants"]

LIBRARIES = {"torch", "pyro", "pyro_vae", "numpy"}
"""Packages whose functions and objects hold no number of the user's."""

STANDARD = set(sys.stdlib_module_names) - {"__main__"}
"""Modules whose functions do not, but whose objects may."""

MOST = 256
"""How many places are watched; each costs a step about 0.2 us."""

SHORT = 64
"""Up to how many entries of lists and arrays are watched."""

_PLAIN = (Number, str, bytes)
_LEAVES = (*_PLAIN, type(None), Tensor, np.ndarray)

_Read = Callable[[], Any]


class Constants:
    """The numbers and tensors that functions read from closures, globals and plain objects.

    Names in the code of a function are watched: variables of its closure and its module, keys of
    dictionaries, attributes of objects, and the entries of short lists. The numbers that modules
    have as attributes are watched by ``Surroundings``.

    Arguments:
        roots: Functions, methods and modules.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.places = _places(roots)
        self.reads = [place.read for place in self.places]
        self.values = self.current()

    def current(self) -> list[Hashable]:
        """Returns the present values of the places; short, since every step waits for it."""
        return [_seen(read()) for read in self.reads]

    def changed(self) -> str | None:
        """Describes the first place whose value has changed, if there is one."""
        pairs = zip(self.places, self.values, self.current(), strict=True)
        return next((place.described() for place, old, new in pairs if old != new), None)


class _Place(NamedTuple):
    """Something that the code of a function names.

    Attributes:
        read: Returns it.
        name: Its name in the code.
        code: The code.
        held: What it was, kept so that nothing else gets its identity.
    """

    read: _Read
    name: str
    code: types.CodeType
    held: Any

    def described(self) -> str:
        """Returns the name and the line that reads it."""
        lines = (
            (i.positions.lineno if sys.version_info >= (3, 11) and i.positions else i.starts_line)
            for i in dis.get_instructions(self.code)
            if i.argval == self.name.rsplit(".", 1)[-1].rsplit("[", 1)[0]
        )
        line = next(filter(None, lines), self.code.co_firstlineno)
        return f"{self.name} ({Path(self.code.co_filename).name}, line {line})"


class _Object(NamedTuple):
    """An object to look into: its name in the code that leads to it."""

    value: Any
    name: str
    code: types.CodeType | None


def _is_library(module: str | None) -> bool:
    return module is None or module.split(".")[0] in LIBRARIES | STANDARD


def _is_library_class(kind: type) -> bool:
    return kind.__module__.split(".")[0] in LIBRARIES


def _places(roots: Iterable[Any]) -> list[_Place]:
    """Returns the places, the nearest first."""
    waiting = deque(_Object(root, type(root).__name__, None) for root in roots)
    met: set[int] = set()
    found: list[_Place] = []
    while waiting and len(found) < MOST:
        thing = waiting.popleft()
        if id(thing.value) in met:
            continue
        met.add(id(thing.value))
        for member in _members(thing):
            if isinstance(member, _Object):
                waiting.append(member)
                continue
            found.append(member)
            if not isinstance(member.held, _LEAVES):
                waiting.append(_Object(member.held, member.name, member.code))
    return found[:MOST]


def _members(thing: _Object) -> Iterator[_Place | _Object]:
    """Yields the places within an object, and the objects to look into next."""
    value, name, code = thing
    if isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield _Object(part, name, code)
    elif isinstance(value, types.MethodType):
        yield _Object(value.__func__, name, None)
        yield _Object(value.__self__, "self", value.__func__.__code__)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, (types.ModuleType, type)):
        if code is not None:
            yield from _of_names(vars(value), _names(code), f"{name}.{{}}", code)
    elif isinstance(value, Mapping):
        if code is not None:
            yield from _of_names(value, _names(code), f"{name}[{{!r}}]", code)
    elif hasattr(value, "__dict__") and not _is_library_class(type(value)):
        yield from _of_object(value, name, code)


def _of_function(function: types.FunctionType) -> Iterator[_Place | _Object]:
    """Yields variables of the closure and of the module."""
    if _is_library(function.__module__):
        if hasattr(function, "__wrapped__"):
            yield _Object(function.__wrapped__, function.__name__, None)
        for cell in function.__closure__ or ():
            if callable(held := _content(cell)):
                yield _Object(held, function.__name__, None)
        return
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield _Place(partial(_content, cell), name, code, _content(cell))
    yield from _of_names(function.__globals__, _names(code), "{}", code)


def _of_object(value: Any, name: str, code: types.CodeType | None) -> Iterator[_Place | _Object]:
    """Yields attributes that the code or the class names, and the functions of the class."""
    names = set(_names(code)) if code is not None else set()
    whole = isinstance(value, nn.Module) or callable(value)
    for kind in type(value).__mro__:
        if _is_library(kind.__module__):
            continue
        for key, member in vars(kind).items():
            runs = key in names or (whole and key != "__init__")
            if runs and isinstance(member, types.FunctionType):
                names |= _names(member.__code__)
                yield _Object(member, key, None)
                code = code or member.__code__
    if code is None:
        return
    for place in _of_names(vars(value), names, f"{name}.{{}}", code):
        # The numbers and tensors of modules are watched elsewhere.
        if not (isinstance(value, nn.Module) and isinstance(place.held, (*_LEAVES, nn.Module))):
            yield place


def _of_names(
    container: Mapping[str, Any], names: Iterable[str], pattern: str, code: types.CodeType
) -> Iterator[_Place]:
    """Yields the entries that have one of these names."""
    for name in sorted(names):
        if name in container and not _is_of_library(container[name]):
            read = partial(container.get, name)
            yield _Place(read, pattern.format(name), code, container[name])


def _is_of_library(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        return _is_library(value.__name__)
    is_named = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
    return is_named and _is_library(value.__module__)


@cache
def _names(code: types.CodeType) -> frozenset[str]:
    """Returns the names in code: variables, attributes and keys, functions within it included."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    keys = (part for part in code.co_consts if isinstance(part, str))
    return frozenset((*code.co_names, *code.co_freevars, *keys)).union(*inner)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _seen(value: Any) -> Hashable:
    """Returns the identity of a value, or the numbers it holds."""
    if isinstance(value, _PLAIN):
        return value.__class__, value
    if isinstance(value, (list, tuple)) and len(value) <= SHORT:
        return id(value), *[item if isinstance(item, _PLAIN) else id(item) for item in value]
    if isinstance(value, np.ndarray) and value.size <= SHORT:
        return id(value), value.tobytes()
    return id(value)
