"""Reads the state, metrics and failure of a job from its folder.

Nothing here needs PyTorch, so a sweep skips finished jobs at once.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pyro_vae.files.atomic import is_held, strict_json, write_whole
from pyro_vae.files.untrusted import read_json

__all__ = [
    "PRUNED",
    "Failure",
    "read_failure",
    "read_metrics",
    "read_state",
    "write_failure",
]

_State = Literal["finished", "failed", "pruned", "running", "interrupted"]
"""The state of a job; ``"interrupted"`` if it neither ended nor is running."""

PRUNED = "pruned.json"
"""The file of a job that a search ended early."""


class Failure(NamedTuple):
    """Why a job failed.

    Attributes:
        reason: One line: the error, or the signal that ended it.
        command: The command that runs the job alone.
        time: The time of the failure, in ISO 8601.
        trace: The traceback, if any.
    """

    reason: str
    command: str
    time: str
    trace: str = ""


def read_state(folder: Path) -> _State:
    """Returns the state of a job.

    A running job counts as interrupted if folders cannot be locked.

    Raises:
        ValueError: If ``metrics.json`` or ``failure.json`` is damaged.
    """
    if read_failure(folder) is not None:
        return "failed"
    if read_metrics(folder) is not None and (folder / "report.html").is_file():
        return "finished"
    if is_held(folder):
        return "running"
    return "pruned" if (folder / PRUNED).is_file() else "interrupted"


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Reads the metrics of a run; ``None`` if they are missing.

    Raises:
        ValueError: If ``metrics.json`` is damaged.
    """
    return _read_object(folder / "metrics.json")


def read_failure(folder: Path) -> Failure | None:
    """Reads the failure of a job; ``None`` if it did not fail.

    Keys added by other versions are ignored.

    Raises:
        ValueError: If ``failure.json`` is damaged.
    """
    values = _read_object(folder / "failure.json")
    if values is None:
        return None
    texts = {name: values.get(name, "") for name in Failure._fields}
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    if wrong or not texts["reason"]:
        raise ValueError(
            f"Expected '{folder / 'failure.json'}' to hold text under reason, command, time and "
            f"trace, got something else under {(wrong or ['reason'])[0]}"
        )
    return Failure(**texts)


def write_failure(folder: Path, failure: Failure) -> None:
    """Writes the failure of a job to its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "failure.json", strict_json(failure._asdict()).encode())


def _read_object(path: Path) -> dict[str, Any] | None:
    """Reads the object in a JSON file; ``None`` if the file is missing."""
    try:
        values = read_json(path)
    except ValueError:
        if path.exists() or path.is_symlink():
            raise
        return None
    if not isinstance(values, dict):
        raise ValueError(f"Expected '{path}' to hold an object, got {type(values).__name__}")
    return values
