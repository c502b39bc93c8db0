"""What a command's jobs came to, told while it runs and at its end."""

import json
import logging
import os
import shlex
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from pyro_vae.console.commands import explain
from pyro_vae.sweeps import job_status

__all__ = ["Entry", "Journal", "close", "forget", "note", "owner", "remove_unused"]

log = logging.getLogger(__name__)

VARIABLE = "PYRO_VAE_JOURNAL"
"""The environment variable that names the journal, for the processes that a launcher starts."""


_NOTED: list["Entry"] = []
"""The entries of this process, in case the file cannot be written."""


_CREATED: list[Path] = []
"""The folders that Hydra creates for this command, the innermost first."""


class Entry(NamedTuple):
    """What is known of a job.

    Attributes:
        folder: Its folder.
        overrides: What makes it differ from the default.
        outcome: ``"started"``, ``"finished"``, ``"passed over"`` (it was finished before),
            ``"failed"`` or ``"elsewhere"`` (another process is at it).
        reason: Why it failed.
        command: What runs it alone.
    """

    folder: str
    overrides: str
    outcome: str
    reason: str = ""
    command: str = ""


class Journal(Callback):
    """Hydra's callback that says at the start of a sweep where its journal is."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Notes the folders that Hydra creates for a run, which may go elsewhere."""
        _note_created(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Tells all processes of the sweep."""
        file = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}.jsonl"
        path = Path(config.hydra.sweep.dir).absolute() / ".journal" / file
        os.environ[VARIABLE] = str(path)
        _note_created(path.parent.parent)


def _note_created(folder: Path) -> None:
    _CREATED[:] = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def remove_unused() -> None:
    """Removes the folders that Hydra created for a command if nothing was written to them."""
    for place in _CREATED:
        with suppress(OSError):
            if [path.name for path in place.iterdir()] == ["multirun.yaml"]:
                (place / "multirun.yaml").unlink()
            place.rmdir()
    _CREATED.clear()


def note(entry: Entry) -> None:
    """Adds a line to the journal of this sweep; several processes may at once."""
    if VARIABLE not in os.environ:
        return
    _NOTED.append(entry)
    path = Path(os.environ[VARIABLE])
    # Begins a line too, because the one before may have been cut off by a full disk.
    line = f"\n{json.dumps(entry._asdict())}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending is not torn by those of other processes.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("the journal of the sweep cannot be written: %s", explain(error))


def owner() -> int:
    """Returns the number of the process that the sweep was started by, or 0 if it is not known."""
    return int(Path(os.environ.get(VARIABLE, "_0")).stem.rpartition("_")[2])


def close(code: int) -> int:
    """Tells at the end of a sweep what became of its jobs, and returns the exit code.

    Jobs that another process was at are waited for.

    Arguments:
        code: The exit code so far.
    """
    path = Path(os.environ.pop(VARIABLE, ""))
    known = {entry.folder: entry for entry in _read(path)}
    known |= {entry.folder: entry for entry in _NOTED}
    _NOTED.clear()
    if not known and not code and path.name:
        raise ValueError("Expected a sweep of one job or more, got none: a list of values is empty")
    if not known:
        return code
    entries = [_settle(entry) for entry in known.values()]
    print(_told(entries, path.parent.parent, code), flush=True)
    return code or int(any(entry.outcome == "failed" for entry in entries))


def forget() -> None:
    """Leaves the jobs of an interrupted sweep unmentioned."""
    os.environ.pop(VARIABLE, None)
    _NOTED.clear()


def _read(path: Path) -> list[Entry]:
    """Returns the last word on each job; lines that a full disk cut off are left out."""
    entries = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = Entry(**json.loads(line))
        except (TypeError, ValueError):
            continue
        entries[entry.folder] = entry
    return list(entries.values())


def _settle(entry: Entry) -> Entry:
    """Returns what became of a job that had not ended under this command."""
    if entry.outcome not in ("elsewhere", "started"):
        return entry
    place = Path(entry.folder)
    try:
        outcome, reason = _outcome(place)
    except ValueError as error:
        outcome, reason = "failed", str(error)
    return entry._replace(outcome=outcome, reason=reason)


def _outcome(place: Path) -> tuple[str, str]:
    """Returns the outcome of a job, once no process works on it, and why if it failed."""
    if job_status.state(place) == "running":
        print(f"waiting for {place.name}, which another process is at")
    while (now := job_status.state(place)) == "running":
        time.sleep(0.5)
    if now == "finished":
        return "finished", ""
    failed = job_status.failure(place)
    return "failed", failed.reason if failed else "its process ended before it did"


def _told(entries: list[Entry], sweep: Path, code: int) -> str:
    """Returns what a terminal shows at the end of a sweep."""
    numbers = Counter(entry.outcome for entry in entries)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in numbers.items())
    lines = ["", f"{len(entries)} jobs in {sweep}: {counts}"]
    for entry in entries:
        if entry.outcome == "failed":
            lines += [
                "",
                f"failed  {entry.overrides}",
                f"  why   {entry.reason}",
                *(f"  log   {log}" for log in [Path(entry.folder) / "job.log"] if log.is_file()),
                f"  alone {entry.command}",
            ]
    if code and not numbers["failed"]:
        lines += ["", "The sweep ended early, and jobs may be missing."]
    if code or numbers["failed"]:
        lines += ["", "The same command again runs what failed or is missing, and nothing else."]
    return "\n".join([*lines, f"To compare them: pyro-vae-compare {shlex.quote(str(sweep))}"])
