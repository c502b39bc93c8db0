"""Checks of a run's files: the fields that the comparison uses, their types and sizes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["check_config", "check_metrics", "flatten_settings"]

_LARGEST = 1e100
"""The largest size of a metric: squares of larger ones overflow."""

_MOST = 500
"""The largest number of settings or metrics of a run."""

_LONGEST = 500
"""The longest dotted path of a setting, and the longest name of a class or a metric."""


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_Kind = tuple[str, Callable[[Any], bool]]

_NUMBER: _Kind = ("a number between -1e100 and 1e100", _is_number)
_TEXT: _Kind = ("text", _is_text)
_BOOLEAN: _Kind = ("true or false", _is_boolean)
_COUNTS: _Kind = ("numbers by name", _are_counts)
_NAMES: _Kind = ("a list of names", _are_names)

_METRICS: dict[str, _Kind] = {
    "log_evidence": _NUMBER,
    "elbo": _NUMBER,
    "rate": _NUMBER,
    "distortion": _NUMBER,
    "active_units": _NUMBER,
    "seconds": _NUMBER,
    "latent_dim": _NUMBER,
    "effective_sample_size_min": _NUMBER,
    "log_evidence_rows": _NUMBER,
    "log_evidence_particles": _NUMBER,
    "mixture_log_evidence": _NUMBER,
    "parameters": _NUMBER,
    "epochs": _NUMBER,
    "data": _TEXT,
    "binarize": _TEXT,
    "grey_scale": _BOOLEAN,
    "measure": _TEXT,
    "conditional_on": _NAMES,
    "rows": _COUNTS,
}
"""The metrics that are compared or shown. Each may be missing or null."""


def check_metrics(metrics: Mapping[str, Any], path: Path) -> None:
    """Raises a ``ValueError`` that names the file and the metric if one has the wrong type.

    Arguments:
        metrics: The content of a ``metrics.json``.
        path: The file.
    """
    if len(metrics) > _MOST:
        raise ValueError(f"Expected '{path}' to hold at most {_MOST} metrics, got {len(metrics)}")
    _check_lengths(metrics, path)
    for name, (kind, fits) in _METRICS.items():
        value = metrics.get(name)
        if value is not None and not fits(value):
            raise ValueError(f"Expected {name} in '{path}' to be {kind}, got {_abbreviate(value)}")


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raises a ``ValueError`` that names the file for settings that cannot be compared.

    Arguments:
        config: The content of a ``config.yaml``.
        path: The file.
    """
    seed = config.get("seed")
    if isinstance(seed, (dict, list)):
        raise ValueError(f"Expected seed in '{path}' to be a number, got {_abbreviate(seed)}")
    for count, (name, value) in enumerate(flatten_settings(config), start=1):
        if count > _MOST:
            raise ValueError(f"Expected '{path}' to hold at most {_MOST} settings, got more")
        is_class = name.endswith("_target_")
        if is_class and not isinstance(value, str):
            raise ValueError(
                f"Expected {name:.60} in '{path}' to be text, got {_abbreviate(value)}"
            )
        _check_lengths([name, value] if is_class else [name], path)


def flatten_settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted path and the value of each setting, in the order of the file."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_lengths(names: Iterable[str], path: Path) -> None:
    for name in names:
        if len(name) > _LONGEST:
            raise ValueError(
                f"Expected names in '{path}' of at most {_LONGEST} characters, "
                f"got {_abbreviate(name)}"
            )


def _abbreviate(value: Any) -> str:
    return f"{value!r:.60}"
