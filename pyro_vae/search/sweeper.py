"""Runs the trials of a search: gets settings from Optuna, launches a job, and returns its value."""

import logging
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException, ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.trial import Trial

from pyro_vae.config import quote_value
from pyro_vae.console.hydra_errors import describe_error
from pyro_vae.search.pruning import VARIABLE, TrialReference
from pyro_vae.search.space import Space, build_space
from pyro_vae.search.storage import build_pruner, build_sampler
from pyro_vae.search.study import SharedStudy
from pyro_vae.search.summary import summarize, write_summary
from pyro_vae.sweeps import job_status
from pyro_vae.sweeps.job_id import run_id
from pyro_vae.sweeps.journal import wait_for_outcome
from pyro_vae.sweeps.workers import can_fork, run_tasks

__all__ = ["OBJECTIVES", "run_search"]

_log = logging.getLogger(__name__)

OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "log_evidence": "maximize",
    "elbo": "maximize",
    "active_units": "maximize",
    "rate": "minimize",
    "distortion": "minimize",
    "seconds": "minimize",
    "parameters": "minimize",
}
"""Metrics that a search may optimize, and the direction of each."""

_PRUNABLE = (["log_evidence"], ["elbo"])
"""Objectives to which the validation ELBO of an epoch may be compared."""

_POLL = 1.0
"""Seconds between two looks at trials that other processes run."""


class _SearchFailed(CompactHydraException):
    """Too many trials of a search failed. Hydra shows the message alone."""


class _Search(NamedTuple):
    """The parts of a search.

    Attributes:
        config: The configuration of the command.
        settings: Its section ``hydra.sweeper``.
        context: Hydra's loader of configurations.
        launcher: The launcher of the jobs.
        space: The space.
        folder: The folder of the study.
        base: The name of a job with the fixed overrides alone.
    """

    config: DictConfig
    settings: dict[str, Any]
    context: HydraContext
    launcher: Launcher
    space: Space
    folder: Path
    base: str

    @property
    def pruner(self) -> dict[str, Any] | None:
        """The settings of the pruner, or ``None`` for the one that never prunes."""
        pruner = self.settings["pruner"]
        return None if pruner["_target_"] == "optuna.pruners.NopPruner" else pruner

    @property
    def seeds(self) -> list[Any]:
        """The seeds of a trial; ``None`` for that of the overrides."""
        return self.settings["seeds"] or [None]

    def open_study(self, index: int = 0, first: int = 0) -> SharedStudy:
        """Opens the study.

        Arguments:
            index: The number of the worker.
            first: The number of trials before this command.
        """
        objectives = self.settings["objectives"]
        storage = self.settings["storage"] or str(self.folder / "study.journal")
        sampler = dict(self.settings["sampler"])
        if isinstance(sampler.get("seed"), int):
            # Equal seeds would draw equal trials, in other workers and in the next command.
            sampler["seed"] += 100_003 * index + first
        study = SharedStudy(
            storage,
            self.config.study,
            [OBJECTIVES[name] for name in objectives],
            self.folder,
            build_sampler(sampler),
        )
        study.claim(
            {
                "folder": str(self.folder.absolute()),
                "objectives": objectives,
                "settings": self.space.describe(),
                "seeds": self.settings["seeds"] or [],
                "configuration": self.base,
            }
        )
        return study


def run_search(
    settings: Mapping[str, Any],
    *,
    config: DictConfig,
    context: HydraContext,
    launcher: Launcher,
    arguments: Sequence[str],
) -> None:
    """Runs trials until the study has as many as it should, together with other processes.

    Arguments:
        settings: The section ``hydra.sweeper``.
        config: The configuration of the command.
        context: Hydra's loader of configurations.
        launcher: The launcher of the jobs.
        arguments: The overrides of the command.

    Raises:
        ValueError: If a setting is wrong, or the study has other settings.
        _SearchFailed: If more trials failed than ``max_failures``.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = _prepare(dict(settings), config, context, launcher, list(arguments))
    search.folder.mkdir(parents=True, exist_ok=True)
    study = search.open_study()
    OmegaConf.save(config, search.folder / "multirun.yaml")
    first = len(study.study.get_trials(deepcopy=False))
    workers = search.settings["workers"]
    write_summary(study, search.settings["objectives"], search.space)
    if workers == 1:
        study = search.open_study(first=first)
        _work(search, study, first)
    else:
        del study
        _run_workers(search, workers, first)
        study = search.open_study()
    write_summary(study, search.settings["objectives"], search.space)
    print(summarize(study, search.settings["objectives"]), flush=True)
    failed = [trial for trial in study.list_failed() if trial.number >= first]
    if len(failed) > search.settings["max_failures"]:
        raise _SearchFailed(
            f"failed trials: {len(failed)}, more than hydra.sweeper.max_failures="
            f"{search.settings['max_failures']}: see their reasons above"
        )
    ended = study.count_ended()
    if ended < search.settings["trials"]:
        raise _SearchFailed(
            f"the search ended after {ended} of {search.settings['trials']} trials, because its "
            f"workers ended: run the same command again"
        )


def _prepare(
    settings: dict[str, Any],
    config: DictConfig,
    context: HydraContext,
    launcher: Launcher,
    arguments: list[str],
) -> _Search:
    """Checks all settings, and composes the configurations of some trials."""
    _check_settings(settings)
    parser = OverridesParser.create(config_loader=context.config_loader)
    listed = [f"{key}={value}" for key, value in settings["params"].items()]
    space = build_space(parser.parse_overrides([*listed, *arguments]), settings["conditions"])
    # Relative, because it is printed.
    folder = Path(os.path.relpath(config.hydra.sweep.dir))
    search = _Search(config, settings, context, launcher, space, folder, "")
    _check_command(search)
    if search.pruner is not None and settings["objectives"] not in _PRUNABLE:
        raise ValueError(
            f"Expected log_evidence or elbo as the only objective for a pruner, got "
            f"{settings['objectives']}: set hydra/sweeper/pruner=none"
        )
    if search.pruner is not None:
        build_pruner(search.pruner)
    for corner in space.list_corners():
        _compose(search, corner)
    base = context.config_loader.load_sweep_config(config, list(space.fixed))
    return search._replace(base=run_id(base))


def _check_command(search: _Search) -> None:
    """Checks the name of the study, the launcher and the seed."""
    name = search.config.study
    if not isinstance(name, str) or not re.fullmatch(r"[^\s/\\.][^/\\]*", name):
        raise ValueError(f"Expected study to be a name without slashes, got {name!r}")
    if search.settings["seeds"] and any(
        f.lstrip("+").startswith("seed=") for f in search.space.fixed
    ):
        raise ValueError("Expected either seed or hydra.sweeper.seeds, got both")
    if "Joblib" in search.config.hydra.launcher["_target_"]:
        raise ValueError(
            "Expected hydra.sweeper.workers for several trials at a time, got "
            "hydra/launcher=joblib: leave it out"
        )


def _compose(search: _Search, overrides: list[str]) -> None:
    """Composes the configuration of a trial, to find errors before the first one."""
    try:
        search.context.config_loader.load_sweep_config(search.config, overrides)
    except ConfigCompositionException as error:
        reason = describe_error(error) or str(error)
        conditional = len(search.space.dimensions) > 1
        hint = "; name the choices at which it is used in hydra.sweeper.conditions" * conditional
        raise ValueError(f"{reason} (at {' '.join(overrides)}){hint}") from error


def _check_settings(settings: dict[str, Any]) -> None:
    for name, least in (("trials", 1), ("workers", 1), ("max_failures", 0)):
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"Expected hydra.sweeper.{name} to be an integer of at least {least}, got {value!r}"
            )
    if settings["workers"] > 1 and not can_fork():
        raise ValueError(
            f"Expected hydra.sweeper.workers=1 on this system, got {settings['workers']}: start "
            f"the same command several times"
        )
    objectives = settings["objectives"]
    named = isinstance(objectives, list) and all(isinstance(name, str) for name in objectives)
    if (
        not named
        or not objectives
        or not set(objectives) <= set(OBJECTIVES)
        or (len(set(objectives)) < len(objectives))
    ):
        raise ValueError(
            f"Expected hydra.sweeper.objectives to be different metrics of "
            f"{', '.join(OBJECTIVES)}, as a list, got {objectives!r}"
        )
    seeds = settings["seeds"]
    if seeds is not None and not _are_seeds(seeds):
        raise ValueError(
            f"Expected hydra.sweeper.seeds to be a list of different integers, got {seeds!r}"
        )
    for name in ("params", "conditions"):
        settings[name] = settings[name] or {}
        if not isinstance(settings[name], dict):
            raise ValueError(f"Expected hydra.sweeper.{name} by setting, got {settings[name]!r}")


def _are_seeds(seeds: Any) -> bool:
    return (
        isinstance(seeds, list)
        and bool(seeds)
        and len(set(map(str, seeds))) == len(seeds)
        and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    )


def _run_workers(search: _Search, workers: int, first: int) -> None:
    """Runs trials in several processes."""

    def work(index: int) -> None:
        _work(search, search.open_study(index, first), first)

    def warn(index: int, code: int) -> None:
        _log.warning("worker %d ended with code %d; the others continue", index, code)

    run_tasks(work, workers, workers, warn)


def _work(search: _Search, study: SharedStudy, first: int) -> None:
    """Runs trials in this process until none is left."""
    size, most = search.settings["trials"], search.settings["max_failures"]
    with study.work():
        while True:
            study.fail_dead_trials()
            failed = [trial for trial in study.list_failed() if trial.number >= first]
            if len(failed) > most:
                return
            reserved = study.ask(size, search.space)
            if reserved is not None:
                _run_trial(search, study, *reserved)
                write_summary(study, search.settings["objectives"], search.space)
            elif study.has_open_trials():
                time.sleep(_POLL)
            else:
                return


def _run_trial(search: _Search, study: SharedStudy, trial: Trial, overrides: list[str]) -> None:
    """Runs the jobs of a trial, and ends it by their outcome."""
    try:
        with study.keep_alive(trial):
            outcome, result = _run_jobs(search, study, trial, overrides)
    except BaseException:
        study.release(trial)
        raise
    if outcome == "pruned":
        study.prune(trial)
    elif outcome == "failed":
        study.fail(trial._trial_id, str(result))
    else:
        study.complete(trial, result)
        text = ", ".join(
            f"{name} {mean:.4g}"
            for name, mean in zip(search.settings["objectives"], result, strict=True)
        )
        _log.info("trial %d: %s", trial.number, text)


def _run_jobs(
    search: _Search, study: SharedStudy, trial: Trial, overrides: list[str]
) -> tuple[str, Any]:
    """Runs a job for each seed; returns the outcome, with mean values or the reason it failed."""
    totals: list[list[float]] = []
    for seed in search.seeds:
        seeded = overrides if seed is None else [*overrides, f"seed={seed}"]
        outcome, values = _run_job(search, study, trial, seeded)
        if outcome != "finished":
            return outcome, values
        totals.append(values)
        if _is_pruned_between(search, study, trial, totals):
            return "pruned", None
    return "finished", [statistics.mean(values) for values in zip(*totals, strict=True)]


def _is_pruned_between(
    search: _Search, study: SharedStudy, trial: Trial, totals: list[list[float]]
) -> bool:
    """Whether a trial of several seeds ends after some of them, by the mean so far."""
    if search.pruner is None or not 1 <= len(totals) < len(search.seeds):
        return False
    mean = statistics.mean(values[0] for values in totals)
    study.storage.set_trial_intermediate_value(trial._trial_id, len(totals), mean)
    pruner = build_pruner(search.pruner)
    return pruner.prune(study.study, study.storage.get_trial(trial._trial_id))


def _run_job(
    search: _Search, study: SharedStudy, trial: Trial, overrides: list[str]
) -> tuple[str, Any]:
    """Runs one job; returns its outcome, with its values or the reason of its failure."""
    # Trials of several seeds are pruned between them.
    prunes = search.pruner is not None and len(search.seeds) == 1
    reference = ""
    if prunes:
        assert search.pruner is not None
        reference = TrialReference(
            study.storage_name, study.name, trial._trial_id, search.pruner
        ).dump()
    channel = f"hydra.job.env_set.{VARIABLE}={quote_value(reference)}"
    # Known before the job, whose process may be killed.
    job = search.context.config_loader.load_sweep_config(search.config, overrides)
    _add_folder(trial, str(job.hydra.sweep.subdir))
    try:
        results: Sequence[JobReturn] = search.launcher.launch(
            [[*overrides, channel]], initial_job_idx=trial.number
        )
    except ValueError as error:
        # A cluster that refuses a job may take the next one.
        return "failed", str(error)
    result = results[0]
    if result.status == JobStatus.FAILED:
        return "failed", " ".join(str(result._return_value).split())
    assert result.hydra_cfg is not None
    folder = Path(result.hydra_cfg.hydra.runtime.output_dir).absolute()
    state: str = job_status.read_state(folder)
    if state == "running":
        # Another command runs the same settings.
        state, _ = wait_for_outcome(folder)
    if state == "pruned":
        return "pruned", None
    metrics = job_status.read_metrics(folder)
    if metrics is None:
        failure = job_status.read_failure(folder)
        return "failed", failure.reason if failure else "its process ended before the job"
    values = [metrics.get(name) for name in search.settings["objectives"]]
    if any(value is None for value in values):
        return "failed", f"'{folder / 'metrics.json'}' has no value of an objective"
    return "finished", values


def _add_folder(trial: Trial, name: str) -> None:
    """Adds the folder of a job to a trial; a repeated trial has those of the first attempt."""
    names = trial.user_attrs.get("folders", [])
    trial.set_user_attr("folders", [*(other for other in names if other != name), name])
