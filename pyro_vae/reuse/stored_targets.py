"""The functions that the stored configuration of a run's data calls."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vae import data
from pyro_vae.vae.allow import NotAllowedError, check_allow
from pyro_vae.validation import list_names

__all__ = ["add_targets", "check_targets"]


def check_targets(node: Mapping[str, Any], folder: Path, allow: Sequence[str]) -> None:
    """Raises a ``ValueError`` unless a stored configuration calls only allowed names.

    Data sets of this package are allowed at the top level, names from the user at any level.

    Arguments:
        node: The configuration of the data.
        folder: The folder of the run.
        allow: The names from the user.
    """
    names = _find_foreign(node, folder, allow)
    if names:
        raise NotAllowedError(f"Expected {_describe(folder, names)}", names, allow)


def add_targets(
    error: NotAllowedError, node: Mapping[str, Any] | None, folder: Path, allow: Sequence[str]
) -> NotAllowedError:
    """Returns the error of a run's parts, with the names that its data need, if they are built."""
    names = [] if node is None else _find_foreign(node, folder, allow)
    fault = f"{error.fault}, and {_describe(folder, names)}" if names else error.fault
    return NotAllowedError(fault, [*error.missing, *names], allow)


def _describe(folder: Path, names: Sequence[Any]) -> str:
    shown = list_names([f"{name!s:.100}" for name in names])
    return f"the data of '{folder}' to be built by pyro_vae.data, got {shown}"


def _find_foreign(node: Mapping[str, Any], folder: Path, allow: Sequence[str]) -> list[Any]:
    allowed = check_allow(allow)
    data_sets = {name for name in data.__all__ if inspect.isfunction(getattr(data, name))}
    if not isinstance(node.get("_target_"), str):
        raise ValueError(f"Expected the data of '{folder}' to have a _target_, got none")
    here = {f"pyro_vae.data.{name}" for name in data_sets} | allowed
    return list(_iterate_foreign(node, here, allowed, folder))


def _iterate_foreign(
    node: Any, here: Collection[str], below: Collection[str], folder: Path
) -> Iterator[Any]:
    """Yields the targets that are not allowed here, or not allowed below."""
    for key in node if isinstance(node, dict) else ():
        value = node[key]
        if key == "_target_" and not (isinstance(value, str) and value in here):
            yield value
        if (key != "_target_" and key.startswith("_") and key.endswith("_")) or value == "???":
            raise ValueError(
                f"Expected the data of '{folder}' to have plain settings, got {key}={value!r:.50}"
            )
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _iterate_foreign(child, below, below, folder)
