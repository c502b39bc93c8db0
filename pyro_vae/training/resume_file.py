"""The file with the state of a training, which contains no code."""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.sparse_rows import is_sparse
from pyro_vae.files.atomic import write_whole
from pyro_vae.files.untrusted import read_bytes

__all__ = [
    "add_up",
    "build_fingerprint",
    "find_change",
    "load_state",
    "save_state",
]


_MOST_THREADS = 4096

_STATE = b"pyro_vae state 2 "

_DIGITS = 64
"""The length of a SHA-256 checksum, in hexadecimal digits."""

STATE_KEYS: dict[str, type | tuple[type, ...]] = {
    "weights": dict,
    "optimizer": dict,
    "lr_schedule": (dict, type(None)),
    "order": Tensor,
    "noise": Tensor,
    "steps": int,
    "fingerprint": dict,
    "kept": dict,
    "epoch": int,
    "seconds": (int, float),
    "best": (int, float),
    "best_epoch": int,
    "history": list,
    "threads": int,
}
"""The required keys of the state of a training, with their types."""


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes the state of a training with a checksum, readable with ``weights_only=True``."""
    inner = io.BytesIO()
    torch.save(state, inner)
    content = inner.getvalue()
    write_whole(path, _STATE + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a file of :func:`save_state`, with tensors on the CPU.

    Raises:
        ValueError: If the file is damaged, has another format, or would run code.
    """
    content = read_bytes(path)
    try:
        checksum, content = _split_checksum(content)
        intact = checksum == hashlib.sha256(content).hexdigest()
        state = _load_plain(content) if intact else {}
    except Exception as error:
        raise ValueError(
            f"Expected the state of a training in {path}, got a damaged or foreign file "
            f"({type(error).__name__})"
        ) from None
    if not intact:
        raise ValueError(f"Expected {path} to match its checksum: the file is damaged")
    return _check_state(state, path)


def _split_checksum(content: bytes) -> tuple[str, bytes]:
    """Returns the checksum in a file and the bytes that it covers."""
    if content.startswith(_STATE):
        start = len(_STATE) + _DIGITS
        if content[start : start + 1] != b"\n":
            raise ValueError("no checksum")
        return content[len(_STATE) : start].decode(), content[start + 1 :]
    # Files of the previous format hold a pickled state inside a pickled dictionary.
    outer = _load_plain(content)
    return outer["sha256"], outer["payload"].numpy().tobytes()


def _load_plain(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _check_state(state: Any, path: Path) -> dict[str, Any]:
    """Returns the state, or raises a ``ValueError`` if it is not that of a training."""
    for key, kind in STATE_KEYS.items():
        value = state.get(key) if isinstance(state, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(
                f"Expected the state of a training in {path}, got {value!r:.50} for its {key}"
            )
    if not 1 <= state["threads"] <= _MOST_THREADS:
        raise ValueError(
            f"Expected the state of a training in {path}, got {state['threads']} threads"
        )
    return state


def build_fingerprint(x: Tensor, **settings: Any) -> dict[str, Any]:
    """Returns the settings and data summary that must match for a training to be resumed."""
    total = add_up(x)
    return {
        "rows": list(x.shape),
        "sum": total if math.isfinite(total) else str(total),
        **settings,
    }


def add_up(x: Tensor) -> float:
    """Returns the sum of all values of a dense or sparse tensor."""
    return (x.values() if is_sparse(x) else x).double().sum().item()


def find_change(saved: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Returns the name and both values of a setting that differs, or ``None`` if all agree.

    Arguments:
        saved: The fingerprint in a file, perhaps of an earlier version.
        own: That of the training to resume.
    """
    for name, value in own.items():
        if name == "content" and name not in saved:
            # Files of earlier versions have only sums of the data.
            continue
        other = saved.get(name)
        if other != value and not (
            name == "recipe" and _drop_later_settings(other) == _drop_later_settings(value)
        ):
            return name, other, value
    return None


def _drop_later_settings(recipe: Any) -> Any:
    """Returns a recipe without the settings that earlier versions lack, if they change nothing."""
    try:
        values = json.loads(recipe)
        parts = values["parts"]
        if (parts.get("input_transform") or {}).get("class") == "pyro_vae.transforms.Identity":
            del parts["input_transform"]
        likelihood = parts.get("likelihood") or {}
        if likelihood.get("arguments", {}).get("standardize") is False:
            del likelihood["arguments"]["standardize"]
    except (AttributeError, KeyError, TypeError, ValueError):
        return recipe
    return values
