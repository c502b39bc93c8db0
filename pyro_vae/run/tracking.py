"""Passes a run to a tracker, whose errors do not end the training."""

import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pyro_vae.files.atomic import strict_json, write_whole
from pyro_vae.files.untrusted import read_json
from pyro_vae.run.folder import TRACKED
from pyro_vae.trackers.protocol import Outcome, PrunedError, RunTracker, TrackedRun
from pyro_vae.training.resume_file import load_state

__all__ = ["Tracking", "describe_run", "track_run"]

_NOT_SETTINGS = ("hydra", "tracker", "resume", "overwrite")


def describe_run(cfg: DictConfig, folder: Path, name: str, group: str | None) -> TrackedRun:
    """Returns the description of a run, and writes its key to the folder unless it has one.

    Arguments:
        cfg: The configuration.
        folder: The folder to which the run writes, with the checkpoint from which it continues.
        name: The name of the configuration.
        group: The name of a sweep's study.
    """
    stored = _read_key(folder / TRACKED)
    values = stored or {"key": uuid.uuid4().hex, "group": group, "name": name}
    if stored is None:
        write_whole(folder / TRACKED, strict_json(values).encode())
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    checkpoint = folder / "resume.pt"
    return TrackedRun(
        # More epochs change the name of the configuration, but not the run.
        name=values["name"],
        key=values["key"],
        group=values["group"],
        settings={str(k): value for k, value in settings.items() if k not in _NOT_SETTINGS},
        folder=folder,
        history=load_state(checkpoint)["history"] if cfg.resume and checkpoint.exists() else [],
    )


def _read_key(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    values = read_json(path)
    names = ("key", "name")
    if not isinstance(values, dict) or not all(isinstance(values.get(n), str) for n in names):
        raise ValueError(f"Expected '{path}' to hold the key of a tracked run: remove it")
    return {**{name: values[name] for name in names}, "group": values.get("group")}


class Tracking:
    """A tracker of :func:`pyro_vae.fit` that passes epochs to the tracker of a run.

    After an error, the epochs are kept for the end of the run, which tries again.

    Arguments:
        tracker: The tracker, which has started.
        run: The run.
    """

    def __init__(self, tracker: RunTracker, run: TrackedRun) -> None:
        self.tracker, self.folder = tracker, run.folder
        self.epochs = len(run.history)
        self.failed = self.ended = False

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs one epoch, or warns."""
        if self.failed:
            return
        reason = self._call(lambda: self.tracker.log(values, step))
        if reason is None:
            self.epochs = step
            return
        self.failed = True
        warnings.warn(
            f"Epoch {step} could not be logged to the tracker ({reason}): the training continues, "
            f"and the end of the run tries again",
            stacklevel=2,
        )

    def finish(self, history: Sequence[Mapping[str, float]], metrics: Mapping[str, Any]) -> None:
        """Logs the missing epochs and the results, or warns."""
        figures = sorted((self.folder / "figures").glob("*.png"))
        self.ended = True

        def finish() -> None:
            for row in history[self.epochs :]:
                self.tracker.log(row, int(row["epoch"]))
                self.epochs = int(row["epoch"])
            self.tracker.finish(metrics, figures)

        reason = self._call(finish)
        if reason is not None:
            missing = f"the epochs from {self.epochs + 1} on and " * (self.epochs < len(history))
            warnings.warn(
                f"The tracker lacks {missing}the results of this run ({reason}): history.csv, "
                f"metrics.json and the figures have them",
                stacklevel=2,
            )

    def abort(self, error: BaseException) -> None:
        """Marks a run that ends without results, or warns."""
        outcome: Outcome = "failed" if isinstance(error, Exception) else "interrupted"
        if isinstance(error, PrunedError):
            outcome = "pruned"
        text = f"{type(error).__name__}: {error}"
        reason = self._call(lambda: self.tracker.abort(outcome, text))
        if reason is not None:
            warnings.warn(f"The tracker lacks the end of this run ({reason})", stacklevel=2)

    def _call(self, function: Callable[[], None]) -> str | None:
        """Calls a function, and returns its error as text, if any."""
        try:
            function()
        except PrunedError:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None


@contextmanager
def track_run(
    tracker: RunTracker | None, describe: Callable[[], TrackedRun]
) -> Iterator[Tracking | None]:
    """Starts to track a run, and marks it if it ends by an error.

    Arguments:
        tracker: The tracker, or ``None``.
        describe: Returns the description of the run.

    Raises:
        ValueError: If the tracker cannot start.
    """
    if tracker is None:
        yield None
        return
    run = describe()
    try:
        tracker.start(run)
    except Exception as error:
        raise ValueError(
            f"Expected {type(tracker).__name__} to start, got {type(error).__name__}: "
            f"{' '.join(str(error).split())} (nothing was trained)"
        ) from error
    tracking = Tracking(tracker, run)
    try:
        yield tracking
    except BaseException as error:
        if not tracking.ended:
            tracking.abort(error)
        raise
