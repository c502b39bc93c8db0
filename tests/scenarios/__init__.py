"""Larger models with a VAE inside, each in a file of its own, small enough for any inference."""

from importlib import import_module
from typing import Any

from scenarios.scenario import Scenario

TITLES = {
    "ss_vae": "semi-supervised, class enumerated",
    "air": "several objects, found in a loop",
    "cvae": "missing half of a picture",
    "scanvi": "two latent levels, cell types",
    "dmm": "deep Markov model, ragged",
    "regression": "codes as regressors",
    "nested": "three nested plates",
    "mixture": "mixture of VAEs",
    "series": "Gaussian process over time",
    "modalities": "two modalities, one missing",
    "topics": "topics of counts",
    "causal": "causal effect, hidden confounder",
    "flow": "normalizing flow as prior",
    "big": "subsampled rows",
    "after_training": "the posterior after training",
    "bayesian": "Bayesian decoder",
}
"""The scenarios, a file and a row of the table each."""


def make(name: str) -> Scenario:
    """Returns a small instance of a scenario."""
    module: Any = import_module(f"scenarios.{name}")
    return module.make()
