"""Priors: p(z), or p(z given covariates)."""

from pyro_vae.priors.mixture import Mixture
from pyro_vae.priors.normal import Normal
from pyro_vae.priors.vamp import Vamp

__all__ = [
    "Mixture",
    "Normal",
    "Vamp",
]
