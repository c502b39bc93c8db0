"""The protocol of a tracker of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

__all__ = ["Outcome", "PrunedError", "RunTracker", "TrackedRun"]

Outcome = Literal["failed", "interrupted", "pruned"]
"""How a run ended without results."""


class PrunedError(Exception):
    """Raised by a tracker to end a training early; the run is then pruned and not failed."""


class TrackedRun(NamedTuple):
    """The run that a tracker logs.

    Attributes:
        name: The name of the configuration with which the run began, 12 hexadecimal digits.
        key: 32 hexadecimal digits of this run only. A resumed run has the same.
        group: The name of the sweep's study, or ``None`` for a single run.
        settings: The resolved configuration, without the sections that do not describe the run:
            ``hydra``, ``tracker``, ``resume`` and ``overwrite``.
        folder: The folder to which the run writes.
        history: The rows of ``history.csv`` for the epochs of the checkpoint from which the run
            continues; empty for a new run.
    """

    name: str
    key: str
    group: str | None
    settings: Mapping[str, Any]
    folder: Path
    history: Sequence[Mapping[str, float]]


class RunTracker(Protocol):
    """Logs runs of the command ``pyro-vae``; any class with these four methods is one.

    Each run has a new instance. Its constructor takes the settings of ``tracker``, and raises an
    error if they are wrong or the store is missing. The methods are called in one process, in the
    order ``start``, ``log`` for each epoch, then either ``finish`` or ``abort``. An error of
    ``start`` ends the run before its first epoch; a later one causes a warning.

    The method ``log`` is that of a tracker of :func:`pyro_vae.fit`.

    Example:
        >>> class PrintingTracker:
        ...     def start(self, run):
        ...         print(run.group, run.settings["vae"]["latent_dim"])
        ...         for row in run.history:
        ...             self.log(row, row["epoch"])
        ...     def log(self, values, step):
        ...         print(step, values["train_objective"])
        ...     def finish(self, metrics, figures):
        ...         print(metrics["log_evidence"])
        ...     def abort(self, outcome, reason):
        ...         print(outcome, reason)
        >>> tracker: RunTracker = PrintingTracker()
    """

    def start(self, run: TrackedRun) -> None:
        """Starts to log a run, or continues it if the store has a run of the same key.

        Afterwards the store has each epoch of ``run.history`` once. Later epochs that were logged
        before a kill are repeated by the training, with the same values, and passed to
        :meth:`log` again.
        """

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs one epoch.

        Arguments:
            values: The row of ``history.csv``.
            step: The epoch, from 1.
        """

    def finish(self, metrics: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Logs the results of a finished run.

        Arguments:
            metrics: The content of ``metrics.json``; :func:`split_metrics` flattens it.
            figures: The paths of the figures, PNG files.
        """

    def abort(self, outcome: Outcome, reason: str) -> None:
        """Marks a run that ends without results.

        The same command may continue it later.

        Arguments:
            outcome: ``"failed"``, ``"interrupted"`` by a signal, or ``"pruned"``.
            reason: The error.
        """
