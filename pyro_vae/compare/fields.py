"""The fields of a run's files that the comparison uses, and their types."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["check_config", "check_metrics"]

_LARGEST = 1e100
"""The largest size of a figure: squares of larger ones overflow."""

_MOST = 500
"""The largest number of settings or figures of a run."""

_LONGEST = 500
"""The longest dotted path of a setting, and the longest name of a class or a figure."""


def _number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
    )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values()))


_Kind = tuple[str, Callable[[Any], bool]]

_NUMBER: _Kind = ("a number of a size up to 1e100", _number)
_TEXT: _Kind = ("text", _text)
_FLAG: _Kind = ("true or false", _flag)
_COUNTS: _Kind = ("numbers by name", _counts)

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
    "grey_scale": _FLAG,
    "rows": _COUNTS,
}
"""The figures that are compared or shown. Each may be missing or null."""


def check_metrics(metrics: Mapping[str, Any], path: Path) -> None:
    """Raises a ``ValueError`` that names the file and the figure unless all have their kind.

    Arguments:
        metrics: The content of a ``metrics.json``.
        path: The file.
    """
    if len(metrics) > _MOST:
        raise ValueError(f"Expected '{path}' to hold at most {_MOST} figures, got {len(metrics)}")
    _check_lengths(metrics, path)
    for name, (kind, fits) in _METRICS.items():
        value = metrics.get(name)
        if value is not None and not fits(value):
            raise ValueError(f"Expected {name} in '{path}' to be {kind}, got {_shown(value)}")


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raises a ``ValueError`` that names the file for settings that cannot be compared.

    Arguments:
        config: The content of a ``config.yaml``.
        path: The file.
    """
    seed = config.get("seed")
    if isinstance(seed, (dict, list)):
        raise ValueError(f"Expected seed in '{path}' to be a number, got {_shown(seed)}")
    for count, (name, value) in enumerate(_leaves(config), start=1):
        if count > _MOST:
            raise ValueError(f"Expected '{path}' to hold at most {_MOST} settings, got more")
        is_class = name.endswith("_target_")
        if is_class and not isinstance(value, str):
            raise ValueError(f"Expected {name:.60} in '{path}' to be text, got {_shown(value)}")
        _check_lengths([name, value] if is_class else [name], path)


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _check_lengths(names: Any, path: Path) -> None:
    for name in names:
        if len(name) > _LONGEST:
            raise ValueError(
                f"Expected names in '{path}' of at most {_LONGEST} characters, got {_shown(name)}"
            )


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
