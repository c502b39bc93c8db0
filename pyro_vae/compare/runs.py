"""The runs below folders, each with its configuration, metrics and state."""

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_vae.compare import fields
from pyro_vae.files.untrusted import read_yaml
from pyro_vae.sweeps import job_status
from pyro_vae.sweeps.job_status import Failure

__all__ = ["STATES", "RunRecord", "find_runs"]

STATES = ("finished", "failed", "pruned", "running", "interrupted", "unreadable")
"""The possible states of a run, in the order in which they are counted."""

_RUN_FILES = (".job", ".lock", "data.json", "failure.json", "metrics.json", "model.safetensors")
"""The files of a run beside its configuration."""

LINKED = 10_000
"""The largest number of folders that are searched behind symbolic links."""

_LONGEST_REASON = 1000
_LONGEST_COMMAND = 10_000
_LONGEST_TRACE = 20_000


@dataclass(frozen=True)
class RunRecord:
    """A run as recorded in its folder.

    Attributes:
        folder: Its folder, with symbolic links resolved.
        name: Its folder, relative to the common parent of all runs.
        state: One of :data:`STATES`.
        config: Its resolved configuration; empty if it cannot be read.
        metrics: The metrics of a finished run; empty for any other.
        failure: The reason of its failure, if it failed.
        problem: The reason why it cannot be read, with the path; empty if it can.
    """

    folder: Path
    name: str
    state: str
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    metrics: dict[str, Any] = field(default_factory=dict, repr=False)
    failure: Failure | None = None
    problem: str = ""

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return str(self.config.get("seed", "-"))

    def number(self, metric: str) -> float | None:
        """Returns a metric, or ``None`` if it is missing or is not a finite number."""
        value = self.metrics.get(metric)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return value if math.isfinite(value) else None


def find_runs(folders: Sequence[Path | str]) -> list[RunRecord]:
    """Finds all runs in folders and below them, in the order of their start.

    A run is a folder with a ``config.yaml`` of ``pyro-vae``, or with a ``failure.json``. A run
    that is reached by two paths counts once.

    Arguments:
        folders: The folders to search; a folder may itself be a run.

    Raises:
        ValueError: If one is not a folder, or there is no run at all.
    """
    roots = [Path(os.path.realpath(root)) for root in folders]
    for folder, root in zip(folders, roots, strict=True):
        if not root.is_dir():
            raise ValueError(f"Expected FOLDER to be a folder that exists, got '{folder}'")
    base = Path(os.path.commonpath(roots)) if roots else Path()
    runs = []
    for path, problem in sorted(dict(_find_candidates(roots)).items()):
        if problem:
            runs.append(RunRecord(path, _relative_name(path, base), "unreadable", problem=problem))
        elif (run := _read_run(path, base)) is not None:
            runs.append(run)
    if not runs:
        listed = ", ".join(f"'{folder}'" for folder in folders)
        raise ValueError(f"Expected FOLDER to contain runs of pyro-vae, got none in {listed}")
    return sorted(runs, key=_start_order)


def _find_candidates(roots: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yields the folders that may be runs, with symbolic links resolved.

    The number of folders behind links is limited, because a link may lead to a whole disk.

    Yields:
        The folder, and the reason why it cannot be listed; empty if it can.
    """
    visited: set[str] = set()
    linked: list[str] = []
    for root in roots:
        yield from _walk(str(root), visited, linked, None)
    limit = len(visited) + LINKED
    while linked:
        yield from _walk(linked.pop(0), visited, linked, limit)


def _walk(
    root: str, visited: set[str], linked: list[str], limit: int | None
) -> Iterator[tuple[Path, str]]:
    """Yields the folders in and below a root that may be runs.

    Arguments:
        root: The first folder.
        visited: All folders visited so far; extended in place.
        linked: The targets of links; extended in place.
        limit: The largest number of visited folders; ``None``: no limit.
    """
    errors: list[OSError] = []
    for folder, names, files in os.walk(root, onerror=errors.append):
        path = os.path.realpath(folder)
        if limit is not None and len(visited) >= limit:
            yield Path(root), f"links lead to more than {LINKED:,} folders: pass it as FOLDER"
            return
        if path in visited:
            names.clear()
        visited.add(path)
        names[:] = [name for name in names if name[0] != "." and name != "figures"]
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        linked += [os.path.realpath(os.path.join(folder, name)) for name in links]
        names[:] = [name for name in names if name not in links]
        if "config.yaml" in files or "failure.json" in files:
            yield Path(path), ""
    for error in errors:
        path = os.path.realpath(error.filename)
        yield Path(path), f"the folder cannot be listed: {error.strerror}"


def _start_order(run: RunRecord) -> tuple[float, str]:
    """Returns a key that sorts runs by their start, as recorded in the time of their file."""
    try:
        return (run.folder / "config.yaml").stat().st_mtime, run.name
    except OSError:
        return float("inf"), run.name


def _read_run(folder: Path, base: Path) -> RunRecord | None:
    """Returns the run in a folder, or ``None`` if the folder is not a run.

    Arguments:
        folder: The folder.
        base: The folder to which its name is relative.
    """
    name = _relative_name(folder, base)
    try:
        config = _read_config(folder / "config.yaml")
    except (OSError, ValueError) as error:
        if not any(os.path.lexists(folder / file) for file in _RUN_FILES):
            return None
        return RunRecord(folder, name, "unreadable", problem=_format_error(error))
    try:
        state, failure = job_status.read_state(folder), job_status.read_failure(folder)
        metrics = (job_status.read_metrics(folder) or {}) if state == "finished" else {}
        fields.check_metrics(metrics, folder / "metrics.json")
    except (OSError, ValueError) as error:
        if config is None:
            return None
        return RunRecord(folder, name, "unreadable", config, problem=_format_error(error))
    if config is None and failure is None:
        return None
    return RunRecord(folder, name, state, config or {}, metrics, failure and _sanitize(failure))


def _relative_name(folder: Path, base: Path) -> str:
    return folder.name if folder == base else os.path.relpath(folder, base)


def _sanitize(failure: Failure) -> Failure:
    """Limits the size of a failure, and removes its command unless that is plain."""
    return Failure(
        failure.reason[:_LONGEST_REASON],
        failure.command if _is_plain(failure.command) else "",
        failure.time,
        failure.trace[-_LONGEST_TRACE:],
    )


def _is_plain(command: str) -> bool:
    """Whether text to be copied to a terminal runs ``pyro-vae`` and nothing else."""
    if len(command) > _LONGEST_COMMAND or not command.isprintable():
        return False
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return words[:1] == ["pyro-vae"] and shlex.join(words) == command


def _read_config(path: Path) -> dict[str, Any] | None:
    """Returns a run's configuration, or ``None`` if the file is missing or is not a run's.

    Raises:
        ValueError: If it is damaged, or holds a setting that cannot be compared.
    """
    if not os.path.lexists(path):
        return None
    config = read_yaml(path)
    if config is None:
        raise ValueError(f"Expected '{path}' to hold a configuration, got an empty file")
    if not isinstance(config, dict):
        return None
    if not all(isinstance(config.get(key), dict) for key in ("vae", "train")):
        return None
    fields.check_config(config, path)
    return config


def _format_error(error: Exception) -> str:
    """Returns the message of an error in one line."""
    return " ".join(str(error).split())
