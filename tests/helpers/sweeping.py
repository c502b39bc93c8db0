"""A sweep's jobs, seen from outside."""

import json

__all__ = ["JOBLIB", "SLOTS", "jobs", "results"]

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SLOTS = ["hydra/launcher=slots", "hydra.launcher.devices=[cpu]", "hydra.launcher.jobs_per_device=2"]


def jobs(sweep):
    """Returns the folders of a sweep's jobs by name."""
    return {p.name: p for p in sweep.iterdir() if p.is_dir() and p.name[0] != "."}


def results(sweep):
    """Returns all that a sweep's jobs computed, to the bit, less what the clock decides."""
    found = {}
    for name, place in jobs(sweep).items():
        metrics = json.loads((place / "metrics.json").read_text())
        metrics.pop("seconds")
        history, weights = (place / f for f in ("history.csv", "model.safetensors"))
        found[name] = metrics, history.read_bytes(), weights.read_bytes()
    return found
