"""Posteriors: amortized families q(z given x)."""

from pyro_vae.posteriors.flow import Flow
from pyro_vae.posteriors.full import Full
from pyro_vae.posteriors.laplace import Laplace
from pyro_vae.posteriors.logistic_normal import LogisticNormal
from pyro_vae.posteriors.low_rank import LowRank
from pyro_vae.posteriors.normal import Normal
from pyro_vae.posteriors.one_hot import OneHot
from pyro_vae.posteriors.power_spherical import PowerSpherical
from pyro_vae.posteriors.relaxed_one_hot import RelaxedOneHot
from pyro_vae.posteriors.straight_through import StraightThrough
from pyro_vae.posteriors.student_t import StudentT

__all__ = [
    "Flow",
    "Full",
    "Laplace",
    "LogisticNormal",
    "LowRank",
    "Normal",
    "OneHot",
    "PowerSpherical",
    "RelaxedOneHot",
    "StraightThrough",
    "StudentT",
]
