"""The folder of a job: what state it is in, and what it holds.

Nothing here needs PyTorch, so that a sweep of finished jobs is passed over at once.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pyro_vae.files.atomic import is_held, strict_json, write_whole
from pyro_vae.files.untrusted import read_json

__all__ = [
    "Failure",
    "failure",
    "metrics",
    "state",
    "write_failure",
]

_State = Literal["finished", "failed", "running", "cut off"]
"""What has become of a job: ``"cut off"`` is one that neither ended nor is at work."""


class Failure(NamedTuple):
    """Why a job failed.

    Attributes:
        reason: One line: the error, or the signal that ended it.
        command: What runs the job alone.
        time: When it failed, in ISO 8601.
        trace: The traceback, as far as there is one.
    """

    reason: str
    command: str
    time: str
    trace: str = ""


def state(folder: Path) -> _State:
    """Returns the state of a job.

    One at work counts as cut off where folders cannot be locked.

    Raises:
        ValueError: If ``metrics.json`` or ``failure.json`` is damaged.
    """
    if failure(folder) is not None:
        return "failed"
    if metrics(folder) is not None and (folder / "report.html").is_file():
        return "finished"
    return "running" if is_held(folder) else "cut off"


def metrics(folder: Path) -> dict[str, Any] | None:
    """Returns the figures of a run, or ``None`` if they are missing.

    Raises:
        ValueError: If their file is damaged.
    """
    return _read(folder / "metrics.json")


def failure(folder: Path) -> Failure | None:
    """Returns why a job failed, or ``None`` if it did not.

    What other versions add is left out.

    Raises:
        ValueError: If its file is damaged.
    """
    known = _read(folder / "failure.json")
    if known is None:
        return None
    texts = {name: known.get(name, "") for name in Failure._fields}
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    if wrong or not texts["reason"]:
        raise ValueError(
            f"Expected '{folder / 'failure.json'}' to hold text under reason, command, time and "
            f"trace, got something else under {(wrong or ['reason'])[0]}"
        )
    return Failure(**texts)


def write_failure(folder: Path, failed: Failure) -> None:
    """Notes down that a job failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "failure.json", strict_json(failed._asdict()).encode())


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the object in a file of JSON, or ``None`` if the file is missing."""
    try:
        values = read_json(path)
    except ValueError:
        if path.exists() or path.is_symlink():
            raise
        return None
    if not isinstance(values, dict):
        raise ValueError(f"Expected '{path}' to hold an object, got {type(values).__name__}")
    return values
