"""Distributions that Pyro lacks, or whose Pyro versions do not suit a VAE."""

from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.distributions.full_normal import FullNormal
from pyro_vae.distributions.levels import Levels
from pyro_vae.distributions.profile_normal import ProfileNormal

__all__ = ["ContinuousBernoulli", "FullNormal", "Levels", "ProfileNormal"]
