"""Distributions that Pyro lacks, or whose Pyro versions do not suit a VAE."""

# Registers the KLs of these distributions.
from pyro_vae.distributions import divergences as _divergences  # noqa: F401
from pyro_vae.distributions.autoregressive import Autoregressive
from pyro_vae.distributions.beta import Beta
from pyro_vae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vae.distributions.dirichlet import Dirichlet
from pyro_vae.distributions.discretized_logistic import DiscretizedLogistic
from pyro_vae.distributions.flow import Flow
from pyro_vae.distributions.full_normal import FullNormal
from pyro_vae.distributions.gamma import Gamma
from pyro_vae.distributions.given_row_sum import GivenRowSum
from pyro_vae.distributions.levels import Levels
from pyro_vae.distributions.logistic_normal import LogisticNormal
from pyro_vae.distributions.low_rank_normal import LowRankNormal
from pyro_vae.distributions.mixed import Mixed
from pyro_vae.distributions.multinomial import Multinomial
from pyro_vae.distributions.negative_binomial import NegativeBinomial
from pyro_vae.distributions.one_hot import OneHot, StraightThroughOneHot
from pyro_vae.distributions.poisson import Poisson
from pyro_vae.distributions.power_spherical import PowerSpherical, UniformSphere
from pyro_vae.distributions.process import GaussianProcess
from pyro_vae.distributions.profile_normal import ProfileNormal
from pyro_vae.distributions.relaxed_one_hot import RelaxedOneHot
from pyro_vae.distributions.student_t import StudentT
from pyro_vae.distributions.zero_inflated import ZeroInflated

__all__ = [
    "Autoregressive",
    "Beta",
    "ContinuousBernoulli",
    "Dirichlet",
    "DiscretizedLogistic",
    "Flow",
    "FullNormal",
    "Gamma",
    "GaussianProcess",
    "GivenRowSum",
    "Levels",
    "LogisticNormal",
    "LowRankNormal",
    "Mixed",
    "Multinomial",
    "NegativeBinomial",
    "OneHot",
    "Poisson",
    "PowerSpherical",
    "ProfileNormal",
    "RelaxedOneHot",
    "StraightThroughOneHot",
    "StudentT",
    "UniformSphere",
    "ZeroInflated",
]
