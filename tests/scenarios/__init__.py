"""Larger models with a VAE inside, one per file, small enough for every inference."""

from importlib import import_module
from typing import Any

from scenarios.scenario import Scenario

TITLES = {
    "ss_vae": "Semi-supervised VAE (M2)",
    "air": "Attend, infer, repeat (AIR)",
    "cvae": "Conditional VAE (CVAE)",
    "scanvi": "scANVI",
    "dmm": "Deep Markov model (DMM)",
    "regression": "Regression on embeddings",
    "nested": "Three nested plates",
    "mixture": "Mixture of VAEs",
    "series": "Gaussian process VAE (GP-VAE)",
    "modalities": "Multimodal VAE (MVAE)",
    "topics": "Topic model (ProdLDA)",
    "causal": "Causal effect VAE (CEVAE)",
    "flow": "Normalizing flow as prior",
    "big": "Subsampled data plate",
    "after_training": "NUTS with a trained VAE",
    "bayesian": "Bayesian decoder",
}
"""The title of each scenario; a scenario is one file and one row of the table."""


def make(name: str) -> Scenario:
    """Returns a small instance of a scenario."""
    module: Any = import_module(f"scenarios.{name}")
    return module.make()
