"""Opens the storage of a study, and builds samplers and pruners."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import (
    JournalFileBackend,
    JournalFileOpenLock,
    JournalFileSymlinkLock,
)
from optuna.trial import FrozenTrial, TrialState

from pyro_vae.config import build

__all__ = [
    "FAILURE", "HEARTBEAT", "RETRY", "SURPLUS", "WORKER", "build_pruner", "build_sampler",
    "open_storage", "requeue", "retry", "without_advice",
]  # fmt: skip

HEARTBEAT = 30
"""Seconds between two signs of life of a trial in a database."""

WORKER, FAILURE, RETRY, SURPLUS = "worker", "failure", "retry_of", "surplus"
"""Attributes of a trial: who runs it, why it failed, which trial it repeats, and whether it does
not count, because it was withdrawn."""


def open_storage(storage: str) -> JournalStorage | RDBStorage:
    """Opens a storage: the URL of a database, or the path of a journal.

    Raises:
        ValueError: If it cannot be opened.
    """
    if not isinstance(storage, str) or not storage:
        raise ValueError(
            f"Expected hydra.sweeper.storage to be the URL of a database or the path of a journal, "
            f"got {storage!r}"
        )
    if "://" not in storage:
        return _open_journal(Path(storage))
    try:
        with without_advice():
            return RDBStorage(
                storage,
                heartbeat_interval=HEARTBEAT,
                grace_period=3 * HEARTBEAT,
                heartbeat_stale_trial_callback=retry,
            )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expected hydra.sweeper.storage to be the URL of a database that can be opened, got "
            f"{storage!r} ({type(error).__name__}: {reason})"
        ) from error


def _open_journal(path: Path) -> JournalStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_torn_line(path)
        with without_advice():
            return JournalStorage(JournalFileBackend(str(path), _create_lock(path)))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expected '{path}' to be the journal of a study, got something else "
            f"({type(error).__name__}: {reason}): restore it, or choose another name by study=NAME"
        ) from error


def _create_lock(path: Path) -> JournalFileOpenLock | JournalFileSymlinkLock:
    # Windows allows links to administrators only.
    return (JournalFileOpenLock if os.name == "nt" else JournalFileSymlinkLock)(str(path))


def _remove_torn_line(path: Path) -> None:
    """Removes a last line that a full disk or a power failure truncated."""
    if not path.exists():
        return
    lock = _create_lock(path)
    lock.acquire()
    try:
        content = path.read_bytes()
        last = content[:-1].rfind(b"\n") + 1
        if not _is_entry(content[last:]):
            with path.open("r+b") as file:
                file.truncate(last)
    finally:
        lock.release()


def _is_entry(line: bytes) -> bool:
    try:
        return line == b"" or (line.endswith(b"\n") and isinstance(json.loads(line), dict))
    except ValueError:
        return False


def retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues a failed trial once more, with its reported values, because its job resumes."""
    if RETRY not in trial.user_attrs and not trial.user_attrs.get(SURPLUS):
        requeue(study, trial, {RETRY: trial.number})


def requeue(study: optuna.Study, trial: FrozenTrial, attributes: dict[str, Any]) -> None:
    """Queues a copy of a trial."""
    kept = {k: v for k, v in trial.user_attrs.items() if k not in (WORKER, FAILURE, SURPLUS)}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**kept, **attributes},
            intermediate_values=trial.intermediate_values,
        )
    )


def build_sampler(settings: Any) -> optuna.samplers.BaseSampler:
    """Builds a sampler of Optuna from the settings of ``hydra/sweeper/sampler``.

    Raises:
        ValueError: If the settings describe something else, an argument is wrong, or a package is
            missing.
    """
    sampler = _build("hydra/sweeper/sampler", settings)
    if not isinstance(sampler, optuna.samplers.BaseSampler):
        raise ValueError(f"Expected hydra/sweeper/sampler to be a sampler, got {settings}")
    # Optuna would miss it in the middle of a search.
    if isinstance(sampler, optuna.samplers.CmaEsSampler) and find_spec("cmaes") is None:
        raise ValueError(
            "Expected the package cmaes for hydra/sweeper/sampler=cmaes, got none: pip install "
            "'pyro_vae[optuna]'"
        )
    return sampler


def build_pruner(settings: Any) -> optuna.pruners.BasePruner:
    """Builds a pruner of Optuna from the settings of ``hydra/sweeper/pruner``.

    Raises:
        ValueError: As :func:`build_sampler`.
    """
    pruner = _build("hydra/sweeper/pruner", settings)
    if not isinstance(pruner, optuna.pruners.BasePruner):
        raise ValueError(f"Expected hydra/sweeper/pruner to be a pruner, got {settings}")
    return pruner


def _build(name: str, settings: Any) -> Any:
    target = settings.get("_target_", "") if isinstance(settings, dict) else ""
    if not str(target).startswith("optuna."):
        raise ValueError(f"Expected {name} to name a class of Optuna, got {target or settings}")
    with without_advice():
        try:
            return build(settings)
        except Exception as error:
            cause = error.__cause__ or error
            raise ValueError(f"Expected settings of {name} that fit {target}: {cause}") from error


@contextmanager
def without_advice() -> Iterator[None]:
    """Silences warnings that a class is experimental, or made for ``Study.optimize``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
