"""Guides at the edges: moving supports, parts without a gradient, joint draws, drawn rows."""

from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.testing.rejection_gamma import RejectionGamma
from pyro.distributions.torch_transform import TransformModule
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGaussian,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.poutine.guide import GuideMessenger
from torch.distributions import transforms

from helpers.truths import SIGMAS
from pyro_vae.objectives import (
    CIWAE,
    ELBO,
    GECO,
    IWAE,
    MIWAE,
    PIWAE,
    Capacity,
    FreeBits,
    Jackknife,
    Renyi,
)
from pyro_vae.objectives.core.support import check_fixed_support

WEIGHTED = {
    "iwae": partial(IWAE, 4),
    "ciwae": partial(CIWAE, 4),
    "miwae": partial(MIWAE, 4, groups=2),
    "piwae": partial(PIWAE, 4, groups=2),
    "renyi": partial(Renyi, 4),
    "jackknife": partial(Jackknife, 4),
}


def shifted(base, loc, scale=1.0):
    return dist.TransformedDistribution(base, [transforms.AffineTransform(loc, scale)])


class Learned(TransformModule):
    """A transform of the unit interval onto itself, by a module's parameter."""

    bijective, sign = True, 1
    domain = codomain = constraints.real

    def __init__(self, power):
        super().__init__()
        self.power = torch.nn.Parameter(power.detach().clone())

    def _call(self, x):
        return x + self.power

    def _inverse(self, y):
        return y - self.power

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


class Powers(TransformModule):
    """A transform of the simplex onto itself, by a module's parameter."""

    bijective = True
    domain = codomain = constraints.simplex

    def __init__(self, power):
        super().__init__()
        self.power = torch.nn.Parameter(power.detach().clone())


class OfProduct(Powers):
    """A transform of a product of two supports."""

    domain = constraints.stack([constraints.positive, constraints.real], -1)
    codomain = constraints.stack([constraints.real, constraints.real], -1)


class Stacked(dist.Normal):
    """A distribution over another product of two supports."""

    support = constraints.stack([constraints.unit_interval, constraints.real], -1)


def two_sample(a, b):
    """The difference of two means, in standard errors."""
    error = (a.var() / len(a) + b.var() / len(b)).sqrt()
    return ((a.mean() - b.mean()) / error).item()


unit = partial(dist.Uniform, 0.0, 1.0)

FIXED = {
    "normal": lambda p: dist.Normal(p, p),
    "uniform with given bounds": lambda p: shifted(unit(), 0.5, 2.0),
    "gamma": lambda p: dist.Gamma(p, p),
    "beta": lambda p: dist.Beta(p, 2.0),
    "lognormal": lambda p: dist.LogNormal(p, p),
    "weibull": lambda p: dist.Weibull(p, 1.5),
    "gumbel": lambda p: dist.Gumbel(p, 1.0),
    "kumaraswamy": lambda p: dist.Kumaraswamy(p, 1.5),
    "half normal": lambda p: dist.HalfNormal(p),
    "scaled exponential": lambda p: shifted(dist.Exponential(1.0), 0, p),
    "power of an exponential": lambda p: dist.TransformedDistribution(
        dist.Exponential(torch.ones(())), [transforms.PowerTransform(p)]
    ),
    "shifted logarithm of a gamma": lambda p: dist.TransformedDistribution(
        dist.Gamma(2.0, 1.0), [transforms.ExpTransform().inv, transforms.AffineTransform(p, p)]
    ),
    "logit of a beta, shifted": lambda p: dist.TransformedDistribution(
        dist.Beta(2.0, 2.0), [transforms.SigmoidTransform().inv, transforms.AffineTransform(p, p)]
    ),
    "sigmoid of a shifted normal": lambda p: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0),
        [
            transforms.ComposeTransform(
                [transforms.AffineTransform(p, p), transforms.SigmoidTransform()]
            )
        ],
    ),
    "scaled sigmoid, by numbers": lambda p: dist.TransformedDistribution(
        dist.Normal(p, 1.0), [transforms.SigmoidTransform(), transforms.AffineTransform(1.0, 3.0)]
    ),
    "independent transform": lambda p: dist.TransformedDistribution(
        dist.Normal(p, 1.0), [transforms.IndependentTransform(transforms.SigmoidTransform(), 0)]
    ),
    "module over a line": lambda p: dist.TransformedDistribution(dist.Normal(p, 1.0), [Learned(p)]),
    "module over a simplex": lambda p: dist.TransformedDistribution(
        dist.Dirichlet(torch.ones(3)), [Powers(p)]
    ),
}

MOVING = {
    "uniform": lambda p: dist.Uniform(-p, p),
    "pareto": lambda p: dist.Pareto(p, 2.0),
    "generalized pareto": lambda p: dist.GeneralizedPareto(p, 1.0, 0.1),
    "affine beta": lambda p: dist.AffineBeta(torch.ones(()), torch.ones(()), p, 1.0),
    "shifted uniform": lambda p: shifted(unit(), p),
    "scaled uniform": lambda p: shifted(unit(), 0.0, p),
    "shifted beta": lambda p: shifted(dist.Beta(1.0, 1.0), p),
    "shifted exponential": lambda p: shifted(dist.Exponential(1.0), p),
    "shifted half normal": lambda p: shifted(dist.HalfNormal(1.0), p),
    "exponential of an exponential, scaled": lambda p: dist.TransformedDistribution(
        dist.Exponential(2.0), [transforms.ExpTransform(), transforms.AffineTransform(0, p)]
    ),
    "tanh, scaled": lambda p: dist.TransformedDistribution(
        dist.Uniform(-5.0, 5.0), [transforms.TanhTransform(), transforms.AffineTransform(0.0, p)]
    ),
    "independent": lambda p: dist.Uniform(-p.expand(3), p).to_event(1),
    "composed": lambda p: dist.TransformedDistribution(
        unit(), [transforms.ComposeTransform([transforms.AffineTransform(p, 1.0)])]
    ),
    "inverse": lambda p: dist.TransformedDistribution(
        unit(), [transforms.AffineTransform(p, 1.0).inv]
    ),
    "independent transform": lambda p: dist.TransformedDistribution(
        unit().expand([1]), [transforms.IndependentTransform(transforms.AffineTransform(p, 1.0), 1)]
    ),
    "masked": lambda p: dist.Uniform(-p, p).mask(torch.tensor(True)),
    "module over another product": lambda p: dist.TransformedDistribution(
        Stacked(torch.zeros(2), 1.0).to_event(1), [OfProduct(p)]
    ),
    "module over an interval": lambda p: dist.TransformedDistribution(unit(), [Learned(p)]),
}


def mean_score(make, draws=200_000):
    """The mean score over draws, and its standard error; a parameter for each draw."""
    torch.manual_seed(0)
    p = torch.full((draws,), 1.3, dtype=torch.float64, requires_grad=True)
    fn = make(p)
    value = fn.sample(fn.batch_shape[:0] if fn.batch_shape else (draws,)).detach()
    score = torch.autograd.grad(fn.log_prob(value).sum(), p)[0]
    return score.mean(), score.std() / draws**0.5


@pytest.mark.parametrize("name", FIXED)
def test_a_support_that_no_parameter_moves_is_accepted(name):
    check_fixed_support("z", FIXED[name](torch.tensor(1.3, requires_grad=True)))
    if "module" not in name and "given" not in name:
        mean, error = mean_score(FIXED[name])
        assert abs(mean) < SIGMAS * error


@pytest.mark.parametrize("name", MOVING)
def test_a_support_that_a_parameter_moves_is_refused(name):
    with pytest.raises(ValueError, match="does not depend on parameters"):
        check_fixed_support("z", MOVING[name](torch.tensor(1.3, requires_grad=True)))


@pytest.mark.parametrize("name", ["uniform", "pareto", "scaled uniform", "shifted exponential"])
def test_the_mean_score_is_not_zero_where_the_support_moves(name):
    assert abs(mean_score(MOVING[name])[0]) > 0.5


def test_a_moving_support_is_refused_by_the_estimators_that_drop_the_score():
    scale = torch.nn.Parameter(torch.tensor(2.0))

    def model():
        pyro.sample("z", dist.Exponential(1.0))

    def guide():
        pyro.sample("z", shifted(dist.Exponential(1.0), scale))

    for objective in (ELBO(estimator="stl"), IWAE(3, estimator="stl"), IWAE(3, estimator="dreg")):
        with pytest.raises(ValueError, match="'z' from TransformedDistribution: the mean of its"):
            objective.differentiable_loss(model, guide)
    assert ELBO(analytic=False).differentiable_loss(model, guide).requires_grad


def test_a_support_that_is_not_declared_is_refused():
    class Undeclared(dist.Normal):
        support = property(lambda self: torch.distributions.Distribution.support.fget(self))

    with pytest.raises(ValueError, match="'z' from Undeclared, which declares none"):
        check_fixed_support("z", Undeclared(0.0, 1.0))


def over(site, prior):
    """A model of one latent site, and a guide of a learned one."""
    p = torch.nn.Parameter(torch.full((10,), 0.4))

    def model():
        with pyro.plate("n", 10):
            z = pyro.sample("z", prior.expand([10]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(10))

    def guide():
        with pyro.plate("n", 10):
            pyro.sample("z", site(p))

    return model, guide


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_partly_reparameterized_site_is_refused(wrapped):
    def site(p):
        fn = RejectionGamma(1 + p, torch.ones(10))
        return shifted(fn, 1.0) if wrapped else fn

    pair = over(site, dist.Gamma(2.0, 1.0))
    for objective in (ELBO(), IWAE(3), Capacity(), FreeBits(), ELBO(estimator="stl")):
        with pytest.raises(ValueError, match="whose rsample gives a part of the gradient"):
            objective.loss(*pair)


@pytest.mark.parametrize("stated", [False, None])
def test_a_factor_of_the_guide_that_is_no_function_of_samples_is_refused(stated):
    model, guide = over(lambda p: dist.Normal(p, 1.0), dist.Normal(0.0, 1.0))

    def with_factor():
        guide()
        pyro.factor("f", torch.tensor(2.0), has_rsample=stated)

    for objective in (ELBO(), IWAE(3), Renyi(3)):
        with pytest.raises(ValueError, match="'f' without has_rsample=True"):
            objective.loss(model, with_factor)


STRAIGHT = {
    "bernoulli": lambda p: dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=p),
    "categorical": lambda p: dist.RelaxedOneHotCategoricalStraightThrough(
        torch.tensor(0.5), probs=torch.stack([p, 1 - p], -1)
    ),
}


@pytest.mark.parametrize("kind", STRAIGHT)
@pytest.mark.parametrize("objective", [ELBO(estimator="stl"), IWAE(3, estimator="dreg")])
def test_straight_through_samples_are_refused_by_estimators_that_drop_the_score(kind, objective):
    def model():
        pyro.sample("z", STRAIGHT[kind](torch.tensor(0.5)))

    p = torch.nn.Parameter(torch.tensor(0.4))
    with pytest.raises(ValueError, match=r"'z' from Relaxed.*StraightThrough, whose density"):
        objective.differentiable_loss(model, lambda: pyro.sample("z", STRAIGHT[kind](p)))


@pytest.mark.parametrize("kind", STRAIGHT)
def test_a_shared_straight_through_site_keeps_its_relaxed_sample(kind):
    x = torch.ones(4)

    def model():
        w = pyro.sample("w", STRAIGHT[kind](torch.tensor(0.5)))
        w = w if kind == "bernoulli" else w[..., 0]
        with pyro.plate("n", 4):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(w, 1.0)), 1.0), obs=x)

    def guide():
        pyro.sample("w", STRAIGHT[kind](torch.tensor(0.4)))
        with pyro.plate("n", 4):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    (pair,), _ = IWAE(3)._run_particles(model, guide, (), {})
    site = pair.guide.nodes["w"]
    relaxed = site["value"]._unquantize
    assert not torch.equal(relaxed, site["value"])
    assert torch.equal(relaxed[0], relaxed[2])
    prior = STRAIGHT[kind](torch.tensor(0.5)).log_prob(relaxed)
    expected = STRAIGHT[kind](torch.tensor(0.4)).log_prob(relaxed)
    torch.testing.assert_close(site["unscaled_log_prob"], expected)
    torch.testing.assert_close(pair.model.nodes["w"]["unscaled_log_prob"], prior)


def test_a_flow_without_an_inverse_is_refused_by_name():
    flow = dist.transforms.Planar(2)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide():
        base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    assert ELBO().differentiable_loss(model, guide).isfinite()
    for objective in (ELBO(estimator="stl"), IWAE(3, estimator="dreg")):
        with pytest.raises(ValueError, match="'z' from TransformedDistribution, whose transform"):
            objective.differentiable_loss(model, guide)


X = torch.tensor([-1.0, 0.3, 2.0, 0.5])


def nested(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


JOINT = {
    "diagonal": AutoDiagonalNormal,
    "full": AutoMultivariateNormal,
    "low rank": AutoLowRankMultivariateNormal,
    "gaussian": AutoGaussian,
    "structured": partial(AutoStructured, conditionals="mvn", dependencies="linear"),
    "iaf": partial(AutoIAFNormal, hidden_dim=[8]),
}


@pytest.mark.parametrize("name", JOINT)
def test_joint_guides_draw_each_particle(name):
    pyro.set_rng_seed(0)
    guide = JOINT[name](nested)
    guide(X)
    values = [IWAE(20).values(nested, guide, X) for _ in range(80)]
    assert values[0].log_weights.shape == (20,)
    assert values[0].log_weights.std() > 1e-3
    ours = torch.stack([value.objective.detach() for value in values])
    theirs = RenyiELBO(0, 20, vectorize_particles=True, max_plate_nesting=1)
    theirs = -torch.tensor([theirs.loss(nested, guide, X) for _ in range(80)])
    assert abs(two_sample(ours, theirs)) < SIGMAS


def test_a_joint_guide_that_is_the_posterior_has_the_evidence_as_each_weight():
    guide = AutoMultivariateNormal(nested)
    guide(X)
    # loc first, then z: precision of the joint given x.
    n = len(X)
    precision = 2 * torch.eye(n + 1)
    precision[0, 0] = 1.0 + n
    precision[0, 1:] = precision[1:, 0] = -1.0
    covariance = precision.inverse()
    scale = torch.linalg.cholesky(covariance)
    guide.loc = torch.nn.Parameter(covariance @ torch.cat([torch.zeros(1), X]))
    guide.scale = pyro.nn.PyroParam(scale.diagonal(), constraint=constraints.positive)
    guide.scale_tril = pyro.nn.PyroParam(
        scale / scale.diagonal()[:, None], constraint=constraints.unit_lower_cholesky
    )
    evidence = dist.MultivariateNormal(torch.zeros(n), 2 * torch.eye(n) + 1).log_prob(X)
    weights = IWAE(5).values(nested, guide, X).log_weights
    torch.testing.assert_close(weights, evidence.expand(5), rtol=1e-4, atol=1e-4)


def test_a_joint_guide_of_scaled_rows_is_warned_of():
    def model(x):
        with poutine.scale(scale=3.0):
            nested(x)

    guide = AutoMultivariateNormal(nested)
    guide(X)

    def scaled(x):
        with poutine.scale(scale=3.0):
            return guide(x)

    with pytest.warns(UserWarning, match="draws nothing within the plates of 'z'"):
        values = IWAE(5).values(model, scaled, X)
    # Rows apart, as they cannot stand within one logarithm.
    assert values.log_weights.shape == (5, 4)


def test_guides_that_draw_each_datum_are_left_as_they_are():
    guide = AutoNormal(nested)
    guide(X)
    assert IWAE(5).values(nested, guide, X).log_weights.shape == (5, 4)


class Posterior(GuideMessenger):
    """The exact posterior of z, row by row: every log weight is the evidence of its row."""

    def get_posterior(self, name, prior):
        (x,), _ = self.args_kwargs
        rows = self.trace.nodes["data"]["value"]
        return dist.Normal(x[rows] / 2, 0.5**0.5)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("vectorize", [False, True])
def test_particles_of_an_effectful_guide_have_the_same_rows(name, vectorize):
    x = torch.linspace(-9.0, 9.0, 100)

    def model(x):
        with pyro.plate("data", 100, subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(10), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    objective = WEIGHTED[name](vectorize_particles=vectorize)
    pyro.set_rng_seed(1)
    weights = objective.values(model, Posterior(model), x).log_weights
    assert weights.shape == (4, 10)
    torch.testing.assert_close(weights, weights[:1].expand(4, 10), rtol=1e-4, atol=1e-4)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x)
    distance = (weights[0][:, None] - evidence).abs().amin(1)
    assert (distance < 1e-3).all()


def test_rows_of_an_effectful_guide_are_drawn_anew_at_each_call():
    x = torch.linspace(-9.0, 9.0, 100)

    def model(x):
        with pyro.plate("data", 100, subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(10), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    objective = IWAE(4, vectorize_particles=False)
    guide = Posterior(model)
    first, second = (objective.values(model, guide, x).log_weights for _ in range(2))
    assert not torch.allclose(first, second)


OBJECTIVES = [ELBO, IWAE, FreeBits, Capacity, partial(GECO, target=1.0), MIWAE, Renyi, Jackknife]


@pytest.mark.parametrize("make", OBJECTIVES)
@pytest.mark.parametrize("given", [{}, {"max_plate_nesting": 0}])
@pytest.mark.parametrize("validate", [False, True])
def test_a_batch_without_a_plate_is_found_at_the_first_call(make, given, validate):
    x = torch.ones(6)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        pyro.sample("z", dist.Normal(x, 1.0))

    with pyro.validation_enabled(validate), pytest.raises(ValueError, match="plate"):
        make(num_particles=6, **given).loss(model, guide)


@pytest.mark.parametrize("side", ["model", "guide"])
def test_a_batch_without_a_plate_on_one_side_is_found_one_by_one(side):
    x = torch.ones(6)

    def model():
        with pyro.plate("n", 6) if side == "guide" else nullcontext():
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        if side == "model":
            pyro.sample("x", dist.Normal(z, 1.0).expand([6]), obs=x)

    def guide():
        pyro.sample("z", dist.Normal(x if side == "guide" else torch.zeros(()), 1.0))

    name = "x" if side == "model" else "z"
    objective = IWAE(3, vectorize_particles=False)
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=f"each batch dimension in a plate .* got '{name}'"),
    ):
        objective.loss(model, guide)


def test_the_structure_of_a_bound_method_is_found_once():
    class Owner:
        runs = 0

        def model(self):
            self.runs += 1
            with pyro.plate("n", 3):
                pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

        def guide(self):
            with pyro.plate("n", 3):
                pyro.sample("z", dist.Normal(torch.ones(3), 1.0))

    owner, objective = Owner(), ELBO(4)
    for _ in range(3):
        objective.loss(owner.model, owner.guide)
    assert owner.runs == 4
