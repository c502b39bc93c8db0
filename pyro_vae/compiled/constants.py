"""Numbers and tensors that a user's functions read besides their arguments."""

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
"""Packages whose functions and objects contain no numbers of the user."""

_STANDARD_LIBRARY = set(sys.stdlib_module_names) - {"__main__"}
"""Modules whose objects may contain numbers of the user, but whose functions do not."""

MAX_REFERENCES = 256
"""The largest number of references that are watched; each costs about 0.2 us per step."""

_MAX_OBJECTS = 4096
"""The largest number of objects that are searched."""

_MAX_ENTRIES = 64
"""The largest number of entries for which a list, dictionary or array is watched."""

_PLAIN = (Number, str, bytes)
_EXACT = {bool, int, float, complex, str, bytes, np.float32, np.float64, np.int64}
_LEAVES = (*_PLAIN, type(None), Tensor, np.ndarray)

_CONTAINERS = {list, tuple, dict, set, deque}

_Read = Callable[[], Any]


class Constants:
    """The numbers and tensors that functions read from closures, globals and plain objects.

    The following are watched: variables of closures and modules that the code of a function
    names, defaults of its arguments, entries of short lists and dictionaries, and attributes of
    objects and classes that the code of any function names. Numbers that are attributes of
    modules are part of the key of ``StepEnvironment``.

    Arguments:
        roots: Functions, methods, modules, and objects that the functions are called with.

    Attributes:
        modules: The modules that the functions read.
        tensors: The tensors that the functions read.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        search = _search_references(list(roots))
        self.references = list(search.references.values())[:MAX_REFERENCES]
        self.readers = [reference.read for reference in self.references]
        self.values = self.read_values()
        self.codes = list(search.codes)
        self.modules = [thing for thing in search.visited.values() if isinstance(thing, nn.Module)]
        self.tensors = [p.value for p in search.references.values() if isinstance(p.value, Tensor)]

    def read_values(self) -> list[Hashable]:
        """Returns the current values; kept short because it runs in every step."""
        return [_compute_fingerprint(read()) for read in self.readers]

    def describe_change(self) -> str | None:
        """Returns a description of the first reference whose value has changed, if any."""
        triples = zip(self.references, self.values, self.read_values(), strict=True)
        return next((r.describe(self.codes) for r, old, new in triples if old != new), None)


class _Reference(NamedTuple):
    """A value that the code of a function names.

    Attributes:
        read: Returns the current value.
        name: Its name in the code.
        code: The code.
        value: The value when it was found, kept so that its identity is not reused.
    """

    read: _Read
    name: str
    code: types.CodeType | None
    value: Any

    def describe(self, codes: Iterable[types.CodeType]) -> str:
        """Returns the name, and the line that reads it if one of these codes contains it."""
        own = [] if self.code is None else [self.code]
        last = self.name.rsplit(".", 1)[-1].split("[", 1)[0]
        lines = ((code, _find_line(code, last)) for code in (*own, *codes))
        candidates = [(code, line) for code, line in lines if line]
        candidates += [(code, code.co_firstlineno) for code in own]
        if not candidates:
            return self.name
        code, line = candidates[0]
        return f"{self.name} ({Path(code.co_filename).name}, line {line})"


def _find_line(code: types.CodeType, name: str) -> int | None:
    """Returns the first line of code that contains a name."""
    for i in dis.get_instructions(code):
        line = i.positions.lineno if sys.version_info >= (3, 11) and i.positions else i.starts_line
        if i.argval == name and line:
            return line
    return None


class _Object(NamedTuple):
    """An object to search, with its name in the code that leads to it."""

    value: Any
    name: str
    code: types.CodeType | None


def _is_library(module: str | None) -> bool:
    return module is None or module.split(".")[0] in _LIBRARIES | _STANDARD_LIBRARY


def _is_library_class(kind: type) -> bool:
    return kind.__module__.split(".")[0] in _LIBRARIES


def _search_references(roots: list[Any]) -> "_Search":
    """Repeats a search until it covers all names in the code of the functions that it finds."""
    search = _Search(frozenset())
    while True:
        search.run(roots)
        names = search.names.union(*map(_collect_names, search.codes))
        if names == search.names:
            return search
        search = _Search(names)


class _Search:
    """A breadth-first search for the references in functions.

    Arguments:
        names: The names of attributes to look for.

    Attributes:
        references: The references, the nearest first.
        visited: The objects that were searched, by identity.
        codes: The code of the functions among them.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.references: dict[Hashable, _Reference] = {}
        self.visited: dict[int, Any] = {}
        self.codes: dict[types.CodeType, None] = {}

    def run(self, roots: list[Any]) -> None:
        """Searches objects, and those that they lead to."""
        waiting = deque(_Object(root, type(root).__name__, None) for root in roots)
        while (
            waiting and len(self.references) < MAX_REFERENCES and len(self.visited) < _MAX_OBJECTS
        ):
            current = waiting.popleft()
            if id(current.value) in self.visited:
                continue
            self.visited[id(current.value)] = current.value
            for member in self._find_members(current):
                if isinstance(member, _Object):
                    waiting.append(member)
                    continue
                self.references.setdefault((id(current.value), member.name), member)
                waiting.extend(_find_nested_object(member))

    def _find_members(self, current: _Object) -> Iterator[_Reference | _Object]:
        """Yields the references of an object, and the objects to search next."""
        value, name, code = current
        if isinstance(value, partial):
            yield from _find_entries(value.args, name, code)
            yield from _find_entries(value.keywords, name, code)
            yield _Object(value.func, name, code)
        elif isinstance(value, types.MethodType):
            yield _Object(value.__func__, name, None)
            yield _Object(value.__self__, "self", value.__func__.__code__)
        elif isinstance(value, types.FunctionType):
            yield from self._find_function_members(value)
        elif isinstance(value, types.ModuleType):
            yield from _find_named_entries(vars(value), self.names, f"{name}.{{}}", code)
        elif isinstance(value, (Mapping, list, tuple, deque)):
            if len(value) <= _MAX_ENTRIES:
                yield from _find_entries(value, name, code)
            elif isinstance(value, Mapping):
                yield from _find_named_entries(value, self.names, f"{name}[{{!r}}]", code)
        elif not _is_library_class(value if isinstance(value, type) else type(value)):
            yield from self._find_object_members(value, name, code)

    def _find_function_members(
        self, function: types.FunctionType
    ) -> Iterator[_Reference | _Object]:
        """Yields variables of the closure and of the module, and defaults of arguments."""
        if _is_library(function.__module__):
            if hasattr(function, "__wrapped__"):
                yield _Object(function.__wrapped__, function.__name__, None)
            for cell in function.__closure__ or ():
                if callable(content := _read_variable(cell)):
                    yield _Object(content, function.__name__, None)
            return
        code = function.__code__
        self.codes[code] = None
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            yield _Reference(partial(_read_variable, cell), name, code, _read_variable(cell))
        yield from _find_named_entries(function.__globals__, _collect_names(code), "{}", code)
        for name in ("__defaults__", "__kwdefaults__"):
            if defaults := getattr(function, name):
                yield _Reference(partial(getattr, function, name), name, code, defaults)

    def _find_object_members(
        self, value: Any, name: str, code: types.CodeType | None
    ) -> Iterator[_Reference | _Object]:
        """Yields the attributes that code names, and the functions of the class."""
        kind = value if isinstance(value, type) else type(value)
        # A call may run any function of the object, and an operator any special method.
        may_run_all = isinstance(value, nn.Module) or (callable(value) and value is not kind)
        for key, function in _find_user_functions(kind):
            if key in self.names or (key != "__init__" and (may_run_all or key.startswith("__"))):
                yield _Object(function, key, None)
        for key in sorted(self.names):
            member, is_own = getattr_static(value, key, None), key in getattr(value, "__dict__", ())
            if isinstance(member, types.MemberDescriptorType):
                member, is_own = getattr(value, key, None), True
            if member is None or _is_from_library(member):
                continue
            if hasattr(member, "__get__") and not is_own:
                continue
            if not (is_own and isinstance(value, nn.Module) and is_in_key(member)):
                yield _Reference(partial(getattr, value, key, None), f"{name}.{key}", code, member)


def _find_nested_object(reference: _Reference) -> Iterator[_Object]:
    """Yields the value of a reference if it is an object to search."""
    if not isinstance(reference.value, _LEAVES):
        yield _Object(reference.value, reference.name, reference.code)


def _find_entries(
    container: Mapping[Any, Any] | Sequence[Any], name: str, code: types.CodeType | None
) -> Iterator[_Reference]:
    keys = container if isinstance(container, Mapping) else range(len(container))
    for key in keys:
        yield _Reference(
            partial(_read_entry, container, key), f"{name}[{key!r}]", code, container[key]
        )


def _find_user_functions(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    """Yields the functions that the user wrote in a class, including those of properties."""
    for base in kind.__mro__:
        if _is_library(base.__module__):
            continue
        for key, member in vars(base).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if isinstance(function, types.FunctionType):
                yield key, function


def _find_named_entries(
    container: Mapping[str, Any], names: Iterable[str], pattern: str, code: types.CodeType | None
) -> Iterator[_Reference]:
    """Yields the entries that have one of these names."""
    for name in sorted(names):
        if name in container and not _is_from_library(container[name]):
            read = partial(container.get, name)
            yield _Reference(read, pattern.format(name), code, container[name])


def _is_from_library(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        return _is_library(value.__name__)
    is_named = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
    return is_named and _is_library(value.__module__)


@cache
def _collect_names(code: types.CodeType) -> frozenset[str]:
    """Returns the variables, attributes and keys in code, including nested functions."""
    inner = [_collect_names(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    keys = (part for part in code.co_consts if isinstance(part, str))
    return frozenset((*code.co_names, *code.co_freevars, *keys)).union(*inner)


def _read_variable(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _read_entry(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except LookupError:
        return None


def _compute_fingerprint(value: Any) -> Hashable:
    """Returns the value of a number, string or short array; otherwise the identity."""
    kind = value.__class__
    if kind in _EXACT or isinstance(value, _PLAIN):
        return kind, value
    if kind in _CONTAINERS:
        return id(value), len(value)
    if kind is np.ndarray and value.size <= _MAX_ENTRIES:
        return id(value), value.tobytes()
    return id(value)
