"""Likelihoods: families p(x given z)."""

from pyro_vae.likelihoods.bernoulli import Bernoulli
from pyro_vae.likelihoods.categorical import Categorical
from pyro_vae.likelihoods.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.likelihoods.normal import Normal

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "Normal",
]
