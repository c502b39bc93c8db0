"""Flattens settings and metrics to names with one value each."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["flatten", "split_metrics"]


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by their dotted names; lists become JSON texts.

    Example:
        >>> flatten({"seed": 0, "vae": {"prior": {"variables": [1, 2]}}})
        {'seed': 0, 'vae.prior.variables': '[1, 2]'}
    """
    return {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in _walk(values)
    }


def split_metrics(metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the numbers of ``metrics.json`` and its texts, each by their dotted names.

    The numbers of a list have their position as last part of the name. Booleans are texts; missing
    values and empty lists are left out.

    Example:
        >>> split_metrics({"elbo": -1.5, "gap": None, "rows": {"test": 12}, "kl": [0.5, 1.0]})
        ({'elbo': -1.5, 'rows.test': 12, 'kl.0': 0.5, 'kl.1': 1.0}, {})
        >>> split_metrics({"kl_closed_form": {"vae.z": True}, "data": "moons"})
        ({}, {'kl_closed_form.vae.z': 'true', 'data': 'moons'})
    """
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    for name, value in _walk(metrics):
        if isinstance(value, list):
            if value and all(map(_is_number, value)):
                numbers |= {f"{name}.{i}": number for i, number in enumerate(value)}
            elif value:
                texts[name] = json.dumps(value)
        elif _is_number(value):
            numbers[name] = value
        elif value is not None:
            texts[name] = value if isinstance(value, str) else json.dumps(value)
    return numbers, texts


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _walk(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
