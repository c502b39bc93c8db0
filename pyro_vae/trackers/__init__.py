"""Trackers of runs: they log settings, epochs, final metrics and figures to other programs."""

from pyro_vae.trackers.mlflow import MLflowTracker
from pyro_vae.trackers.protocol import PrunedError, RunTracker, TrackedRun
from pyro_vae.trackers.tensorboard import TensorBoardTracker
from pyro_vae.trackers.values import flatten, split_metrics
from pyro_vae.trackers.wandb import WandbTracker

__all__ = [
    "MLflowTracker",
    "PrunedError",
    "RunTracker",
    "TensorBoardTracker",
    "TrackedRun",
    "WandbTracker",
    "flatten",
    "split_metrics",
]
