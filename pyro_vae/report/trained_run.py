"""A trained run, before it is written down."""

from typing import Any, NamedTuple

from omegaconf import DictConfig

from pyro_vae.data import Data
from pyro_vae.training.single import FitResult
from pyro_vae.vae.vae import VAE

__all__ = ["Run"]


class Run(NamedTuple):
    """Everything that a run has made before it is written down."""

    cfg: DictConfig
    data: Data
    vae: VAE
    objective: Any
    result: FitResult
