"""Which settings differ between runs, what they are called, and their levels."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_vae.compare.runs import Run
from pyro_vae.sweeps.job_id import UNRELATED

__all__ = ["ABSENT", "Factor", "factors", "number", "tied"]

ABSENT = "-"
"""The level of a run that lacks a setting."""

_Table = dict[str, str]
"""The settings of a run: dotted paths with their values as text."""

_LONGEST = 200
"""The longest name of a level; that of a longer value ends in a hash of it."""

_CLASS = "class "
"""What marks a value as the path of a class."""

_MARKS = ("_partial_", "_convert_", "_recursive_")


@dataclass(frozen=True)
class Factor:
    """A setting that differs between runs.

    Attributes:
        key: Its dotted path; for the choice of a class, the path without ``_target_``.
        name: The shortest end of the path that means no other setting.
        levels: Its levels: numbers by size, others in the order in which they appear.
        of: The level of each run, in the order of the runs.
    """

    key: str
    name: str
    levels: tuple[str, ...]
    of: tuple[str, ...]


def factors(runs: Sequence[Run]) -> list[Factor]:
    """Returns the settings in which runs differ, in the order of their configurations.

    Settings that change no result are no factors, nor is an argument that only some levels of a
    class have and that is constant given the class: it is implied by that level. Runs whose
    configuration cannot be read have no level of anything.

    Arguments:
        runs: The runs.
    """
    tables = [_settings(run.config) for run in runs]
    known = [table for run, table in zip(runs, tables, strict=True) if run.config]
    keys = [key for key in _ordered(known) if len({t.get(key, ABSENT) for t in known}) > 1]
    keys = [key for key in keys if not _hollow(key, keys, known)]
    keys = [key for key in keys if not _implied(key, keys, known)]
    names = short(_ordered(known))
    return [factor(key, names[key], tables, known) for key in keys]


def factor(key: str, name: str, tables: Sequence[_Table], known: Sequence[_Table]) -> Factor:
    """Returns one factor, with short names for its levels.

    Arguments:
        key: Its path.
        name: Its name.
        tables: The settings of all runs.
        known: Those of the runs whose configuration could be read.
    """
    classes = [t[key].removeprefix(_CLASS) for t in known if t.get(key, "").startswith(_CLASS)]
    names = {f"{_CLASS}{path}": name for path, name in short(classes).items()}
    of = tuple(names.get(level, level) for level in (table.get(key, ABSENT) for table in tables))
    there = [level for level, table in zip(of, tables, strict=True) if table]
    return Factor(key, name, _sort(there), of)


def tied(factor: Factor, others: Sequence[Factor]) -> list[Factor]:
    """Returns the arguments that differ from one level of a class to another, and not within one.

    Such an argument changes together with the class: the learning rate of two optimizers.

    Arguments:
        factor: The choice of the class.
        others: All factors.
    """
    inside = [other for other in others if other.key.startswith(f"{factor.key}.")]
    return [o for o in inside if len(set(zip(factor.of, o.of, strict=True))) == len(set(factor.of))]


def _settings(config: Mapping[str, Any]) -> _Table:
    """Returns what decides a result: dotted paths with their values as text."""
    values: _Table = {}
    for key, value in _flat(config):
        room, _, last = key.rpartition(".")
        if last in _MARKS or any(key == u or key.startswith(f"{u}.") for u in UNRELATED):
            continue
        if last == "_target_":
            values[room] = f"{_CLASS}{value}"
        else:
            values[key] = text(value)
    return values


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested mappings with their dotted paths."""
    for key, value in values.items():
        path = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, value


def text(value: Any) -> str:
    """Returns a value as a level's name: 1 and 1.0 are one level."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.12g}"
    name = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{name[: _LONGEST - 20]}... ({digest[:8]})"


def _ordered(tables: Sequence[_Table]) -> list[str]:
    """Returns all keys, each once."""
    return list(dict.fromkeys(key for table in tables for key in table))


def _hollow(key: str, keys: Sequence[str], tables: Sequence[_Table]) -> bool:
    """Tells whether a setting is null wherever it is no mapping, so that its keys say it all."""
    inside = any(other.startswith(f"{key}.") for other in keys)
    return inside and {table.get(key, ABSENT) for table in tables} <= {"null", ABSENT}


def _implied(key: str, keys: Sequence[str], tables: Sequence[_Table]) -> bool:
    """Tells whether an argument follows from a class that varies, and is only some classes'."""
    if all(key in table for table in tables):
        return False
    return any(_follows(key, room, tables) for room in keys if key.startswith(f"{room}."))


def _follows(key: str, room: str, tables: Sequence[_Table]) -> bool:
    """Tells whether the level of one setting decides that of another."""
    seen: dict[str, str] = {}
    return all(
        seen.setdefault(table.get(room, ABSENT), level) == level
        for table in tables
        for level in [table.get(key, ABSENT)]
    )


def short(keys: Sequence[str]) -> dict[str, str]:
    """Returns for each path its shortest end that is no end of another, or the whole path.

    Example:
        >>> short(["vae.prior", "vae.encoder.hidden", "vae.decoder.hidden"])["vae.encoder.hidden"]
        'encoder.hidden'
    """
    uses = Counter(end for key in set(keys) for end in _ends(key))
    return {key: next((end for end in _ends(key) if uses[end] == 1), key) for key in keys}


def _ends(key: str) -> list[str]:
    """Returns the ends of a dotted path, the shortest first."""
    parts = key.split(".")
    return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]


def _sort(levels: Iterable[str]) -> tuple[str, ...]:
    """Returns each level once: numbers by size, then others in the order in which they appear."""
    once = list(dict.fromkeys(levels))
    return tuple(sorted(once, key=lambda level: (0, float(level)) if number(level) else (1, 0.0)))


def number(level: str) -> bool:
    """Tells whether a level is a number."""
    return re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", level) is not None
