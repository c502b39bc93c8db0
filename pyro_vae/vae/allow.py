"""Classes and functions of other packages, which a file may name only if they are allowed."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pyro_vae.validation import list_names

__all__ = ["NotAllowedError", "check_allow", "check_classes", "find_foreign_classes"]

_PACKAGES = ("priors", "posteriors", "likelihoods", "networks", "transforms")
_MODULE = "pyro_vae.networks.Module"

_MOST = 20
"""The largest number of names that an error proposes to allow."""


class NotAllowedError(ValueError):
    """A file names classes or functions that are not allowed.

    Arguments:
        fault: The expected and the actual names.
        names: The names that are not allowed, which may be no names at all.
        allow: The names that are allowed.
        remedy: How to allow names, with ``{}`` for a list of all of them.

    Attributes:
        names: All names to allow; empty if some of them cannot be allowed.
    """

    def __init__(
        self,
        fault: str,
        names: Sequence[Any],
        allow: Collection[str],
        remedy: str = "if you trust the run, pass allow={}",
    ) -> None:
        self.fault = fault
        self.missing = list(names)
        self.names: list[str] = []
        if len(names) <= _MOST and all(_is_dotted_name(n) and len(n) <= 200 for n in names):
            self.names = list(dict.fromkeys([*sorted(allow), *names]))
        super().__init__(f"{fault}: {remedy.format(self.names)}" if self.names else fault)


def _is_dotted_name(name: Any) -> bool:
    return isinstance(name, str) and all(map(str.isidentifier, name.split(".")))


def check_allow(allow: Sequence[str]) -> frozenset[str]:
    """Returns the allowed names, or raises a ``ValueError`` unless they are dotted names."""
    is_list = isinstance(allow, Collection) and not isinstance(allow, (str, bytes))
    if not is_list or not all(map(_is_dotted_name, allow)):
        raise ValueError(
            f"Expected allow to be a list of dotted names, as in ['my_package.MyPrior'], got "
            f"{allow!r}"
        )
    return frozenset(map(str, allow))


def check_classes(
    recipe: Mapping[str, Any], allow: Collection[str], file: Path | str = "a file"
) -> None:
    """Raises a :class:`NotAllowedError` unless each class is of this package or allowed by name.

    Arguments:
        recipe: A recipe as :func:`pyro_vae.vae.recipe.check_recipe` returns it, with all parts.
        allow: Dotted names of classes of other packages.
        file: The source of the recipe, named in the error.
    """
    foreign = find_foreign_classes(recipe, allow)
    if not foreign:
        return
    names = [name for found in foreign.values() for name in found]
    is_one = len(foreign) == 1
    raise NotAllowedError(
        f"Expected {', '.join(foreign)} to be {'a class' if is_one else 'classes'} of pyro_vae, "
        f"got {list_names([f'{name!s:.100}' for name in names])} in {file}",
        names,
        allow,
        remedy="if you trust the file, load(path, allow={})",
    )


def find_foreign_classes(
    recipe: Mapping[str, Any], allow: Collection[str] = ()
) -> dict[str, list[Any]]:
    """Returns the names that are neither of this package nor allowed, by the role of their part."""
    allowed = _list_package_classes() | set(allow)
    found = {
        role: [name for name in _find_names(part) if not _is_in(name, allowed)]
        for role, part in recipe["parts"].items()
    }
    return {role: names for role, names in found.items() if names}


def _is_in(name: Any, allowed: Collection[str]) -> bool:
    return isinstance(name, str) and name in allowed


def _list_package_classes() -> set[str]:
    return {
        f"pyro_vae.{package}.{member}"
        for package in _PACKAGES
        for member in import_module(f"pyro_vae.{package}").__all__
    }


def _find_names(part: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the name of a part's class, and those that it imports by its arguments.

    A :class:`~pyro_vae.networks.Module` imports its ``path``, which can be that of a class with
    further such arguments.
    """
    name, arguments = part["class"], part["arguments"]
    while True:
        yield name
        if name != _MODULE or not isinstance(arguments, Mapping):
            return
        name, arguments = arguments.get("path"), arguments.get("arguments")
