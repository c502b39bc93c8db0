"""The folder of a job: what state it is in, and what it holds.

Nothing here needs PyTorch, so that a sweep of finished jobs is passed over at once.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pyro_vae.files import is_held, strict_json, write_whole

__all__ = ["Failure", "State", "failure", "metrics", "state", "write_failure"]

State = Literal["finished", "failed", "running", "cut off"]
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


def state(folder: Path) -> State:
    """Returns what has become of a job.

    One at work counts as cut off where folders cannot be locked.
    """
    if failure(folder) is not None:
        return "failed"
    if metrics(folder) is not None and (folder / "report.html").is_file():
        return "finished"
    return "running" if is_held(folder) else "cut off"


def metrics(folder: Path) -> dict[str, Any] | None:
    """Returns the figures of a run, or ``None`` if there are none."""
    return read(folder / "metrics.json")


def failure(folder: Path) -> Failure | None:
    """Returns why a job failed, or ``None`` if it did not."""
    known = read(folder / "failure.json")
    return None if known is None else Failure(**known)


def write_failure(folder: Path, failed: Failure) -> None:
    """Notes down that a job failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "failure.json", strict_json(failed._asdict()).encode())


def read(path: Path) -> dict[str, Any] | None:
    """Returns what a file of JSON holds, or ``None`` if there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
