"""Logs runs to MLflow."""

import re
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_vae.files.atomic import hold_folder
from pyro_vae.trackers.build import keep_process_state, require_extra
from pyro_vae.trackers.protocol import Outcome, TrackedRun
from pyro_vae.trackers.values import flatten, split_metrics

__all__ = ["MLflowTracker"]

_KEY, _OUTCOME, _REASON = "pyro_vae.key", "pyro_vae.outcome", "pyro_vae.reason"
"""The tags of a run: its key, and how and why it ended without results."""

_STATUS = {"failed": "FAILED", "interrupted": "KILLED", "pruned": "KILLED"}

_LONGEST = 5000
"""The longest value of a parameter or a tag, in characters; the files of the run have all of it."""

_PATIENCE = 300.0
"""Seconds to wait for another process that creates the database."""


class MLflowTracker:
    """Logs a run to MLflow, in a database or on a server.

    The settings are parameters, the curves and final metrics are metrics, the texts of
    ``metrics.json`` are tags, and the figures are artifacts. A sweep is an experiment. MLflow's
    global state is left alone: the active run, the URI, and the environment.

    Arguments:
        uri: The URI of a database, such as ``sqlite:///mlflow.db``, or the URL of a server.
        experiment: The name of the experiment, or ``None`` for that of the sweep's study, and
            ``pyro_vae`` for a single run.

    Raises:
        ValueError: If MLflow is not installed, an argument is wrong, or the store is out of reach.
    """

    def __init__(self, uri: str = "sqlite:///mlflow.db", experiment: str | None = None) -> None:
        if not isinstance(uri, str) or not re.match(r"[a-z0-9+]+:", uri):
            raise ValueError(
                f"Expected tracker.uri to be the URI of a database, as in sqlite:///mlflow.db, or "
                f"of a server, got {uri!r}"
            )
        if experiment is not None and (not isinstance(experiment, str) or not experiment.strip()):
            raise ValueError(f"Expected tracker.experiment to be a name, got {experiment!r}")
        for module in ("mlflow", "sqlalchemy", "alembic"):
            require_extra(module, "mlflow")
        self.uri, self.experiment = uri, experiment
        try:
            with self._hold_store(), _configure():
                from mlflow import MlflowClient

                self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)
                # Creates the database, if it is missing.
                self.client.search_experiments(max_results=1)
        except Exception as error:
            reason = textwrap.shorten(str(error), 200, placeholder="...")
            raise ValueError(
                f"Expected tracker.uri to be a store of MLflow within reach, got {uri!r} "
                f"({type(error).__name__}: {reason})"
            ) from error

    def start(self, run: TrackedRun) -> None:
        """Creates the run, or continues it, and logs the settings."""
        self.step = 0
        with _configure():
            experiment = self._find_experiment(self.experiment or run.group or "pyro_vae")
            runs = self.client.search_runs(
                [experiment], f"tags.`{_KEY}` = '{run.key}'", max_results=1
            )
            if runs:
                self.id, params = runs[0].info.run_id, runs[0].data.params
                self.client.update_run(self.id, status="RUNNING")
                for tag in {_OUTCOME, _REASON} & set(runs[0].data.tags):
                    self.client.delete_tag(self.id, tag)
            else:
                created = self.client.create_run(
                    experiment, tags={_KEY: run.key}, run_name=run.name
                )
                self.id, params = created.info.run_id, {}
            self.logged = {
                (name, metric.step): metric.value
                for name in (runs[0].data.metrics if runs else ())
                for metric in self.client.get_metric_history(self.id, name)
            }
            self._log_settings(run.settings, params)
            self._log_metrics(
                {(name, int(row["epoch"])): row[name] for row in run.history for name in row}
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs one epoch."""
        self.step = step
        with _configure():
            self._log_metrics({(name, step): value for name, value in values.items()})

    def finish(self, metrics: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Logs the results, and ends the run."""
        numbers, texts = split_metrics(metrics)
        with _configure():
            self._log_metrics({(name, self.step): value for name, value in numbers.items()})
            self._set_tags(texts)
            for path in figures:
                self.client.log_artifact(self.id, str(path), "figures")
            self.client.set_terminated(self.id, "FINISHED")

    def abort(self, outcome: Outcome, reason: str) -> None:
        """Marks the run as failed, or as killed if it was pruned or interrupted."""
        with _configure():
            self._set_tags({_OUTCOME: outcome, _REASON: reason})
            self.client.set_terminated(self.id, _STATUS[outcome])

    def _find_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name)
            except MlflowException:
                # Another job has created it in the meantime.
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise ValueError(
                f"Expected an experiment that exists in MLflow, got {name!r}, which was deleted: "
                f"restore it, or choose another name (tracker.experiment=NAME)"
            )
        return found.experiment_id

    def _log_settings(self, settings: Mapping[str, Any], params: Mapping[str, str]) -> None:
        """Logs parameters; those that changed since the run began are tags, as MLflow needs it."""
        from mlflow.entities import Param

        values = {_clean(name): _shorten(value) for name, value in flatten(settings).items()}
        new = [Param(name, value) for name, value in values.items() if name not in params]
        self.client.log_batch(self.id, params=new)
        self._set_tags({
            f"changed.{name}": value
            for name, value in values.items()
            if params.get(name, value) != value
        })  # fmt: skip

    def _log_metrics(self, values: Mapping[tuple[str, int], float]) -> None:
        """Logs numbers by name and step, unless the store has them."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            Metric(_clean(name), float(value), now, step)
            for (name, step), value in values.items()
            if self.logged.get((_clean(name), step)) != value
        ]
        self.client.log_batch(self.id, metrics=new)

    def _set_tags(self, texts: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(
            self.id, tags=[RunTag(_clean(name), _shorten(text)) for name, text in texts.items()]
        )

    @contextmanager
    def _hold_store(self) -> Iterator[None]:
        """Locks a SQLite database, which two processes cannot create at the same time."""
        path = self.uri.removeprefix("sqlite:///").partition("?")[0]
        if path == self.uri or not path:
            yield
            return
        with hold_folder(Path(path).absolute().parent / ".mlflow", patience=_PATIENCE):
            yield


@contextmanager
def _configure() -> Iterator[None]:
    """Makes MLflow send no usage data, and give up soon if the server is out of reach."""
    with keep_process_state(
        MLFLOW_DISABLE_TELEMETRY="true",
        MLFLOW_CONFIGURE_LOGGING="false",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        MLFLOW_HTTP_REQUEST_TIMEOUT="30",
        GIT_PYTHON_REFRESH="quiet",
    ):
        yield


def _clean(name: str) -> str:
    """Returns a name with the characters that MLflow accepts."""
    return re.sub(r"[^\w\-./: ]", "_", name)[:250]


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
