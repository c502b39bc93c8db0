"""The runs that lie below folders, with what is known of each."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from pyro_vae.sweeps import folder
from pyro_vae.sweeps.folder import Failure

__all__ = ["STATES", "Run", "find", "seed"]

STATES = ("finished", "failed", "running", "cut off", "unreadable")
"""What may have become of a run, in the order in which it is told."""

# The loader of libyaml is ten times as quick, and not part of every build of PyYAML.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
        problem: What cannot be read, and why; empty if all can.
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
    roots = [Path(root).resolve() for root in folders]
    for given, root in zip(folders, roots, strict=True):
        if not root.is_dir():
            raise ValueError(f"Expected FOLDER to be a folder that exists, got '{given}'")
    base = Path(os.path.commonpath(roots)) if roots else Path()
    found = [run for place in sorted(set(places(roots))) if (run := read(place, base)) is not None]
    if not found:
        shown = ", ".join(f"'{given}'" for given in folders)
        raise ValueError(f"Expected FOLDER to hold runs of pyro-vae, found none in {shown}")
    return sorted(found, key=begun)


def places(roots: Sequence[Path]) -> Iterator[Path]:
    """Yields the folders that may be runs, with symbolic links resolved."""
    seen: set[str] = set()
    for root in roots:
        for here, names, files in os.walk(root, followlinks=True):
            true = os.path.realpath(here)
            # A link to a folder above would otherwise be followed for ever.
            names[:] = [] if true in seen else [n for n in names if n[0] != "." and n != "figures"]
            seen.add(true)
            if "config.yaml" in files or "failure.json" in files:
                yield Path(true)


def begun(run: Run) -> tuple[float, str]:
    """Returns what orders runs by when they were begun, as far as their files still tell."""
    try:
        return (run.folder / "config.yaml").stat().st_mtime, run.name
    except OSError:
        return float("inf"), run.name


def read(place: Path, base: Path) -> Run | None:
    """Returns the run in a folder, or ``None`` if the folder is something else's.

    Arguments:
        place: The folder.
        base: What its name is relative to.
    """
    name = place.name if place == base else os.path.relpath(place, base)
    try:
        config = configuration(place / "config.yaml")
    except (OSError, ValueError, yaml.YAMLError) as error:
        if not any((place / file).exists() for file in ("metrics.json", "failure.json", ".lock")):
            return None
        return Run(place, name, "unreadable", problem=said("config.yaml", error))
    try:
        state, failure = folder.state(place), folder.failure(place)
        metrics = (folder.metrics(place) or {}) if state == "finished" else {}
        check(metrics, "metrics.json")
    except (OSError, TypeError, ValueError) as error:
        problem = said("metrics.json or failure.json", error)
        return None if config is None else Run(place, name, "unreadable", config, problem=problem)
    if config is None and failure is None:
        return None
    return Run(place, name, state, config or {}, metrics, failure)


def configuration(path: Path) -> dict[str, Any] | None:
    """Returns the configuration in a file, or ``None`` if there is none, or none of ours.

    Raises:
        ValueError: If it is cut short.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    config = yaml.load(text, Loader=LOADER)
    if config is None:
        raise ValueError("it is empty")
    ours = isinstance(config, dict) and all(
        isinstance(config.get(k), dict) for k in ("vae", "train")
    )
    return config if ours else None


def check(values: Any, file: str) -> None:
    """Raises a ``ValueError`` for JSON that is no object."""
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no object but {type(values).__name__}")


def said(file: str, error: Exception) -> str:
    """Returns in one line why a file cannot be read."""
    why = " ".join(str(error).split())
    return f"{file} cannot be read: {why}"
