"""Summarizes a study, for the terminal and for the comparison page."""

import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pyro_vae.files.atomic import strict_json, write_whole
from pyro_vae.search.space import Space
from pyro_vae.search.storage import FAILURE, RETRY, without_advice
from pyro_vae.search.study import SharedStudy

__all__ = ["summarize", "write_summary"]

_LEAST_TRIALS = 10
"""The least number of different finished trials for importances."""

_NAMES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def summarize(study: SharedStudy, objectives: Sequence[str]) -> str:
    """Returns the summary of a study for the terminal."""
    trials = study.list_trials()
    repeats = {t.user_attrs[RETRY]: t.number for t in trials if RETRY in t.user_attrs}
    counts = Counter(_NAMES[t.state] for t in trials if t.number not in repeats)
    numbers = ", ".join(f"{number} {name}" for name, number in counts.items())
    lines = ["", f"study {study.name!r} in {study.folder}: {numbers}"]
    best = [] if not counts["finished"] else _remove_equal(study.study.best_trials)
    if len(objectives) > 1 and best:
        these = "this one" if len(best) == 1 else f"these {len(best)}"
        lines.append(f"no other trial beats {these} in all objectives:")
    for trial in sorted(best, key=lambda trial: trial.values):
        values = zip(objectives, trial.values, strict=True)
        lines += [
            f"trial {trial.number}: " + ", ".join(f"{name} {value:.5g}" for name, value in values),
            "  " + " ".join(f"{key}={value}" for key, value in trial.params.items()),
        ]
        folders = [study.folder / name for name in trial.user_attrs.get("folders", [])]
        lines += [f"  folder {shlex.quote(str(folder))}" for folder in folders]
    for trial in trials:
        if trial.state == TrialState.FAIL:
            again = f", repeated by trial {n}" if (n := repeats.get(trial.number)) else ""
            lines.append(f"failed trial {trial.number}{again}: {trial.user_attrs.get(FAILURE)}")
    return "\n".join(lines)


def _remove_equal(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the first of several trials with equal settings."""
    return list({str(trial.params): trial for trial in reversed(trials)}.values())


def write_summary(study: SharedStudy, objectives: Sequence[str], space: Space) -> None:
    """Writes ``study.json``: the trials and the importances of the settings."""
    trials = study.list_trials()
    # A setting that exists only under a choice is absent from the other trials.
    searched = [dimension.key for dimension in space.dimensions if not dimension.condition]
    content = {
        "study": study.name,
        "objectives": list(objectives),
        "directions": [direction.name.lower() for direction in study.study.directions],
        "trials": [_describe_trial(trial) for trial in trials],
        "importances": {
            name: _compute_importances(study, index, searched)
            for index, name in enumerate(objectives)
        },
        "best": [t.number for t in _remove_equal(study.study.best_trials)]
        if any(t.state == TrialState.COMPLETE for t in trials)
        else [],
    }
    write_whole(study.folder / "study.json", strict_json(content).encode())


def _describe_trial(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": _NAMES[trial.state],
        "values": trial.values if trial.state == TrialState.COMPLETE else None,
        "params": trial.params,
        "folders": trial.user_attrs.get("folders", []),
        "epochs": trial.last_step,
        "last": None if trial.last_step is None else trial.intermediate_values[trial.last_step],
        "retry_of": trial.user_attrs.get(RETRY),
        "failure": trial.user_attrs.get(FAILURE),
        "start": None if trial.datetime_start is None else trial.datetime_start.isoformat(),
        "seconds": None if trial.duration is None else trial.duration.total_seconds(),
    }


def _compute_importances(study: SharedStudy, index: int, searched: list[str]) -> dict[str, float]:
    """Returns the share of the variance of an objective that each setting explains."""
    finished = [trial for trial in study.list_trials() if trial.state == TrialState.COMPLETE]
    if len({str(trial.params) for trial in finished}) < _LEAST_TRIALS:
        return {}
    with suppress(ValueError, RuntimeError, ZeroDivisionError), without_advice():
        return dict(
            optuna.importance.get_param_importances(
                study.study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                params=searched,
                target=lambda trial: trial.values[index],
            )
        )
    return {}
