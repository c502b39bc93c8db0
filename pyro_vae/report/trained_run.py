"""A trained run, before its results are written."""

from typing import Any, NamedTuple

from omegaconf import DictConfig

from pyro_vae.data import Data
from pyro_vae.training.single import FitResult
from pyro_vae.vae.vae import VAE

__all__ = ["TrainedRun"]


class TrainedRun(NamedTuple):
    """The configuration, the data and the result of a run, from which its report is made."""

    cfg: DictConfig
    data: Data
    vae: VAE
    objective: Any
    result: FitResult
