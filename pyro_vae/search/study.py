"""A study of Optuna that several processes share: reserves, ends and repeats trials."""

import shutil
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from pyro_vae.files.atomic import hold_folder, is_held
from pyro_vae.search.space import Space
from pyro_vae.search.storage import (
    FAILURE,
    HEARTBEAT,
    RETRY,
    SURPLUS,
    WORKER,
    open_storage,
    requeue,
    retry,
    without_advice,
)

__all__ = ["SharedStudy"]

_UNCLAIMED = timedelta(seconds=30)
"""The time that a worker has to write its name to a trial."""

_OPEN = (TrialState.RUNNING, TrialState.WAITING)
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class SharedStudy:
    """A study in a storage that several processes may use at once.

    Arguments:
        storage: The URL of a database, or the path of a journal.
        name: The name of the study.
        directions: ``"maximize"`` or ``"minimize"`` for each objective.
        folder: The folder of the study.
        sampler: The sampler.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        directions: Sequence[Literal["maximize", "minimize"]],
        folder: Path,
        sampler: optuna.samplers.BaseSampler,
    ) -> None:
        self.storage_name, self.name, self.folder = storage, name, folder
        self.storage = open_storage(storage)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=name,
            directions=list(directions),
            sampler=sampler,
            load_if_exists=True,
        )
        self.worker = f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}"

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Stores the settings of the study, or compares them with the stored ones.

        Raises:
            ValueError: If the study has other settings.
        """
        stored = self.study.user_attrs
        for key, value in settings.items():
            if key not in stored:
                self.study.set_user_attr(key, value)
            elif stored[key] != value:
                expected = _list_missing(stored[key], value)
                raise ValueError(
                    f"Expected the {key} of the study {self.name!r}, {expected}; got "
                    f"{_list_missing(value, stored[key])}: choose another name by study=NAME"
                )

    @contextmanager
    def work(self) -> Iterator[None]:
        """Marks this process as alive, for other processes with the same journal."""
        folder = self._get_worker_folder(self.worker)
        try:
            with hold_folder(folder):
                yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()

    def _get_worker_folder(self, worker: str) -> Path:
        return self.folder / ".workers" / worker

    def list_trials(self) -> list[FrozenTrial]:
        """Returns all trials but those that were withdrawn."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if not trial.user_attrs.get(SURPLUS)]

    def list_failed(self) -> list[FrozenTrial]:
        """Returns the failed trials that were not repeated."""
        trials = self.list_trials()
        repeated = {trial.user_attrs.get(RETRY) for trial in trials}
        return [t for t in trials if t.state == TrialState.FAIL and t.number not in repeated]

    def count_ended(self) -> int:
        """Returns the number of finished and pruned trials."""
        return sum(trial.state in _ENDED for trial in self.list_trials())

    def has_open_trials(self) -> bool:
        """Whether a trial is running or waiting, in any process."""
        return any(trial.state in _OPEN for trial in self.list_trials())

    def ask(self, size: int, space: Space) -> tuple[Trial, list[str]] | None:
        """Reserves a trial, unless the study has as many as it should.

        Trials are numbered in the order in which the processes create them. One that is beyond
        the size by its number is withdrawn, so the processes agree without a lock.

        Returns:
            The trial and its overrides.
        """
        trials = self.list_trials()
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not waiting and sum(trial.state in (*_OPEN, *_ENDED) for trial in trials) >= size:
            return None
        with without_advice():
            trial = self.study.ask()
        trial.set_user_attr(WORKER, self.worker)
        counted = [other for other in self.list_trials() if other.state in (*_OPEN, *_ENDED)]
        if sum(other.number < trial.number for other in counted) >= size:
            self._withdraw(trial._trial_id)
            return None
        return trial, space.suggest(trial)

    def _withdraw(self, trial_id: int) -> None:
        self.storage.set_trial_user_attr(trial_id, SURPLUS, True)
        self.storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def release(self, trial: Trial) -> None:
        """Returns a trial that was interrupted, for any process to continue."""
        frozen = self.storage.get_trial(trial._trial_id)
        if not frozen.state.is_finished():
            self._withdraw(trial._trial_id)
            requeue(self.study, frozen, {})

    @contextmanager
    def keep_alive(self, trial: Trial) -> Iterator[None]:
        """Records signs of life of a trial in a database."""
        storage = self.storage
        if not isinstance(storage, RDBStorage):
            yield
            return
        ended = threading.Event()

        def beat() -> None:
            while True:
                storage.record_heartbeat(trial._trial_id)
                if ended.wait(HEARTBEAT):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def complete(self, trial: Trial, values: Sequence[float]) -> None:
        """Ends a trial with its values."""
        self.study.tell(trial, list(values), skip_if_finished=True)

    def prune(self, trial: Trial) -> None:
        """Ends a trial early."""
        self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, trial_id: int, reason: str) -> None:
        """Ends a running trial as failed, and repeats it once."""
        try:
            self.storage.set_trial_user_attr(trial_id, FAILURE, reason)
            # Only one of several processes that notice a death succeeds.
            if not self.storage.set_trial_state_values(trial_id, TrialState.FAIL):
                return
        except optuna.exceptions.UpdateFinishedTrialError:
            return
        retry(self.study, self.storage.get_trial(trial_id))

    def fail_dead_trials(self) -> None:
        """Ends the running trials whose process died, and repeats each once."""
        if isinstance(self.storage, RDBStorage):
            with without_advice():
                optuna.storages.fail_stale_trials(self.study)
            return
        for trial in self.list_trials():
            if trial.state == TrialState.RUNNING and self._is_dead(trial):
                self.fail(trial._trial_id, "its process ended before the trial")

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker is None:
            started = trial.datetime_start
            return started is not None and datetime.now() - started > _UNCLAIMED
        return worker != self.worker and not is_held(self._get_worker_folder(worker))


def _list_missing(values: Any, others: Any) -> str:
    """Returns the values that are not among others, as text."""
    if not (isinstance(values, list) and isinstance(others, list)):
        return str(values)
    missing = [str(value) for value in values if value not in others]
    return "; ".join(missing) or "without those"
