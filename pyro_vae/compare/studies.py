"""The studies of searches: trials, best ones and importances, from ``study.json``."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyro_vae.files.untrusted import read_json

__all__ = ["StudyRecord", "Trial", "find_studies"]

_FILE = "study.json"
_LARGEST = 32 * 2**20
_STATES = ("finished", "pruned", "failed", "running", "waiting")
_LONGEST = 500


class Trial(NamedTuple):
    """A trial of a study.

    Attributes:
        number: Its number.
        state: Its state.
        values: The values of the objectives, or ``None`` unless it is finished.
        params: The settings, as texts.
        folders: The names of its job folders.
    """

    number: int
    state: str
    values: tuple[float, ...] | None
    params: dict[str, str]
    folders: tuple[str, ...]


class StudyRecord(NamedTuple):
    """A study.

    Attributes:
        name: Its name.
        objectives: The metrics that it optimizes.
        directions: Whether each is to be maximized or minimized.
        trials: Its trials.
        importances: For each objective, the share of its variance that each setting explains.
        best: The trials that no other beats in all objectives.
    """

    name: str
    objectives: tuple[str, ...]
    directions: tuple[str, ...]
    trials: tuple[Trial, ...]
    importances: dict[str, dict[str, float]]
    best: tuple[Trial, ...]

    def count_states(self) -> str:
        """Returns the number of trials in each state, as text."""
        counts = Counter(trial.state for trial in self.trials)
        return ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state])


def find_studies(folders: Sequence[Path | str]) -> tuple[list[StudyRecord], list[str]]:
    """Reads the studies in folders and in their subfolders.

    Returns:
        The studies, and a caveat for each that cannot be read.
    """
    paths = [
        path
        for folder in map(Path, folders)
        for path in sorted({*folder.glob(_FILE), *folder.glob(f"*/{_FILE}")})
    ]
    found = [_try_to_read(path) for path in dict.fromkeys(paths)]
    return (
        [one for one in found if isinstance(one, StudyRecord)],
        [one for one in found if isinstance(one, str)],
    )


def _try_to_read(path: Path) -> StudyRecord | str:
    """Returns a study, or why it cannot be read."""
    try:
        return _read_study(path)
    except (OSError, ValueError) as error:
        return f"A study is not shown: {' '.join(str(error).split())}"


def _read_study(path: Path) -> StudyRecord:
    """Reads a study.

    Raises:
        ValueError: If the file is damaged.
    """
    content = read_json(path, largest=_LARGEST)
    try:
        objectives = tuple(map(_read_text, content["objectives"]))
        trials = tuple(_read_trial(one, len(objectives)) for one in content["trials"])
        by_number = {trial.number: trial for trial in trials}
        return StudyRecord(
            _read_text(content["study"]),
            objectives,
            tuple(map(_read_text, content["directions"])),
            trials,
            {
                _read_text(objective): {_read_text(k): float(v) for k, v in shares.items()}
                for objective, shares in content["importances"].items()
            },
            tuple(by_number[number] for number in content["best"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected '{path}' to hold a study, got something else ({type(error).__name__}: "
            f"{error})"
        ) from error


def _read_trial(content: dict[str, Any], objectives: int) -> Trial:
    state, values = content["state"], content["values"]
    if state not in _STATES or (state == "finished") != (values is not None):
        raise ValueError(f"state {state!r:.40} with values {values!r:.40}")
    if values is not None and len(values) != objectives:
        raise ValueError(f"{len(values)} values of {objectives} objectives")
    return Trial(
        int(content["number"]),
        state,
        None if values is None else tuple(map(float, values)),
        {_read_text(key): _format_level(value) for key, value in content["params"].items()},
        tuple(map(_read_text, content["folders"])),
    )


def _format_level(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _read_text(str(value))


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise TypeError(f"{value!r:.40} is not a short text")
    return value
