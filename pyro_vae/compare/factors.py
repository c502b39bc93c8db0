"""Factors: the settings that differ between runs, with their names and levels."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyro_vae.compare.fields import flatten_settings
from pyro_vae.compare.runs import RunRecord
from pyro_vae.sweeps.job_id import UNRELATED

__all__ = [
    "ABSENT",
    "Factor",
    "find_factors",
    "format_level",
    "is_numeric",
    "shorten_paths",
]

ABSENT = "-"
"""The level of a run that lacks a setting."""

_Settings = dict[str, str]
"""The settings of a run: dotted paths with their values as text."""

_LONGEST = 200
"""The longest name of a level; the name of a longer value ends in a hash."""

_CLASS = "class "
"""The prefix that marks a value as the path of a class."""

_INSTANTIATION_KEYS = ("_partial_", "_convert_", "_recursive_")


@dataclass(frozen=True)
class Factor:
    """A setting that differs between runs.

    Attributes:
        key: Its dotted path; for the choice of a class, the path without ``_target_``.
        name: The shortest ending of the path that is unique among all settings.
        levels: Its levels: numbers by size, others in the order in which they appear.
        by_run: The level of each run, in the order of the runs.
        folded: For the choice of a class, the settings below it that follow from it.
    """

    key: str
    name: str
    levels: tuple[str, ...]
    by_run: tuple[str, ...]
    folded: tuple["Factor", ...] = ()

    def levels_of(self, runs: Iterable[int]) -> list[str]:
        """Returns the levels of some runs, in the order of all levels.

        Arguments:
            runs: The runs, as positions in the list of all.
        """
        present = {self.by_run[index] for index in runs}
        return [level for level in self.levels if level in present]

    def implied(self, level: str) -> dict[str, str]:
        """Returns the folded settings of a level, by their paths below the factor.

        A setting is left out unless two levels have different values of it. Arguments of a single
        class need no mention.
        """
        if level not in self.by_run:
            return {}
        position = self.by_run.index(level)
        shared = [one for one in self.folded if len({*one.levels} - {ABSENT}) > 1]
        values = {one.key.removeprefix(f"{self.key}."): one.by_run[position] for one in shared}
        return {name: value for name, value in values.items() if value != ABSENT}


def find_factors(runs: Sequence[RunRecord]) -> list[Factor]:
    """Returns the settings in which runs differ, in the order of their configurations.

    Settings that do not change a result are left out. A setting that follows from the choice of a
    class is folded into that factor: its path is below that of the class, and no two runs of the
    same class have different values of it. A run without the setting counts as another value. If
    several classes determine a setting, it is folded into the outermost one.

    Runs with an unreadable configuration have no level of any factor.

    Arguments:
        runs: The runs.
    """
    settings = [_read_settings(run.config) for run in runs]
    readable = [one for run, one in zip(runs, settings, strict=True) if run.config]
    paths = list(dict.fromkeys(key for one in readable for key in one))
    keys = [key for key in paths if len({one.get(key, ABSENT) for one in readable}) > 1]
    keys = [key for key in keys if not _is_redundant_null(key, keys, readable)]
    names = shorten_paths(paths)
    factors = {key: _build_factor(key, names[key], settings, readable) for key in keys}
    classes = {key: _find_class(key, keys, readable) for key in keys}
    return [
        replace(factor, folded=tuple(factors[other] for other in keys if classes[other] == key))
        for key, factor in factors.items()
        if not classes[key]
    ]


def _build_factor(
    key: str, name: str, settings: Sequence[_Settings], readable: Sequence[_Settings]
) -> Factor:
    """Returns one factor, with short names for its levels.

    Arguments:
        key: Its path.
        name: Its name.
        settings: The settings of all runs.
        readable: Those of the runs with a readable configuration.
    """
    values = [one.get(key, "") for one in readable]
    classes = [value.removeprefix(_CLASS) for value in values if value.startswith(_CLASS)]
    names = {f"{_CLASS}{path}": name for path, name in shorten_paths(classes).items()}
    by_run = [names.get(level, level) for level in (one.get(key, ABSENT) for one in settings)]
    levels = [level for level, one in zip(by_run, settings, strict=True) if one]
    return Factor(key, name, _sort_levels(levels), tuple(by_run))


def _read_settings(config: Mapping[str, Any]) -> _Settings:
    """Returns the settings that determine a result."""
    settings: _Settings = {}
    for key, value in flatten_settings(config):
        parent, _, last = key.rpartition(".")
        if last in _INSTANTIATION_KEYS:
            continue
        if any(key == path or key.startswith(f"{path}.") for path in UNRELATED):
            continue
        if last == "_target_":
            settings[parent] = f"{_CLASS}{value}"
        else:
            settings[key] = format_level(value)
    return settings


def format_level(value: Any) -> str:
    """Returns the name of a level for a value: 1 and 1.0 give the same name."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.12g}"
    name = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{name[: _LONGEST - 20]}... ({digest[:8]})"


def _is_redundant_null(key: str, keys: Sequence[str], settings: Sequence[_Settings]) -> bool:
    """Whether a setting is either null or a mapping, whose own keys are factors already."""
    has_children = any(other.startswith(f"{key}.") for other in keys)
    return has_children and {one.get(key, ABSENT) for one in settings} <= {"null", ABSENT}


def _find_class(key: str, keys: Sequence[str], settings: Sequence[_Settings]) -> str:
    """Returns the outermost class that determines a setting, or an empty string."""
    parents = sorted((one for one in keys if key.startswith(f"{one}.")), key=len)
    return next((parent for parent in parents if _determines(parent, key, settings)), "")


def _determines(parent: str, key: str, settings: Sequence[_Settings]) -> bool:
    """Whether runs with the same level of one setting have the same level of another."""
    pairs = {(one.get(parent, ABSENT), one.get(key, ABSENT)) for one in settings}
    return len(pairs) == len({level for level, _ in pairs})


def shorten_paths(paths: Sequence[str]) -> dict[str, str]:
    """Returns the shortest unique ending of each path, or the whole path if there is none.

    Example:
        >>> paths = ["vae.prior", "vae.encoder.hidden", "vae.decoder.hidden"]
        >>> shorten_paths(paths)["vae.encoder.hidden"]
        'encoder.hidden'
    """
    counts = Counter(ending for path in set(paths) for ending in _list_endings(path))
    return {
        path: next((ending for ending in _list_endings(path) if counts[ending] == 1), path)
        for path in paths
    }


def _list_endings(path: str) -> list[str]:
    """Returns the endings of a dotted path, the shortest first."""
    parts = path.split(".")
    return [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]


def _sort_levels(levels: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct levels: numbers by size, then others in order of appearance."""
    unique = list(dict.fromkeys(levels))
    return tuple(
        sorted(unique, key=lambda level: (0, float(level)) if is_numeric(level) else (1, 0.0))
    )


def is_numeric(level: str) -> bool:
    """Whether a level is a number."""
    return re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", level) is not None
