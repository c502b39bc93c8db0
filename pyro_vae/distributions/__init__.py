"""Distributions that Pyro lacks, or whose Pyro versions do not suit a VAE."""

from pyro_vae.distributions.beta import Beta
from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.distributions.full_normal import FullNormal
from pyro_vae.distributions.gamma import Gamma
from pyro_vae.distributions.given_row_sum import GivenRowSum
from pyro_vae.distributions.levels import Levels
from pyro_vae.distributions.mixed import Mixed
from pyro_vae.distributions.multinomial import Multinomial
from pyro_vae.distributions.negative_binomial import NegativeBinomial
from pyro_vae.distributions.poisson import Poisson
from pyro_vae.distributions.profile_normal import ProfileNormal
from pyro_vae.distributions.zero_inflated import ZeroInflated

__all__ = [
    "Beta",
    "ContinuousBernoulli",
    "FullNormal",
    "Gamma",
    "GivenRowSum",
    "Levels",
    "Mixed",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "ProfileNormal",
    "ZeroInflated",
]
