"""One row for each member: how it is made, and all that the laws need to test it."""

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.infer
import torch
from scipy.optimize import minimize_scalar
from scipy.special import roots_legendre
from scipy.stats import nbinom
from torch import Tensor

from pyro_vae import likelihoods, networks, objectives, posteriors, priors
from pyro_vae.vae.build import build_part
from pyro_vae.vae.part_checks import check_supports

EVENT = (1, 8, 8)


@dataclass(frozen=True)
class Box:
    """A continuous support: the interval that holds all but 1e-8 of the mass, in each dimension."""

    low: float
    high: float
    nodes: int = 500
    measure: str = "density"
    panels: int = 1
    """The number of equal parts of the interval, each with its own nodes."""
    finer: int = 1
    """The factor of the number of parts in one dimension."""
    substitute: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    """A change of variables, from the interval to the values and their derivatives."""

    def grid(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns points and weights of Gauss and Legendre, in double precision."""
        x, w = (torch.as_tensor(v, dtype=torch.float64) for v in roots_legendre(self.nodes))
        panels = self.panels * (self.finer if size == 1 else 1)
        width = (self.high - self.low) / panels
        starts = self.low + width * torch.arange(panels, dtype=torch.float64)[:, None]
        x = (starts + width * (x + 1) / 2).flatten()
        w = (w * width / 2).repeat(panels)
        if self.substitute is not None:
            x, slope = self.substitute(x)
            w = w * slope
        points = torch.cartesian_prod(*[x] * size).reshape(-1, size)
        return points, torch.cartesian_prod(*[w] * size).reshape(-1, size).prod(-1)


@dataclass(frozen=True)
class Points:
    """A finite support: the values of one element."""

    values: tuple[float, ...]
    measure: str = "mass"

    def grid(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns all points, each of weight one, in double precision."""
        x = torch.tensor(self.values, dtype=torch.float64)
        points = torch.cartesian_prod(*[x] * size).reshape(-1, size)
        return points, torch.ones(len(points), dtype=torch.float64)


@dataclass(frozen=True)
class Simplex:
    """The simplex: log ratios to the last element within a bound, which holds all but 1e-6."""

    bound: float = 40.0
    nodes: int = 400
    measure: str = "density"

    def grid(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns points of vectors that sum to one, and weights for their density."""
        ratios, weights = Box(-self.bound, self.bound, self.nodes).grid(size - 1)
        points = torch.cat([ratios, torch.zeros_like(ratios[:, :1])], -1).softmax(-1)
        return points, weights * points.prod(-1)


@dataclass(frozen=True)
class Sphere:
    """The circle or the sphere, with weights by length or area."""

    nodes: int = 400
    measure: str = "density"

    def grid(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns points and weights in spherical coordinates."""
        angle, weights = Box(-math.pi, math.pi, self.nodes).grid(1)
        circle = torch.cat([angle.cos(), angle.sin()], -1)
        if size == 2:
            return circle, weights
        height, heights = Box(-1.0, 1.0, self.nodes).grid(1)
        radius = (1 - height**2).sqrt()
        points = torch.cat(
            [
                (radius[:, None] * circle).flatten(0, 1),
                height.repeat_interleave(len(circle), 0),
            ],
            -1,
        )
        return points, (heights[:, None] * weights).flatten()


@dataclass(frozen=True)
class Codes:
    """All codes of one-hot variables."""

    variables: int = 1
    measure: str = "mass"

    def grid(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns all codes, each of weight one."""
        eye = torch.eye(size // self.variables, dtype=torch.float64)
        index = torch.cartesian_prod(*[torch.arange(len(eye))] * self.variables)
        points = eye[index.reshape(-1, self.variables)].flatten(1)
        return points, torch.ones(len(points), dtype=torch.float64)


Support = Box | Simplex | Sphere | Codes


@dataclass(frozen=True)
class PriorRow:
    """A prior: a factory, and the support of a prior off its starting values."""

    make: Callable[..., Any]
    support: Support = Box(-10.0, 10.0)
    factorized: bool = False
    """Whether dimensions of z are independent, with known marginals."""
    normal: bool = False
    """Whether it is a diagonal normal, to which the KL of a normal has a closed form."""
    dim: int = 3
    """The size of z in the laws."""
    sizes: tuple[int, ...] = (1, 2)
    """The sizes of z in quadratures."""
    error: float = 1e-6
    """The error of the quadrature."""
    mean_error: float = 1e-5
    """The error of mean and variance, which some distributions estimate."""


@dataclass(frozen=True)
class PosteriorRow:
    """A posterior: a factory, and the support of a posterior with features of unit size."""

    make: Callable[..., Any]
    support: Support = Box(-11.0, 11.0, 600)
    factorized: bool = False
    """Whether dimensions of z are independent given x, with known marginals."""
    normal: bool = False
    """Whether it is normal: its KL to a diagonal normal has a closed form."""
    pyro_kl: bool = False
    """Whether Pyro has this closed form too."""
    unit: float = 1.0
    """The size of the features in quadratures."""
    dim: int = 3
    sizes: tuple[int, ...] = (1, 2)
    error: float = 1e-5
    mean_error: float = 1e-4


@dataclass(frozen=True)
class Mixture:
    """What the mixture baseline of a likelihood is tested against."""

    one_component: Callable[[Tensor], Tensor]
    """The mean log density of rows under the maximum likelihood fit of one component."""
    pseudo_rows: Callable[[Tensor], Tensor] | None = None
    """The rows that a pseudo-count of two stands for, if there are such rows."""


@dataclass(frozen=True)
class LikelihoodRow:
    """A likelihood: a factory, its data and support, values that it refuses, and its baseline."""

    make: Callable[..., Any]
    data: Callable[[Tensor], Tensor]
    """Maps integers from 0 to 16 to data that the likelihood supports."""
    support: Box | Points
    refused: tuple[float, ...]
    message: str
    """A pattern of the error for refused values."""
    mixture: Mixture | None
    factorized: bool = True
    """Whether elements are scored independently, in training too."""
    given_sum: bool = False
    """Whether the density is conditional on the sum of the row."""
    heavy: bool = False
    """Whether draws are too rarely large for an estimate of their variance."""


def _sinh(u: Tensor) -> tuple[Tensor, Tensor]:
    return u.sinh(), u.cosh()


_TAILS = Box(-14.0, 14.0, 20, panels=40, substitute=_sinh)
"""Real numbers with heavy tails; the kinks of densities are at the ends of its panels or inside."""

_KNOTS = Box(-10.0, 10.0, 3, panels=80, finer=50)
"""Real numbers whose densities have kinks at the knots of splines."""

PRIOR_ROWS = {
    "normal": PriorRow(priors.Normal, factorized=True, normal=True),
    "normal_learned": PriorRow(partial(priors.Normal, learned=True), factorized=True, normal=True),
    "mixture": PriorRow(partial(priors.Mixture, components=4)),
    "vamp": PriorRow(partial(priors.Vamp, components=6)),
    "laplace": PriorRow(priors.Laplace, _TAILS, factorized=True),
    "laplace_learned": PriorRow(
        partial(priors.Laplace, learned=True), _TAILS, factorized=True, error=1e-3, mean_error=1e-3
    ),
    "student_t": PriorRow(
        partial(priors.StudentT, df=6.0, learned=True), _TAILS, factorized=True
    ),
    "flow": PriorRow(
        partial(priors.Flow, hidden=[8], transforms=2, bins=4), _KNOTS, error=2e-3, mean_error=0.05
    ),
    "flow_affine": PriorRow(
        partial(priors.Flow, hidden=[8], transforms=2, family="affine"), _TAILS, mean_error=0.05
    ),
    "gaussian_process": PriorRow(
        partial(priors.GaussianProcess, kernel="matern32", learned=True), factorized=True
    ),
    "logistic_normal": PriorRow(
        partial(priors.LogisticNormal, learned=True), Simplex(), sizes=(2, 3), mean_error=0.02
    ),
    "dirichlet": PriorRow(priors.Dirichlet, Simplex(), sizes=(2, 3)),
    "dirichlet_learned": PriorRow(
        partial(priors.Dirichlet, concentration=0.8, learned=True), Simplex(), sizes=(2, 3)
    ),
    "uniform_sphere": PriorRow(priors.UniformSphere, Sphere(), sizes=(2, 3)),
    "one_hot": PriorRow(priors.OneHot, Codes(), sizes=(2, 5)),
    "one_hot_several": PriorRow(
        partial(priors.OneHot, variables=2, learned=True), Codes(2), dim=6, sizes=(4, 6)
    ),
    "relaxed_one_hot": PriorRow(
        partial(priors.RelaxedOneHot, learned=True), Simplex(80.0, 600), sizes=(2, 3),
        mean_error=0.02,
    ),
    "autoregressive": PriorRow(
        partial(priors.Autoregressive, variables=2, hidden=[8]), Codes(2), dim=6, sizes=(4, 6)
    ),
}  # fmt: skip

POSTERIOR_ROWS = {
    "normal": PosteriorRow(posteriors.Normal, factorized=True, normal=True, pyro_kl=True),
    "full": PosteriorRow(posteriors.Full, normal=True),
    "low_rank": PosteriorRow(partial(posteriors.LowRank, rank=2), normal=True),
    "laplace": PosteriorRow(
        posteriors.Laplace, _TAILS, factorized=True, error=2e-3, mean_error=2e-3
    ),
    "student_t": PosteriorRow(partial(posteriors.StudentT, df=6.0), _TAILS, factorized=True),
    "flow": PosteriorRow(
        partial(posteriors.Flow, hidden=[8], context=3, bins=4),
        _KNOTS,
        unit=0.3,
        error=5e-3,
        mean_error=0.05,
    ),
    "flow_affine": PosteriorRow(
        partial(posteriors.Flow, hidden=[8], context=3, family="affine", passes=2),
        _TAILS,
        error=1e-4,
        mean_error=0.05,
    ),
    "power_spherical": PosteriorRow(posteriors.PowerSpherical, Sphere(), sizes=(2, 3), error=1e-4),
    "logistic_normal": PosteriorRow(
        posteriors.LogisticNormal, Simplex(), sizes=(2, 3), mean_error=0.02
    ),
    "one_hot": PosteriorRow(posteriors.OneHot, Codes(), sizes=(2, 5)),
    "one_hot_several": PosteriorRow(
        partial(posteriors.OneHot, variables=2), Codes(2), dim=6, sizes=(4, 6)
    ),
    "straight_through": PosteriorRow(posteriors.StraightThrough, Codes(), sizes=(2, 5)),
    "straight_through_several": PosteriorRow(
        partial(posteriors.StraightThrough, variables=2), Codes(2), dim=6, sizes=(4, 6)
    ),
    "relaxed_one_hot": PosteriorRow(
        posteriors.RelaxedOneHot, Simplex(80.0, 600), sizes=(2, 3), mean_error=0.02
    ),
    "relaxed_one_hot_several": PosteriorRow(
        partial(posteriors.RelaxedOneHot, variables=2), Simplex(), dim=6, sizes=()
    ),
}

PRIORS = {name: row.make for name, row in PRIOR_ROWS.items()}
POSTERIORS = {name: row.make for name, row in POSTERIOR_ROWS.items()}

FEW_PRIORS = {name: PRIORS[name] for name in ("normal", "normal_learned", "mixture", "vamp")}
FEW_POSTERIORS = {name: POSTERIORS[name] for name in ("normal", "full")}
"""Members on real vectors, for tests of all pairs with other parts."""


def find_pairs() -> list[tuple[str, str]]:
    """Returns the rows of priors and posteriors that fit each other."""
    made = {}
    for role, rows in (("prior", PRIOR_ROWS), ("posterior", POSTERIOR_ROWS)):
        for name, row in rows.items():
            sizes = {"latent_dim": row.dim, "event_shape": EVENT}
            made[role, name] = build_part(row.make, role, **sizes)
    fits = []
    for prior, posterior in itertools.product(PRIOR_ROWS, POSTERIOR_ROWS):
        with contextlib.suppress(ValueError):
            check_supports(made["prior", prior], made["posterior", posterior])
            fits.append((prior, posterior))
    return fits


def _grey(levels: Tensor) -> Tensor:
    return levels / 16


def _binary(levels: Tensor) -> Tensor:
    return (levels > 8).float()


def _fit_bernoulli(x: Tensor) -> Tensor:
    p = x.mean(0)
    return -(torch.special.entr(p) + torch.special.entr(1 - p)).sum()


def _fit_continuous_bernoulli(x: Tensor) -> Tensor:
    # The mean log density is concave in the logit: a grid around the best of a coarser grid.
    mean = x.mean(0)

    def score(logits: Tensor) -> Tensor:
        safe = torch.where(logits.abs() < 1e-3, 1e-3, logits)
        log_constant = (safe / torch.expm1(safe)).log()
        taylor = -logits / 2 - logits**2 / 24
        return logits * mean + torch.where(logits.abs() < 1e-3, taylor, log_constant)

    best, width = torch.zeros_like(mean), 20.0
    for _ in range(6):
        logits = best + width * torch.linspace(-1, 1, 201, dtype=x.dtype)[:, None]
        best, width = logits.gather(0, score(logits).argmax(0, keepdim=True))[0], width / 20
    return score(best).sum()


def _fit_normal(compute_scale: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    return torch.distributions.Normal(x.mean(0), compute_scale(x)).log_prob(x).sum(1).mean()


def _fit_levels(x: Tensor) -> Tensor:
    counts = torch.stack([(x * 16 == level).double().mean(0) for level in range(17)])
    return -torch.special.entr(counts).sum()


def _pooled(x: Tensor) -> Tensor:
    return (x - x.mean(0)).pow(2).mean().sqrt()


def _each(x: Tensor) -> Tensor:
    return x.std(0, correction=0)


def _zeros_and_ones(x: Tensor) -> Tensor:
    return torch.tensor([[0.0], [0.0], [1.0], [1.0]]).expand(4, x.shape[1])


def _means(x: Tensor) -> Tensor:
    return x.mean(0).expand(2, -1)


def _normal_row(scale: Any, best: Callable[[Tensor], Any], **options: Any) -> LikelihoodRow:
    return LikelihoodRow(
        partial(likelihoods.Normal, scale=scale),
        _grey,
        Box(-25.0, 25.0, 800),
        refused=(math.nan, math.inf, -math.inf),
        message="finite",
        mixture=Mixture(partial(_fit_normal, best), _means),
        **options,
    )


def _half(levels: Tensor) -> Tensor:
    return levels / 16 + 0.5


def _inner(levels: Tensor) -> Tensor:
    return (levels + 1) / 18


def _counts(levels: Tensor) -> Tensor:
    return levels.float()


def _exp(u: Tensor) -> tuple[Tensor, Tensor]:
    return u.exp(), u.exp()


def _sigmoid(u: Tensor) -> tuple[Tensor, Tensor]:
    return u.sigmoid(), u.sigmoid() * (-u).sigmoid()


COUNTS = Points(tuple(map(float, range(6000))))
NOT_COUNTS = (-1.0, 0.5, math.nan, math.inf)
REALS = Box(-30.0, 30.0, 20, panels=20_000, substitute=_sinh)
POSITIVE = Box(-700.0, 25.0, 20, panels=500, substitute=_exp)


def _fit_poisson(x: Tensor) -> Tensor:
    return torch.distributions.Poisson(x.mean(0)).log_prob(x).sum(1).mean()


def _fit_negative_binomial(x: Tensor) -> float:
    total = 0.0
    for column in x.double().numpy().T:
        mean = column.mean()

        def loss(log_theta, column=column, mean=mean):
            theta = math.exp(log_theta)
            return -nbinom.logpmf(column, theta, theta / (theta + mean)).mean()

        total -= minimize_scalar(loss, bounds=(-7, 14), method="bounded").fun
    return total


def _fit_log_normal(x: Tensor) -> Tensor:
    return _fit_normal(_each, x.log()) - x.log().sum(1).mean()


def _discretized_row(**options: Any) -> LikelihoodRow:
    # A narrow element far off the range has one level in all draws, and no standard error.
    return LikelihoodRow(
        partial(likelihoods.DiscretizedLogistic, levels=17, min_scale=0.2, **options),
        _grey,
        Points(tuple(level / 16 for level in range(17))),
        refused=(0.03, 255.0, -1 / 16, 17 / 16, math.nan, math.inf),
        message="17 levels",
        mixture=None,
    )


def _count_row(make: Callable[..., Any], mixture: Mixture | None = None, **options: Any):
    return LikelihoodRow(make, _counts, COUNTS, NOT_COUNTS, "counts", mixture, **options)


def _real_row(make: Callable[..., Any], **options: Any) -> LikelihoodRow:
    refused = (math.nan, math.inf, -math.inf)
    return LikelihoodRow(make, _grey, REALS, refused, "finite", None, **options)


def _positive_row(make: Callable[..., Any], mixture: Mixture | None = None, **options: Any):
    refused = (0.0, -1.0, math.nan, math.inf)
    return LikelihoodRow(make, _half, POSITIVE, refused, "positive", mixture, **options)


_NB, _ZINB = likelihoods.NegativeBinomial, likelihoods.ZeroInflatedNegativeBinomial

LIKELIHOOD_ROWS = {
    "bernoulli": LikelihoodRow(
        likelihoods.Bernoulli,
        _binary,
        Points((0.0, 1.0)),
        refused=(0.5, -1.0, 2.0, math.nan, math.inf),
        message="zeros and ones",
        mixture=Mixture(_fit_bernoulli, _zeros_and_ones),
    ),
    "bernoulli_grey": LikelihoodRow(
        partial(likelihoods.Bernoulli, grey_scale=True),
        _grey,
        Points((0.0, 1.0)),
        refused=(-0.1, 1.1, math.nan, math.inf),
        message="zeros and ones",
        mixture=None,
    ),
    "continuous_bernoulli": LikelihoodRow(
        likelihoods.ContinuousBernoulli,
        _grey,
        Box(0.0, 1.0, 200),
        refused=(-0.1, 1.1, math.nan, math.inf),
        message=r"\[0, 1\]",
        mixture=Mixture(_fit_continuous_bernoulli, lambda x: torch.full((2, x.shape[1]), 0.5)),
    ),
    "normal_fixed": _normal_row(0.5, lambda x: 0.5),
    "normal_shared": _normal_row("shared", _pooled),
    "normal_element": _normal_row("element", _each),
    "normal_network": _normal_row("network", _each),
    "normal_optimal": _normal_row("optimal", _pooled, factorized=False),
    "categorical": LikelihoodRow(
        partial(likelihoods.Categorical, levels=17),
        _grey,
        Points(tuple(level / 16 for level in range(17))),
        refused=(0.03, 255.0, -1 / 16, 17 / 16, math.nan, math.inf),
        message="17 levels",
        mixture=Mixture(_fit_levels),
    ),
}
LIKELIHOOD_ROWS |= {
    "discretized_logistic": _discretized_row(),
    "discretized_logistic_mixture": _discretized_row(components=3),
    "discretized_logistic_element": _discretized_row(scale="element"),
    "poisson": _count_row(likelihoods.Poisson, Mixture(_fit_poisson)),
    "negative_binomial": _count_row(_NB, Mixture(_fit_negative_binomial)),
    "negative_binomial_network": _count_row(
        partial(_NB, inverse_dispersion="network"), Mixture(_fit_negative_binomial)
    ),
    "zero_inflated_negative_binomial": _count_row(_ZINB),
    "zero_inflated_element": _count_row(
        partial(_ZINB, inverse_dispersion="shared", zero_inflation="element")
    ),
    "zero_inflated_row_sum": _count_row(
        partial(_ZINB, inverse_dispersion="network", size_factor="row_sum"), given_sum=True
    ),
    "poisson_row_sum": _count_row(
        partial(likelihoods.Poisson, size_factor="row_sum"), given_sum=True
    ),
    "multinomial": _count_row(likelihoods.Multinomial, given_sum=True),
    "laplace": _real_row(partial(likelihoods.Laplace, scale="element")),
    "student_t": _real_row(partial(likelihoods.StudentT, scale="network", df=10.0)),
    "student_t_network": _real_row(
        partial(likelihoods.StudentT, scale="element", df="network", standardize=True), heavy=True
    ),
    "log_normal": _positive_row(
        partial(likelihoods.LogNormal, scale="network"), Mixture(_fit_log_normal), heavy=True
    ),
    "gamma": _positive_row(partial(likelihoods.Gamma, concentration="element")),
    "gamma_network": _positive_row(
        partial(likelihoods.Gamma, concentration="network", standardize=False)
    ),
    "beta": LikelihoodRow(
        partial(likelihoods.Beta, concentration=30.0),
        _inner,
        Box(-60.0, 36.0, 2000, substitute=_sigmoid),
        refused=(0.0, 1.0, -0.1, 1.1, math.nan),
        message="between 0 and 1",
        mixture=None,
    ),
    "normal_standardized": LikelihoodRow(
        partial(likelihoods.Normal, scale="element", standardize=True),
        _grey,
        Box(-25.0, 25.0, 800),
        refused=(math.nan, math.inf, -math.inf),
        message="finite",
        mixture=Mixture(partial(_fit_normal, _each), _means),
    ),
}
LIKELIHOODS = {name: row.make for name, row in LIKELIHOOD_ROWS.items()}

TABLE_LIKELIHOODS = {
    "columns": partial(
        likelihoods.Columns,
        columns=[("length", "real"), ("colour", "categorical", ("red", "green", "blue"))],
    )
}
"""Likelihoods whose data have a fixed shape, which tests/parts/test_columns.py tests."""

FEW_LIKELIHOODS = (
    "bernoulli", "categorical", "continuous_bernoulli", "gamma", "negative_binomial",
    "normal_optimal", "normal_shared", "zero_inflated_row_sum",
)  # fmt: skip
"""One likelihood for each way of scoring, for tests of all pairs with other parts."""

NETWORKS = {
    "mlp": (partial(networks.MLP, hidden=[16]), partial(networks.MLP, hidden=[16])),
    "mlp_batch_norm": (
        partial(networks.MLP, hidden=[16], batch_norm=True),
        partial(networks.MLP, hidden=[16], batch_norm=True),
    ),
    "conv": (
        partial(networks.ConvEncoder, channels=[4, 8], hidden=16),
        partial(networks.ConvDecoder, channels=[4, 8], hidden=16),
    ),
    "conv_batch_norm": (
        partial(networks.ConvEncoder, channels=[4, 8], hidden=16, batch_norm=True),
        partial(networks.ConvDecoder, channels=[4, 8], hidden=16, batch_norm=True),
    ),
    "residual_mlp": (
        partial(networks.ResidualMLP, width=16),
        partial(networks.ResidualMLP, width=16),
    ),
    "gated_mlp": (partial(networks.GatedMLP, hidden=[16]), partial(networks.GatedMLP, hidden=[16])),
    "residual_conv": (
        partial(networks.ResidualConvEncoder, channels=[4, 8], hidden=16),
        partial(networks.ResidualConvDecoder, channels=[4, 8], hidden=16),
    ),
    "gru": (
        partial(networks.GRUEncoder, hidden=8, time_dim=1),
        partial(networks.GRUDecoder, hidden=8, time_dim=2),
    ),
    "transformer": (
        partial(networks.TransformerEncoder, width=8, heads=2, layers=1, time_dim=1),
        partial(networks.TransformerDecoder, width=8, heads=2, layers=1, time_dim=2),
    ),
    "embedding": (
        partial(networks.Embedding, levels=17, dim=3, options={"hidden": [16]}),
        partial(networks.MLP, hidden=[16]),
    ),
    "module": (
        partial(networks.Module, path="pyro_vae.networks.MLP", arguments={"hidden": [16]}),
        partial(networks.Module, path="pyro_vae.networks.MLP", arguments={"hidden": [16]}),
    ),
}

FEW_NETWORKS = ("mlp", "mlp_batch_norm", "conv", "conv_batch_norm")
"""Networks with and without running statistics, for tests of all pairs with other parts."""

OBJECTIVES = {
    "trace": pyro.infer.Trace_ELBO,
    "trace_mean_field": pyro.infer.TraceMeanField_ELBO,
    "elbo": objectives.ELBO,
    "elbo_sampled": partial(objectives.ELBO, 3, analytic=False),
    "elbo_stl": partial(objectives.ELBO, estimator="stl"),
    "capacity": partial(objectives.Capacity, capacity=0.1),
    "free_bits": partial(objectives.FreeBits, nats=1e-4, per="site"),
    "geco": partial(objectives.GECO, target=10.0),
    "iwae": partial(objectives.IWAE, 4),
    "iwae_stl": partial(objectives.IWAE, 4, estimator="stl"),
    "iwae_dreg": partial(objectives.IWAE, 4, estimator="dreg"),
    "ciwae": partial(objectives.CIWAE, 4),
    "miwae": partial(objectives.MIWAE, 6, groups=3),
    "piwae": partial(objectives.PIWAE, 6, groups=3),
    "renyi": partial(objectives.Renyi, 4, alpha=0.5),
    "vr_max": partial(objectives.Renyi, 4, alpha=-float("inf")),
    "jackknife": partial(objectives.Jackknife, 4),
}

DISCRETE_OBJECTIVES = {"trace_enum": partial(pyro.infer.TraceEnum_ELBO, max_plate_nesting=1)}
"""Objectives of one-hot posteriors only, which tests/parts/test_discrete.py tests."""


def data_for(likelihood: str, rows: int = 12, event=EVENT) -> Tensor:
    """Returns data that a likelihood of the table supports."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 17, (rows, *event), generator=generator)
    return LIKELIHOOD_ROWS[likelihood].data(levels)


def given(covariates: Tensor | None) -> dict[str, Tensor]:
    """Returns covariates as model and guide take them."""
    return {} if covariates is None else {"covariates": covariates}
