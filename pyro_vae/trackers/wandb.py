"""Logs runs to Weights & Biases, or to trackio, which has the same functions."""

import contextvars
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from pyro_vae.trackers.build import keep_process_state, require_extra
from pyro_vae.trackers.protocol import Outcome, TrackedRun
from pyro_vae.trackers.values import split_metrics

__all__ = ["WandbTracker"]


_PROJECT = "pyro_vae"

_QUIET = {
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""Variables by which both libraries send nothing but the run."""


class WandbTracker:
    """Logs a run by the functions ``init``, ``log`` and ``finish`` of wandb or trackio.

    The settings are the configuration of the run, the curves and final metrics are logged by
    epoch, and the figures are images. A sweep is a group of runs. The output of the process is
    not logged.

    With ``WANDB_MODE=offline``, wandb writes to the subfolder ``wandb`` of the run, without
    network. trackio writes to a database in its own folder, ``TRACKIO_DIR``.

    Arguments:
        library: ``"wandb"`` or ``"trackio"``.
        project: The name of the project.
        init: Further arguments of ``init``, such as ``entity`` of wandb.

    Raises:
        ValueError: If the library is not installed, or an argument is wrong.
    """

    def __init__(
        self,
        library: str = "wandb",
        project: str = _PROJECT,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        if library not in ("wandb", "trackio"):
            raise ValueError(f"Expected tracker.library to be wandb or trackio, got {library!r}")
        if not isinstance(project, str) or not project.strip():
            raise ValueError(f"Expected tracker.project to be a name, got {project!r}")
        if init is not None and not isinstance(init, Mapping):
            raise ValueError(f"Expected tracker.init to be arguments by name, got {init!r}")
        require_extra(library, library)
        self.library, self.project, self.init = library, project, dict(init or {})
        with _quiet():
            self.module = import_module(library)

    def start(self, run: TrackedRun) -> None:
        """Creates the run, or continues it, with the settings as its configuration."""
        settings = {
            "project": self.project,
            "group": run.group,
            "config": dict(run.settings),
            "resume": "allow",
        }
        initialize = self._init_wandb if self.library == "wandb" else self._init_trackio
        with _quiet():
            initialize(run, settings)
            self.step = 0
            for row in run.history:
                self._log(row, int(row["epoch"]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs one epoch."""
        with _quiet():
            self._log(values, step)

    def finish(self, metrics: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Logs the results with the last epoch, and ends the run."""
        numbers, texts = split_metrics(metrics)
        images = {f"figures/{path.stem}": self.module.Image(str(path)) for path in figures}
        with _quiet():
            self._log({**numbers, **texts, **images}, max(self.step, self.first_step))
            self.run.finish()

    def abort(self, outcome: Outcome, reason: str) -> None:
        """Logs outcome and reason with the last epoch, and ends the run."""
        with _quiet():
            self._log({"outcome": outcome, "reason": reason}, max(self.step, self.first_step))
            self.run.finish(**({"exit_code": 1} if self.library == "wandb" else {}))

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        self.step = step
        # Earlier steps are on the server, which takes none of them twice.
        if step >= self.first_step:
            self.run.log(dict(values), step=step)

    def _init_wandb(self, run: TrackedRun, settings: dict[str, Any]) -> None:
        settings |= {
            "id": run.key,
            "name": run.name,
            "dir": str(run.folder),
            "reinit": "create_new",
            "settings": self.module.Settings(console="off", silent=True),
        }
        self.run = self.module.init(**(settings | self.init))
        self.first_step = self.run.starting_step
        if self.run.offline:
            # The new folder has all epochs, the old one also those that are repeated.
            for old in Path(self.run.dir).parent.parent.glob(f"offline-run-*-{run.key}"):
                if old != Path(self.run.dir).parent:
                    shutil.rmtree(old, ignore_errors=True)

    def _init_trackio(self, run: TrackedRun, settings: dict[str, Any]) -> None:
        # The name identifies a run of a project, which all folders share.
        settings |= {
            "name": f"{run.name}-{run.key[:6]}",
            "auto_log_cpu": False,
            "auto_log_gpu": False,
            "embed": False,
        }
        settings |= self.init
        self.first_step = 0
        with suppress(ValueError):
            # All epochs are logged again. A missing project is an error.
            for old in list(self.module.Api().runs(self.project)):
                if old.name == settings["name"]:
                    old.delete()
        from huggingface_hub import constants

        # It would look up the user of a stored token. An empty context has no other active run,
        # which it would end.
        with mock.patch.object(constants, "HF_HUB_OFFLINE", True):
            self.run = contextvars.Context().run(self.module.init, **settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Discards output, and restores the state of the process afterwards."""
    with redirect_stdout(io.StringIO()), keep_process_state(**_QUIET):
        yield
