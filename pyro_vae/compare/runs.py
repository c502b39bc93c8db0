"""The runs that lie below folders, with what is known of each."""

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

__all__ = ["STATES", "Run", "find", "seed"]

STATES = ("finished", "failed", "running", "cut off", "unreadable")
"""What may have become of a run, in the order in which it is told."""

_OURS = (".job", ".lock", "data.json", "failure.json", "metrics.json", "model.safetensors")
"""The files of a run beside its configuration."""

LINKED = 10_000
"""How many folders are looked into that are reached by symbolic links."""

_LONGEST_REASON = 1000
_LONGEST_COMMAND = 10_000
_LONGEST_TRACE = 20_000


@dataclass(frozen=True)
class Run:
    """A run as it lies in its folder.

    Attributes:
        folder: Where it lies, with symbolic links resolved.
        name: Its folder, as seen from where all runs lie.
        state: One of :data:`STATES`.
        config: Its resolved configuration; empty if it cannot be read.
        metrics: The figures of a finished run; empty for any other.
        failure: Why it failed, if it did.
        problem: What cannot be read, and why, with the path; empty if all can.
    """

    folder: Path
    name: str
    state: str
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    problem: str = ""

    def number(self, metric: str) -> float | None:
        """Returns a figure, or ``None`` if it is not known or no finite number."""
        value = self.metrics.get(metric)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return value if math.isfinite(value) else None


def seed(run: Run) -> str:
    """Returns the seed of a run, as text."""
    return str(run.config.get("seed", "-"))


def find(folders: Sequence[Path | str]) -> list[Run]:
    """Finds all runs in folders and below them, in the order in which they were begun.

    A run is a folder with a ``config.yaml`` of ``pyro-vae``, or with a ``failure.json``. One that
    is reached on two ways counts once.

    Arguments:
        folders: Where to look; a folder may itself be a run.

    Raises:
        ValueError: If one is no folder, or there is no run at all.
    """
    roots = [Path(os.path.realpath(root)) for root in folders]
    for given, root in zip(folders, roots, strict=True):
        if not root.is_dir():
            raise ValueError(f"Expected FOLDER to be a folder that exists, got '{given}'")
    base = Path(os.path.commonpath(roots)) if roots else Path()
    known = dict(sorted(_places(roots), key=lambda pair: pair[0]))
    closed = [Run(p, _name(p, base), "unreadable", problem=why) for p, why in known.items() if why]
    opened = [_read(place, base) for place, why in known.items() if not why]
    found = closed + [run for run in opened if run is not None]
    if not found:
        shown = ", ".join(f"'{given}'" for given in folders)
        raise ValueError(f"Expected FOLDER to hold runs of pyro-vae, found none in {shown}")
    return sorted(found, key=_begun)


def _places(roots: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yields the folders that may be runs, with symbolic links resolved.

    Links are followed, but for a number of folders only: one may lead to a whole disk.

    Yields:
        The folder, and why it cannot be listed; empty if it can.
    """
    seen: set[str] = set()
    linked: list[str] = []
    for root in roots:
        yield from _below(str(root), seen, linked, None)
    last = len(seen) + LINKED
    while linked:
        yield from _below(linked.pop(0), seen, linked, last)


def _below(
    root: str, seen: set[str], linked: list[str], last: int | None
) -> Iterator[tuple[Path, str]]:
    """Yields the folders from one on that may be runs.

    Arguments:
        root: Where to begin.
        seen: All folders so far, which is added to.
        linked: Where links lead to, which is added to.
        last: How many folders may be seen; ``None``: any number.
    """
    closed: list[OSError] = []
    for here, names, files in os.walk(root, onerror=closed.append):
        true = os.path.realpath(here)
        if last is not None and len(seen) >= last:
            yield Path(root), f"links lead to more than {LINKED:,} folders: give it as FOLDER"
            return
        kept = [] if true in seen else [n for n in names if n[0] != "." and n != "figures"]
        seen.add(true)
        links = [n for n in kept if os.path.islink(os.path.join(here, n))]
        linked += [os.path.realpath(os.path.join(here, n)) for n in links]
        names[:] = [n for n in kept if n not in links]
        if "config.yaml" in files or "failure.json" in files:
            yield Path(true), ""
    for error in closed:
        yield (
            Path(os.path.realpath(error.filename)),
            f"the folder cannot be listed: {error.strerror}",
        )


def _begun(run: Run) -> tuple[float, str]:
    """Returns what orders runs by when they were begun, as far as their files still tell."""
    try:
        return (run.folder / "config.yaml").stat().st_mtime, run.name
    except OSError:
        return float("inf"), run.name


def _read(place: Path, base: Path) -> Run | None:
    """Returns the run in a folder, or ``None`` if the folder is something else's.

    Arguments:
        place: The folder.
        base: What its name is relative to.
    """
    name = _name(place, base)
    try:
        config = _configuration(place / "config.yaml")
    except (OSError, ValueError) as error:
        if not any(os.path.lexists(place / file) for file in _OURS):
            return None
        return Run(place, name, "unreadable", problem=_said(error))
    try:
        state, failure = job_status.state(place), job_status.failure(place)
        metrics = (job_status.metrics(place) or {}) if state == "finished" else {}
        fields.check_metrics(metrics, place / "metrics.json")
    except (OSError, ValueError) as error:
        return (
            None if config is None else Run(place, name, "unreadable", config, problem=_said(error))
        )
    if config is None and failure is None:
        return None
    return Run(place, name, state, config or {}, metrics, failure and _shown(failure))


def _name(place: Path, base: Path) -> str:
    return place.name if place == base else os.path.relpath(place, base)


def _shown(failure: Failure) -> Failure:
    """Returns a failure as a page shows it: of a limited size, and with a plain command or none."""
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


def _configuration(path: Path) -> dict[str, Any] | None:
    """Returns the configuration in a file, or ``None`` if there is none, or none of ours.

    Raises:
        ValueError: If it is damaged, or holds a setting that cannot be compared.
    """
    if not os.path.lexists(path):
        return None
    config = read_yaml(path)
    if config is None:
        raise ValueError(f"Expected '{path}' to hold a configuration, got an empty file")
    ours = isinstance(config, dict) and all(
        isinstance(config.get(k), dict) for k in ("vae", "train")
    )
    if ours:
        fields.check_config(config, path)
    return config if ours else None


def _said(error: Exception) -> str:
    """Returns in one line why a run cannot be read."""
    return " ".join(str(error).split())
