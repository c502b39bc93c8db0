"""The journal of a sweep: records the outcomes of its jobs, and summarizes them at the end."""

import json
import logging
import os
import shlex
import socket
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pyro_vae.console.commands import explain, raise_past_hydra
from pyro_vae.sweeps import job_status
from pyro_vae.trackers.build import check_in_process

__all__ = [
    "Entry",
    "Journal",
    "add_entry",
    "close_journal",
    "discard_journal",
    "find_owner",
    "remove_unused_folders",
    "wait_for_outcome",
]

_log = logging.getLogger(__name__)

VARIABLE = "PYRO_VAE_JOURNAL"
"""The environment variable that names the journal, for the processes that a launcher starts."""


_ENTRIES: list["Entry"] = []
"""The entries of this process, in case the file cannot be written."""


_CREATED: list[Path] = []
"""The folders that Hydra creates for this command, the innermost first."""


class Entry(NamedTuple):
    """The last known outcome of a job.

    Attributes:
        folder: The folder of the job.
        overrides: The overrides of the default configuration.
        outcome: ``"started"``, ``"finished"``, ``"skipped"`` (it was finished before),
            ``"failed"``, ``"pruned"`` or ``"elsewhere"`` (another process runs it).
        reason: The reason of a failure.
        command: The command that runs the job alone.
    """

    folder: str
    overrides: str
    outcome: str
    reason: str = ""
    command: str = ""


class Journal(Callback):
    """Hydra callback that sets the path of the journal at the start of a sweep."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Records the folders that Hydra creates for a run, which may write elsewhere."""
        _record_created(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Sets the environment variable that all processes of the sweep inherit."""
        file = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{os.getpid()}.jsonl"
        path = Path(config.hydra.sweep.dir).absolute() / ".journal" / file
        os.environ[VARIABLE] = str(path)
        _record_created(path.parent.parent)
        _check_tracker(config)


def _check_tracker(config: DictConfig) -> None:
    """Raises the error of a tracker before any job; this also creates a database for all jobs."""
    node = config.get("tracker")
    if not isinstance(node, DictConfig):
        return
    try:
        values = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException:
        # Jobs may have settings that this configuration lacks.
        return
    try:
        check_in_process(cast(dict[str, Any], values))
    except ValueError as error:
        raise_past_hydra(error)


def _record_created(folder: Path) -> None:
    _CREATED[:] = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def remove_unused_folders() -> None:
    """Removes the folders that Hydra created for a command if nothing was written to them."""
    for folder in _CREATED:
        with suppress(OSError):
            if [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
                (folder / "multirun.yaml").unlink()
            folder.rmdir()
    _CREATED.clear()


def add_entry(entry: Entry) -> None:
    """Appends a line to the journal of this sweep; safe for concurrent processes."""
    if not os.environ.get(VARIABLE):
        return
    _ENTRIES.append(entry)
    # A file for each machine, because several cannot append to one file of a network disk.
    path = Path(os.environ[VARIABLE]).with_suffix(f".{socket.gethostname()}.jsonl")
    # Starts with a newline, because a full disk may have truncated the previous line.
    line = f"\n{json.dumps(entry._asdict())}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A single write in append mode is not interleaved with those of other processes.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        _log.warning("the journal of the sweep cannot be written: %s", explain(error))


def find_owner() -> int:
    """Returns the id of the process that started the sweep, or 0 if it is unknown."""
    return int(Path(os.environ.get(VARIABLE) or "_0").stem.rpartition("_")[2])


def close_journal(code: int) -> int:
    """Prints the outcomes of the jobs at the end of a sweep, and returns the exit code.

    This waits for jobs that another process runs.

    Arguments:
        code: The exit code so far.
    """
    path = Path(os.environ.pop(VARIABLE, ""))
    entries = {entry.folder: entry for entry in _read_entries(path)}
    entries |= {entry.folder: entry for entry in _ENTRIES}
    _ENTRIES.clear()
    # A search that another process completed has no jobs of this command.
    searches = (path.parent.parent / "study.json").exists()
    if not entries and not code and path.name and not searches:
        raise ValueError("Expected a sweep of one job or more, got none: a list of values is empty")
    if not entries:
        return code
    settled = [_settle_entry(entry) for entry in entries.values()]
    print(_summarize(settled, path.parent.parent, code, searches), flush=True)
    return code or int(any(entry.outcome == "failed" for entry in settled))


def discard_journal() -> None:
    """Discards the entries of an interrupted sweep without a summary."""
    os.environ.pop(VARIABLE, None)
    _ENTRIES.clear()


def _read_entries(path: Path) -> list[Entry]:
    """Returns the last entry of each job, without lines truncated by a full disk."""
    entries: dict[str, Entry] = {}
    files = sorted(path.parent.glob(f"{path.stem}.*")) if path.name else []
    for file in files:
        for line in file.read_text().splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (TypeError, ValueError):
                continue
            # Another machine may have ended a job that this one only started.
            if entry.outcome != "started" or entry.folder not in entries:
                entries[entry.folder] = entry
    return list(entries.values())


def _settle_entry(entry: Entry) -> Entry:
    """Returns an entry with the final outcome of a job that did not end under this command."""
    if entry.outcome not in ("elsewhere", "started"):
        return entry
    try:
        outcome, reason = wait_for_outcome(Path(entry.folder))
    except ValueError as error:
        outcome, reason = "failed", str(error)
    return entry._replace(outcome=outcome, reason=reason)


def wait_for_outcome(folder: Path) -> tuple[str, str]:
    """Waits for other processes; returns the outcome of a job, and the reason if it failed."""
    if job_status.read_state(folder) == "running":
        print(f"waiting for {folder.name}, which is running in another process")
    while (state := job_status.read_state(folder)) == "running":
        time.sleep(0.5)
    if state in ("finished", "pruned"):
        return state, ""
    failure = job_status.read_failure(folder)
    return "failed", failure.reason if failure else "its process ended before the job"


def _summarize(entries: list[Entry], sweep: Path, code: int, searches: bool) -> str:
    """Returns the summary for the terminal at the end of a sweep or a search."""
    numbers = Counter(entry.outcome for entry in entries)
    counts = ", ".join(f"{number} {outcome}" for outcome, number in numbers.items())
    lines = ["", f"{len(entries)} job{'s' * (len(entries) != 1)} in {sweep}: {counts}"]
    for entry in entries:
        if entry.outcome == "failed":
            lines += [
                "",
                f"failed    {entry.overrides}",
                f"  reason  {' '.join(entry.reason.split())}",
                *(
                    f"  log     {path}"
                    for path in [Path(entry.folder) / "job.log"]
                    if path.is_file()
                ),
                f"  command {entry.command}",
            ]
    if code and not numbers["failed"] and not searches:
        lines += ["", "The sweep ended early, and jobs may be missing."]
    if (code or numbers["failed"]) and not searches:
        lines += ["", "Run the same command again to run only the failed and missing jobs."]
    return "\n".join([*lines, f"To compare them: pyro-vae-compare {shlex.quote(str(sweep))}"])
