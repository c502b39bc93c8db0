"""A sweep's jobs, seen from outside."""

import json

__all__ = ["GRID", "JOBLIB", "SLOTS", "jobs", "results"]

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
SLOTS = ["hydra/launcher=slots", "hydra.launcher.devices=[cpu]", "hydra.launcher.jobs_per_device=2"]
GRID = [
    "-m",
    "vae/prior=normal,vamp",
    "vae/likelihood=normal,continuous_bernoulli",
    "vae.latent_dim=2,4,8",
    "objective=elbo,iwae",
    "data.binarize=none",
    "train.epochs=20",
    "train.checkpoint_seconds=0",
    "evaluate.num_particles=50",
    "evaluate.elbo_particles=10",
    "evaluate.baseline_components=3",
]
"""A sweep of 24 jobs for each seed."""


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
