"""The fields of a run's files that the comparison uses, and their types."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["check_config", "check_metrics"]

LARGEST = 1e100
"""The largest size of a figure: squares of larger ones overflow."""

MOST = 500
"""The largest number of settings or figures of a run."""

LONGEST = 500
"""The longest dotted path of a setting, and the longest name of a class or a figure."""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number, value.values()))


Kind = tuple[str, Callable[[Any], bool]]

NUMBER: Kind = ("a number of a size up to 1e100", _number)
TEXT: Kind = ("text", _text)
FLAG: Kind = ("true or false", _flag)
COUNTS: Kind = ("numbers by name", _counts)

METRICS: dict[str, Kind] = {
    "log_evidence": NUMBER,
    "elbo": NUMBER,
    "rate": NUMBER,
    "distortion": NUMBER,
    "active_units": NUMBER,
    "seconds": NUMBER,
    "latent_dim": NUMBER,
    "effective_sample_size_min": NUMBER,
    "log_evidence_rows": NUMBER,
    "log_evidence_particles": NUMBER,
    "mixture_log_evidence": NUMBER,
    "parameters": NUMBER,
    "epochs": NUMBER,
    "data": TEXT,
    "binarize": TEXT,
    "grey_scale": FLAG,
    "rows": COUNTS,
}
"""The figures that are compared or shown. Each may be missing or null."""


def check_metrics(metrics: Mapping[str, Any], path: Path) -> None:
    """Raises a ``ValueError`` that names the file and the figure unless all have their kind.

    Arguments:
        metrics: The content of a ``metrics.json``.
        path: The file.
    """
    if len(metrics) > MOST:
        raise ValueError(f"Expected '{path}' to hold at most {MOST} figures, got {len(metrics)}")
    _check_lengths(metrics, path)
    for name, (kind, fits) in METRICS.items():
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
        if count > MOST:
            raise ValueError(f"Expected '{path}' to hold at most {MOST} settings, got more")
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
        if len(name) > LONGEST:
            raise ValueError(
                f"Expected names in '{path}' of at most {LONGEST} characters, got {_shown(name)}"
            )


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
