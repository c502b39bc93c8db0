"""Priors: p(z), or p(z given covariates)."""

from pyro_vae.priors.autoregressive import Autoregressive
from pyro_vae.priors.dirichlet import Dirichlet
from pyro_vae.priors.flow import Flow
from pyro_vae.priors.gaussian_process import GaussianProcess
from pyro_vae.priors.laplace import Laplace
from pyro_vae.priors.logistic_normal import LogisticNormal
from pyro_vae.priors.mixture import Mixture
from pyro_vae.priors.normal import Normal
from pyro_vae.priors.one_hot import OneHot
from pyro_vae.priors.relaxed_one_hot import RelaxedOneHot
from pyro_vae.priors.student_t import StudentT
from pyro_vae.priors.uniform_sphere import UniformSphere
from pyro_vae.priors.vamp import Vamp

__all__ = [
    "Autoregressive",
    "Dirichlet",
    "Flow",
    "GaussianProcess",
    "Laplace",
    "LogisticNormal",
    "Mixture",
    "Normal",
    "OneHot",
    "RelaxedOneHot",
    "StudentT",
    "UniformSphere",
    "Vamp",
]
