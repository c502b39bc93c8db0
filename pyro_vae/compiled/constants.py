"""Numbers and tensors that a user's functions read from elsewhere than their arguments."""

import dis
import sys
import types
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from inspect import getattr_static
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from pyro_vae.compiled.environment import is_in_key

__all__ = ["Constants"]

_LIBRARIES = {
    "PIL", "hydra", "matplotlib", "numpy", "omegaconf", "pandas", "pyarrow", "pyro", "pyro_vae",
    "scipy", "sklearn", "torch", "torchvision", "zuko",
}  # fmt: skip
"""Packages whose functions and objects hold no number of the user's."""

_STANDARD = set(sys.stdlib_module_names) - {"__main__"}
"""Modules whose functions do not, but whose objects may."""

MOST = 256
"""How many places are watched; each costs a step about 0.2 us."""

_OBJECTS = 4096
"""Into how many objects the search looks."""

_SHORT = 64
"""Up to how many entries of lists and arrays are watched."""

_PLAIN = (Number, str, bytes)
_EXACT = {bool, int, float, complex, str, bytes, np.float32, np.float64, np.int64}
_LEAVES = (*_PLAIN, type(None), Tensor, np.ndarray)

_CONTAINERS = {list, tuple, dict, set, deque}

_Read = Callable[[], Any]


class Constants:
    """The numbers and tensors that functions read from closures, globals and plain objects.

    Watched are variables of closures and modules that the code of a function names, defaults of
    its arguments, entries of short lists and dictionaries, and attributes of objects and classes
    that the code of any of the functions names. The numbers that modules have as attributes are
    watched by ``Surroundings``.

    Arguments:
        roots: Functions, methods, modules, and objects that the functions are called with.

    Attributes:
        modules: The modules that the functions reach.
        tensors: The tensors.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        search = _search(list(roots))
        self.places = list(search.places.values())[:MOST]
        self.reads = [place.read for place in self.places]
        self.values = self.current()
        self.codes = list(search.codes)
        self.modules = [thing for thing in search.met.values() if isinstance(thing, nn.Module)]
        self.tensors = [p.held for p in search.places.values() if isinstance(p.held, Tensor)]

    def current(self) -> list[Hashable]:
        """Returns the present values of the places; short, since every step waits for it."""
        return [_seen(read()) for read in self.reads]

    def changed(self) -> str | None:
        """Describes the first place whose value has changed, if there is one."""
        pairs = zip(self.places, self.values, self.current(), strict=True)
        return next((p.described(self.codes) for p, old, new in pairs if old != new), None)


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
    code: types.CodeType | None
    held: Any

    def described(self, codes: Iterable[types.CodeType]) -> str:
        """Returns the name, and the line that reads it if one of these codes has it."""
        own = [] if self.code is None else [self.code]
        last = self.name.rsplit(".", 1)[-1].split("[", 1)[0]
        lines = ((code, _line(code, last)) for code in (*own, *codes))
        found = [(code, line) for code, line in lines if line]
        found += [(code, code.co_firstlineno) for code in own]
        if not found:
            return self.name
        code, line = found[0]
        return f"{self.name} ({Path(code.co_filename).name}, line {line})"


def _line(code: types.CodeType, name: str) -> int | None:
    """Returns the first line of code that has a name."""
    for i in dis.get_instructions(code):
        line = i.positions.lineno if sys.version_info >= (3, 11) and i.positions else i.starts_line
        if i.argval == name and line:
            return line
    return None


class _Object(NamedTuple):
    """An object to look into: its name in the code that leads to it."""

    value: Any
    name: str
    code: types.CodeType | None


def _is_library(module: str | None) -> bool:
    return module is None or module.split(".")[0] in _LIBRARIES | _STANDARD


def _is_library_class(kind: type) -> bool:
    return kind.__module__.split(".")[0] in _LIBRARIES


def _search(roots: list[Any]) -> "_Search":
    """Returns the search that knows all names in the code of the functions it reaches."""
    search = _Search(frozenset())
    while True:
        search.run(roots)
        names = search.names.union(*map(_names, search.codes))
        if names == search.names:
            return search
        search = _Search(names)


class _Search:
    """A search for the places that functions read.

    Arguments:
        names: The names of attributes to look for.

    Attributes:
        places: The places, the nearest first.
        met: The objects that were looked into.
        codes: The code of the functions among them.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.places: dict[Hashable, _Place] = {}
        self.met: dict[int, Any] = {}
        self.codes: dict[types.CodeType, None] = {}

    def run(self, roots: list[Any]) -> None:
        """Looks into objects, and into those that they lead to."""
        waiting = deque(_Object(root, type(root).__name__, None) for root in roots)
        while waiting and len(self.places) < MOST and len(self.met) < _OBJECTS:
            thing = waiting.popleft()
            if id(thing.value) in self.met:
                continue
            self.met[id(thing.value)] = thing.value
            for member in self._members(thing):
                if isinstance(member, _Object):
                    waiting.append(member)
                    continue
                self.places.setdefault((id(thing.value), member.name), member)
                waiting.extend(_within(member))

    def _members(self, thing: _Object) -> Iterator[_Place | _Object]:
        """Yields the places within an object, and the objects to look into next."""
        value, name, code = thing
        if isinstance(value, partial):
            yield from _values_of(value.args, name, code)
            yield from _values_of(value.keywords, name, code)
            yield _Object(value.func, name, code)
        elif isinstance(value, types.MethodType):
            yield _Object(value.__func__, name, None)
            yield _Object(value.__self__, "self", value.__func__.__code__)
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, types.ModuleType):
            yield from _of_names(vars(value), self.names, f"{name}.{{}}", code)
        elif isinstance(value, (Mapping, list, tuple, deque)):
            if len(value) <= _SHORT:
                yield from _values_of(value, name, code)
            elif isinstance(value, Mapping):
                yield from _of_names(value, self.names, f"{name}[{{!r}}]", code)
        elif not _is_library_class(value if isinstance(value, type) else type(value)):
            yield from self._of_object(value, name, code)

    def _of_function(self, function: types.FunctionType) -> Iterator[_Place | _Object]:
        """Yields variables of the closure and of the module, and defaults of arguments."""
        if _is_library(function.__module__):
            if hasattr(function, "__wrapped__"):
                yield _Object(function.__wrapped__, function.__name__, None)
            for cell in function.__closure__ or ():
                if callable(held := _content(cell)):
                    yield _Object(held, function.__name__, None)
            return
        code = function.__code__
        self.codes[code] = None
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            yield _Place(partial(_content, cell), name, code, _content(cell))
        yield from _of_names(function.__globals__, _names(code), "{}", code)
        for name in ("__defaults__", "__kwdefaults__"):
            if held := getattr(function, name):
                yield _Place(partial(getattr, function, name), name, code, held)

    def _of_object(
        self, value: Any, name: str, code: types.CodeType | None
    ) -> Iterator[_Place | _Object]:
        """Yields the attributes that code names, and the functions of the class."""
        kind = value if isinstance(value, type) else type(value)
        # All functions of something that is called may run, and so may operators.
        whole = isinstance(value, nn.Module) or (callable(value) and value is not kind)
        for key, function in _functions(kind):
            if key in self.names or (key != "__init__" and (whole or key.startswith("__"))):
                yield _Object(function, key, None)
        for key in sorted(self.names):
            held, own = getattr_static(value, key, None), key in getattr(value, "__dict__", ())
            if isinstance(held, types.MemberDescriptorType):
                held, own = getattr(value, key, None), True
            if held is None or _is_of_library(held) or (hasattr(held, "__get__") and not own):
                continue
            if not (own and isinstance(value, nn.Module) and is_in_key(held)):
                yield _Place(partial(getattr, value, key, None), f"{name}.{key}", code, held)


def _within(place: _Place) -> Iterator[_Object]:
    """Yields the object to look into that a place holds."""
    if not isinstance(place.held, _LEAVES):
        yield _Object(place.held, place.name, place.code)


def _values_of(
    container: Mapping[Any, Any] | Sequence[Any], name: str, code: types.CodeType | None
) -> Iterator[_Place]:
    """Yields the entries of a container."""
    keys = container if isinstance(container, Mapping) else range(len(container))
    for key in keys:
        yield _Place(partial(_entry, container, key), f"{name}[{key!r}]", code, container[key])


def _functions(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """Yields the functions that the user wrote in a class, those of properties included."""
    for base in kind.__mro__:
        if _is_library(base.__module__):
            continue
        for key, member in vars(base).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType):
                yield key, function


def _of_names(
    container: Mapping[str, Any], names: Iterable[str], pattern: str, code: types.CodeType | None
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


def _entry(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except LookupError:
        return None


def _seen(value: Any) -> Hashable:
    """Returns the identity of a value, or the numbers it holds."""
    kind = value.__class__
    if kind in _EXACT or isinstance(value, _PLAIN):
        return kind, value
    if kind in _CONTAINERS:
        return id(value), len(value)
    if kind is np.ndarray and value.size <= _SHORT:
        return id(value), value.tobytes()
    return id(value)
