"""Gradient estimators: their bias, variance and signal on models where all of it is known.

The toy is that of Rainforth et al. (2018): z ~ N(mu, I), x given z ~ N(z, I), with the guide
N(x / 2 + b, s^2 I). Parameters have a copy for each of many replicates, which stand in a plate of
their own, so that one backward pass draws as many gradients.
"""

from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch

from helpers.designs import keep
from helpers.tables import FEW_POSTERIORS, FEW_PRIORS, OBJECTIVES
from helpers.truths import family_limit
from pyro_vae import VAE, objectives
from pyro_vae.objectives import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    ImportanceWeighted,
    Jackknife,
    Renyi,
    jackknife,
)

ROWS, SIZE = 16, 3


class Toy(NamedTuple):
    """Parameters with a copy for each replicate, and the data that all see."""

    x: torch.Tensor
    mu: torch.Tensor
    b: torch.Tensor
    log_scale: torch.Tensor

    def model(self):
        with pyro.plate("replicates", len(self.mu), dim=-2), pyro.plate("data", len(self.x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=self.x)

    def guide(self):
        with pyro.plate("replicates", len(self.mu), dim=-2), pyro.plate("data", len(self.x)):
            loc = self.x / 2 + self.b
            pyro.sample("z", dist.Normal(loc, self.log_scale.exp()).to_event(1))

    def gradients(self, objective):
        """A row a replicate for each parameter: mu, b, log scale."""
        loss = objective.differentiable_loss(self.model, self.guide)
        return [g.flatten(1) for g in torch.autograd.grad(-loss / len(self.x), self[1:])]


def toy(replicates, rows=ROWS, size=SIZE, *, exact=False, perturb=0.1):
    """The toy a little off its optimum, or with the exact posterior as guide."""
    generator = torch.Generator().manual_seed(3)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    x = normal(rows, size) * 2**0.5 + 1.0
    mu = x.mean(0) + perturb * normal(size)
    b = mu / 2 if exact else mu / 2 + perturb * normal(size)
    variance = 0.5 if exact else 2 / 3
    log_scale = torch.full((size,), variance, dtype=torch.float64).log() / 2
    copies = [p.expand(replicates, 1, size).clone().requires_grad_() for p in (mu, b, log_scale)]
    return Toy(x, *copies)


def worst(estimates, truths):
    """The largest distance of two sets of draws, a column a parameter, in standard errors."""
    error = (estimates.var(0) / len(estimates) + truths.var(0) / len(truths)).sqrt()
    return ((estimates.mean(0) - truths.mean(0)) / error).abs().max().item()


BOUNDS = {
    "iwae": partial(IWAE, 6),
    "ciwae": partial(CIWAE, 6, beta=0.3),
    "miwae": partial(MIWAE, 6, groups=3),
    "piwae": partial(PIWAE, 6, groups=2),
    "renyi_half": partial(Renyi, 6, alpha=0.5),
    "renyi_below": partial(Renyi, 6, alpha=-0.5),
    "renyi_above": partial(Renyi, 6, alpha=1.5),
    "jackknife": partial(Jackknife, 6, guide_bound="jackknife"),
    "jackknife_2": partial(Jackknife, 6, order=2, guide_bound="jackknife"),
    "jackknife_iwae": partial(Jackknife, 6, guide_bound="iwae"),
}

DRAWS = 100_000


@pytest.mark.parametrize("name", keep(["iwae"], BOUNDS))
def test_dreg_has_the_expected_gradient_and_stl_has_not(name):
    pyro.set_rng_seed(5)
    setting = toy(DRAWS // 4, rows=4)
    drawn = {}
    for estimator in ("standard", "dreg", "stl"):
        objective = BOUNDS[name](estimator=estimator, max_plate_nesting=2)
        runs = [setting.gradients(objective) for _ in range(4)]
        # That of mu too, which all estimators must leave alone.
        drawn[estimator] = torch.cat([torch.cat(run, 1) for run in runs])
        assert drawn[estimator].shape == (DRAWS, 3 * SIZE)
    limit = family_limit(3 * SIZE * len(BOUNDS) * 2)
    assert worst(drawn["dreg"], drawn["standard"]) < limit
    assert worst(drawn["stl"][:, :SIZE], drawn["standard"][:, :SIZE]) < limit
    assert worst(drawn["stl"], drawn["standard"]) > 3 * limit


def test_dreg_draws_the_encoder_with_less_noise():
    setting = toy(500)
    spread = {
        name: setting.gradients(IWAE(64, estimator=name, max_plate_nesting=2))[1].std(0)
        for name in ("standard", "dreg")
    }
    assert (spread["dreg"] < spread["standard"] / 2).all()


@pytest.mark.parametrize("alpha", keep([0.5], [0.0, 0.5, 1.0]))
def test_dreg_alpha_is_between_iwae_and_the_wake_phase(alpha):
    pyro.set_rng_seed(6)
    setting = toy(DRAWS, rows=2)
    found = setting.gradients(IWAE(4, estimator="dreg", dreg_alpha=alpha, max_plate_nesting=2))
    with torch.no_grad():
        weights = IWAE(4, max_plate_nesting=2).values(setting.model, setting.guide).log_weights
    assert weights.shape == (4, DRAWS, 2)
    bound = setting.gradients(IWAE(4, max_plate_nesting=2))[1]
    wake = wake_gradient(setting)
    expected = (1 - alpha) * bound.mean(0) + alpha * wake.mean(0)
    error = (found[1].var(0) + (1 - alpha) ** 2 * bound.var(0) + alpha**2 * wake.var(0)) / DRAWS
    assert (((found[1].mean(0) - expected) / error.sqrt()).abs() < family_limit(9)).all()


def test_dreg_alpha_of_a_half_is_half_of_stl():
    setting, found = toy(20), []
    for options in ({"estimator": "dreg", "dreg_alpha": 0.5}, {"estimator": "stl"}):
        pyro.set_rng_seed(4)
        found.append(setting.gradients(IWAE(4, max_plate_nesting=2, **options))[1])
    torch.testing.assert_close(2 * found[0], found[1])


def wake_gradient(setting):
    """The wake-phase update of b, sum_k w_k d log q(z_k) / d b, from its definition."""
    with torch.no_grad():
        loc, scale = setting.x / 2 + setting.b, setting.log_scale.exp()
        z = loc + scale * torch.randn(4, *loc.shape, dtype=loc.dtype)
        normal = torch.distributions.Normal
        log_w = normal(setting.mu, 1.0).log_prob(z) + normal(z, 1.0).log_prob(setting.x)
        log_w = (log_w - normal(loc, scale).log_prob(z)).sum(-1, keepdim=True)
        score = (z - loc) / scale**2
        return (torch.softmax(log_w, 0) * score).sum(0).mean(1)


@pytest.mark.parametrize(
    ("objective", "vanishes"),
    [
        (partial(ELBO, 3, analytic=False), False),
        (partial(ELBO, 3, estimator="stl"), True),
        (partial(ELBO, 3, estimator="stl", vectorize_particles=False), True),
        (partial(IWAE, 5), False),
        *((partial(make, estimator="stl"), True) for make in BOUNDS.values()),
        *((partial(make, estimator="dreg"), True) for make in BOUNDS.values()),
        (partial(IWAE, 4, estimator="dreg", vectorize_particles=False), True),
    ],
)
def test_at_the_posterior_the_gradient_of_the_guide_has_no_variance(objective, vanishes):
    _, *of_guide = toy(50, exact=True).gradients(objective(max_plate_nesting=2))
    for gradient in of_guide:
        if vanishes:
            assert gradient.abs().max() < 1e-12
        else:
            assert (gradient.std(0) > 1e-2).all()


def signal_to_noise(objective, parameter):
    """|mean| / std of one parameter's gradient, from the mean of squares of all elements."""
    setting = toy(1000, rows=8, size=2, perturb=0.5)
    drawn = torch.cat([setting.gradients(objective)[parameter] for _ in range(8)])
    variance = drawn.var(0)
    # The square of the mean is too large by its own variance.
    squared = drawn.mean(0) ** 2 - variance / len(drawn)
    return (squared.mean() / variance.mean()).sqrt().item()


def slope(values, sizes):
    """The slope of log value against log size, by least squares."""
    logs = torch.tensor([values, sizes], dtype=torch.float64).log()
    y, x = logs - logs.mean(1, keepdim=True)
    return ((x * y).sum() / (x * x).sum()).item()


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "parameter", "theory"),
    [
        (partial(IWAE), 0, 0.5),
        (partial(IWAE), 1, -0.5),
        (partial(IWAE, estimator="dreg"), 1, 0.5),
    ],
    ids=["model", "encoder", "encoder_dreg"],
)
def test_signal_of_gradients_goes_with_the_number_of_particles_as_theory_has_it(
    make, parameter, theory
):
    pyro.set_rng_seed(7)
    sizes = [16, 64, 256]
    found = [signal_to_noise(make(size, max_plate_nesting=2), parameter) for size in sizes]
    assert slope(found, sizes) == pytest.approx(theory, abs=0.1)


@pytest.mark.long
def test_signal_of_the_encoder_rises_with_groups():
    sizes = [1, 4, 16]
    found = [signal_to_noise(MIWAE(8 * m, groups=m, max_plate_nesting=2), 1) for m in sizes]
    assert slope(found, sizes) == pytest.approx(0.5, abs=0.1)


def chain(x, weights, *, observe):
    """Two latent sites, the guide's second drawn given its first."""
    w, slopes, outer = weights
    loc = outer if observe else 0.0
    with pyro.plate("replicates", len(w), dim=-2), pyro.plate("data", len(x)):
        if observe:
            z1 = pyro.sample("z1", dist.Normal(loc, 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1 * 0.8, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)
        else:
            z1 = pyro.sample("z1", dist.Normal(w * x, 0.9))
            pyro.sample("z2", dist.Normal(slopes * z1 + 0.4 * x, 0.8))


@pytest.mark.parametrize(
    "make",
    [partial(IWAE, 5), partial(PIWAE, 6, groups=3), partial(ELBO, 2)],
    ids=["iwae", "piwae", "elbo"],
)
def test_a_site_that_depends_on_another_has_the_expected_gradient(make):
    pyro.set_rng_seed(8)
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    start = torch.tensor([0.3, 0.5, 0.1], dtype=torch.float64)
    weights = [s.expand(DRAWS, 1).clone().requires_grad_() for s in start]
    pair = (partial(chain, x, weights, observe=True), partial(chain, x, weights, observe=False))
    drawn = {}
    better = "stl" if make.func is ELBO else "dreg"
    for estimator in ("standard", better):
        objective = make(estimator=estimator, max_plate_nesting=2)
        loss = objective.differentiable_loss(*pair)
        drawn[estimator] = torch.cat(torch.autograd.grad(loss, weights), 1)
    assert worst(drawn[better], drawn["standard"]) < family_limit(9)
    spread = {name: gradient.std(0) for name, gradient in drawn.items()}
    assert not torch.allclose(spread[better][:2], spread["standard"][:2], rtol=0.01)


def three(observe, weights, outer=0.0):
    """Three sites in a row, each of the guide's drawn given those before it, one log-normal."""
    w, c = weights
    with pyro.plate("data", 4):
        if observe:
            a = pyro.sample("a", dist.Normal(c + outer, 1.0))
            b = pyro.sample("b", dist.LogNormal(0.3 * a, 1.0))
            d = pyro.sample("d", dist.Normal(a * b, c.exp()))
            pyro.sample("x", dist.Normal(d, 1.0), obs=X4)
        else:
            a = pyro.sample("a", dist.Normal(w[0] * X4 + outer, 0.9))
            b = pyro.sample("b", dist.LogNormal(w[1] * a, w[2].exp()))
            pyro.sample("d", dist.Normal(w[3] * a * b + w[4], 0.7 * w[0].exp()))


X4 = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)


def with_auto(weights):
    """The same model, the first of its sites guided as AutoNormal does it."""

    def guide():
        w, _ = weights
        with pyro.plate("data", 4):
            hidden = pyro.sample(
                "hidden", dist.Normal(w[0] * X4, 0.9), infer={"is_auxiliary": True}
            )
            a = pyro.sample("a", dist.Delta(hidden * w[1].exp(), log_density=-w[1].expand((4,))))
            b = pyro.sample("b", dist.LogNormal(w[1] * a, w[2].exp()))
            pyro.sample("d", dist.Normal(w[3] * a * b + w[4], 0.7 * w[0].exp()))

    return guide


def score_of_the_guide(guide, weights, drawn):
    """The derivative of log q at samples that are fixed; a point mass follows from them."""
    held = pyro.poutine.condition(guide, data={name: v.detach() for name, v in drawn.items()})
    trace = pyro.poutine.trace(held).get_trace()
    trace.compute_log_prob()
    log_q = sum(trace.nodes[name]["log_prob"].sum() for name in drawn)
    return torch.autograd.grad(log_q, weights[0])[0]


@pytest.mark.parametrize("kind", ["plain", "auto"])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_stl_leaves_the_score_out_and_nothing_else(kind, beta):
    """Draw by draw: the full derivative less that of log q at fixed values."""
    weights = (
        torch.tensor([0.3, 0.5, -0.2, 0.4, 0.1], dtype=torch.float64, requires_grad=True),
        torch.tensor(0.2, dtype=torch.float64, requires_grad=True),
    )
    model = partial(three, True, weights)
    guide = partial(three, False, weights) if kind == "plain" else with_auto(weights)
    gradients = {}
    for estimator in ("standard", "stl"):
        pyro.set_rng_seed(3)
        objective = ELBO(
            beta=beta, analytic=False if estimator == "standard" else None, estimator=estimator
        )
        loss = objective.differentiable_loss(model, guide)
        gradients[estimator] = torch.autograd.grad(loss, weights)
    pyro.set_rng_seed(3)
    drawn = {
        name: site["value"]
        for name, site in pyro.poutine.trace(guide).get_trace().nodes.items()
        if name in {"plain": ("a", "b", "d"), "auto": ("hidden", "b", "d")}[kind]
    }
    score = beta * score_of_the_guide(guide, weights, drawn)
    assert score.abs().max() > 0.1
    of_guide, of_model = gradients["stl"]
    torch.testing.assert_close(of_guide, gradients["standard"][0] - score)
    torch.testing.assert_close(of_model, gradients["standard"][1])


@pytest.mark.parametrize("kind", ["plain", "auto"])
@pytest.mark.parametrize("at_once", [True, False])
def test_dreg_of_one_sample_is_stl_for_several_sites(kind, at_once):
    weights = (
        torch.tensor([0.3, 0.5, -0.2, 0.4, 0.1], dtype=torch.float64, requires_grad=True),
        torch.tensor(0.2, dtype=torch.float64, requires_grad=True),
    )
    model = partial(three, True, weights)
    guide = partial(three, False, weights) if kind == "plain" else with_auto(weights)
    found = []
    for objective in (
        CIWAE(3, beta=1.0, estimator="dreg", vectorize_particles=at_once),
        ELBO(3, estimator="stl", vectorize_particles=at_once),
    ):
        pyro.set_rng_seed(3)
        loss = objective.differentiable_loss(model, guide)
        found.append([loss.detach(), *torch.autograd.grad(loss, weights)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def density_of_its_own(weights):
    """A guide as AutoStructured makes it: a fixed draw, and a scale in the density of a Delta."""
    loc, log_scale = weights

    def guide():
        with pyro.plate("data", 4):
            hidden = pyro.sample("hidden", dist.Normal(X4 * 0, 1.0), infer={"is_auxiliary": True})
            value = loc + log_scale.exp() * hidden
            pyro.sample("z", dist.Delta(value, log_density=-log_scale.expand((4,))))

    return guide


def point(weights):
    """A guide of point masses."""

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Delta(weights[0] * X4 + weights[1]))

    return guide


def normal_model():
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(X4 * 0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X4)


@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_a_point_mass_has_the_standard_gradient(estimator):
    weights = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.8, 0.3)]
    found = []
    for options in ({}, {"estimator": estimator}):
        loss = IWAE(5, **options).differentiable_loss(normal_model, point(weights))
        found.append(torch.stack(torch.autograd.grad(loss, weights)))
    torch.testing.assert_close(*found)
    assert found[0].abs().min() > 0.1


@pytest.mark.parametrize(
    "objective",
    [ELBO(estimator="stl"), pytest.param(IWAE(4, estimator="dreg"), marks=pytest.mark.long)],
)
def test_the_density_of_a_point_mass_is_no_score(objective):
    """Its mean is not zero: without it a scale would lose its entropy."""
    pyro.set_rng_seed(4)
    weights = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, -0.8)]
    standard = ELBO(analytic=False) if isinstance(objective, ELBO) else IWAE(4)
    drawn = []
    for each in (objective, standard):
        losses = [
            each.differentiable_loss(normal_model, density_of_its_own(weights)) for _ in range(800)
        ]
        drawn.append(torch.stack([torch.stack(torch.autograd.grad(o, weights)) for o in losses]))
    assert worst(*drawn) < family_limit(4)
    assert drawn[0].mean(0)[1].abs() > 0.5


def test_a_support_that_parameters_move_is_refused():
    width = torch.tensor(1.0, requires_grad=True)

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Uniform(-width, width))

    IWAE(3).differentiable_loss(normal_model, guide)
    for objective in (ELBO(estimator="stl"), IWAE(3, estimator="dreg"), PIWAE(4)):
        with pytest.raises(
            ValueError, match=r"'z' from Uniform: the mean of its score is not zero"
        ):
            objective.differentiable_loss(normal_model, guide)


VAES = [("normal_learned", "normal"), ("normal_learned", "full"), ("mixture", "normal")]


def vae_gradients(vae, objective, x, **options):
    """The gradient of each named parameter, under one noise."""
    vae.zero_grad()
    pyro.set_rng_seed(3)
    loss = objective.differentiable_loss(vae.model, vae.guide, x, **options)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in vae.named_parameters() if p.grad is not None}


def assert_same(found, expected, names=None):
    for name in expected if names is None else names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("estimator", ["standard", "stl", "dreg"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("prior", "posterior"), VAES)
def test_piwae_trains_the_guide_by_miwae_and_the_model_by_iwae(
    prior, posterior, at_once, estimator, binary
):
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS[prior], posterior=FEW_POSTERIORS[posterior]).double()
    x, run = binary.double(), {"vectorize_particles": at_once}
    given = {"estimator": estimator, **run}
    loss, looser = assert_apart(
        vae, x, PIWAE(6, groups=2, **given), MIWAE(6, groups=2, **given), IWAE(6, **run)
    )
    assert loss < looser


@pytest.mark.parametrize("estimator", ["standard", "stl", "dreg"])
@pytest.mark.parametrize(
    ("guide_bound", "twin"), [("elbo", partial(MIWAE, groups=6)), ("iwae", IWAE)]
)
def test_the_jackknife_trains_the_guide_by_a_bound(guide_bound, twin, estimator, binary):
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS["normal_learned"]).double()
    made = Jackknife(6, order=2, guide_bound=guide_bound, estimator=estimator)
    own = Jackknife(6, order=2, guide_bound="jackknife")
    assert_apart(vae, binary.double(), made, twin(6, estimator=estimator), own)


def assert_apart(vae, x, objective, of_guide, of_model):
    """Asserts that guide and model have the gradients of two objectives, the loss of the second."""
    loss, found = vae_gradients(vae, objective, x, data_size=60)
    other, guided = vae_gradients(vae, of_guide, x, data_size=60)
    expected, modelled = vae_gradients(vae, of_model, x, data_size=60)
    assert loss == pytest.approx(expected, rel=1e-10)
    guides = [n for n in found if n.startswith(("encoder", "posterior"))]
    assert 0 < len(guides) < len(found)
    assert_same(found, guided, guides)
    assert_same(found, modelled, set(found) - set(guides))
    assert not torch.allclose(guided["decoder.layers.0.bias"], found["decoder.layers.0.bias"])
    assert not torch.allclose(modelled["encoder.layers.0.bias"], found["encoder.layers.0.bias"])
    return loss, other


SAME = {
    "MIWAE of single samples is the ELBO": (MIWAE(6, groups=6), ELBO(6, analytic=False)),
    "MIWAE of one group is IWAE": (MIWAE(6, groups=1), IWAE(6)),
    "PIWAE of one group is IWAE": (PIWAE(6, groups=1), IWAE(6)),
    "CIWAE at 0 is IWAE": (CIWAE(6, beta=0.0), IWAE(6)),
    "CIWAE at 1 is the ELBO": (CIWAE(6, beta=torch.tensor(1.0)), ELBO(6, analytic=False)),
    "Renyi at 0 is IWAE": (Renyi(6, alpha=0), IWAE(6)),
    "Renyi at 1 is the ELBO": (Renyi(6, alpha=1), ELBO(6, analytic=False)),
    "Renyi scheduled to 0 is IWAE": (Renyi(6, alpha=torch.tensor(0.0)), IWAE(6)),
    "IWAE of one sample is the ELBO": (IWAE(1), ELBO(analytic=False)),
    "MIWAE of one group, DReG": (
        MIWAE(6, groups=1, estimator="dreg"),
        IWAE(6, estimator="dreg"),
    ),
    "PIWAE of one group, DReG": (
        PIWAE(6, groups=1, estimator="dreg"),
        IWAE(6, estimator="dreg"),
    ),
    "CIWAE at 1, DReG, is the ELBO, STL": (
        CIWAE(6, beta=1.0, estimator="dreg"),
        ELBO(6, estimator="stl"),
    ),
    "Renyi at 1, DReG, is the ELBO, STL": (
        Renyi(6, alpha=1, estimator="dreg"),
        ELBO(6, estimator="stl"),
    ),
    "IWAE of one sample, DReG, is the ELBO, STL": (
        IWAE(1, estimator="dreg"),
        ELBO(estimator="stl"),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_objectives_that_are_one_have_one_loss_and_gradient(name, binary):
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS["mixture"]).double()
    (loss, found), (expected, gradients) = (
        vae_gradients(vae, objective, binary.double(), data_size=60) for objective in SAME[name]
    )
    assert loss == pytest.approx(expected, rel=1e-10)
    assert_same(found, gradients)


def test_renyi_near_one_is_near_the_elbo_and_far_below_the_largest_weight():
    weights = 10 * torch.randn(7, 100)
    for alpha in (1 - 1e-6, 1 + 1e-6, torch.tensor(1.0), torch.tensor(1 - 1e-7)):
        torch.testing.assert_close(
            Renyi(7, alpha=alpha).bound(weights), weights.mean(0), rtol=1e-3, atol=1e-3
        )
    torch.testing.assert_close(
        Renyi(7, alpha=-1e5).bound(weights), weights.amax(0), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(Renyi(7, alpha=-float("inf")).bound(weights), weights.amax(0))
    alphas = [2.0, 1.0, 0.5, 0.0, -1.0, -5.0, -float("inf")]
    rising = torch.stack([Renyi(7, alpha=alpha).bound(weights) for alpha in alphas])
    assert (rising.diff(dim=0) >= -1e-5).all()


FUNCTIONS = {
    name: objective
    for name, objective in ((n, make()) for n, make in {**OBJECTIVES, **BOUNDS}.items())
    if isinstance(objective, ImportanceWeighted) and not objective._has_guide_bound()
    # The largest weight has no second derivative.
    if name != "vr_max"
}
"""Objectives that train model and guide by one function of the log weights."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_and_curvatures_are_the_derivatives_of_the_bound(name):
    objective = FUNCTIONS[name]
    weights = 3 * torch.randn(6, dtype=torch.float64)
    first = torch.autograd.functional.jacobian(objective.bound, weights)
    second = torch.autograd.functional.hessian(objective.bound, weights).diagonal()
    torch.testing.assert_close(objective.slope(weights[:, None])[:, 0], first)
    torch.testing.assert_close(objective.curvature(weights[:, None])[:, 0], second)


def test_weights_of_zero_and_alphas_next_to_one_give_numbers():
    weights = torch.tensor([0.0, -torch.inf, 1.0])
    assert CIWAE(3, beta=0.0).bound(weights) == IWAE(3).bound(weights)
    assert Renyi(3, alpha=1.5).bound(weights) == -torch.inf
    assert Renyi(3, alpha=0.5).bound(weights).isfinite()
    assert Renyi(3, alpha=0.5).bound(torch.full((3,), -torch.inf)) == -torch.inf
    for alpha in (sum([0.1] * 10), 1 + 1e-12):
        assert Renyi(2, alpha=alpha).bound(torch.tensor([1.0, 3.0])) == 2.0


@pytest.mark.long
def test_the_jackknife_takes_away_the_first_orders_of_the_gap():
    """Bias of log mean w for log-normal weights, whose mean is 1."""
    weights = 0.6 * torch.randn(8, 500_000, dtype=torch.float64) - 0.18
    gap = {
        "none": IWAE(8).bound(weights),
        "first": Jackknife(8).bound(weights),
        "second": Jackknife(8, order=2).bound(weights),
    }
    means = {name: value.mean().abs().item() for name, value in gap.items()}
    error = (gap["second"].std() / len(gap["second"]) ** 0.5).item()
    assert means["first"] < means["none"] / 5
    assert means["second"] < means["first"] + 4 * error
    half = Jackknife(4).bound(weights[:4]).mean().abs().item()
    assert half > 2.5 * means["first"]


REFUSED = {
    "no such estimator": (
        lambda: IWAE(3, estimator="best"),
        "estimator to be 'standard', 'stl' or",
    ),
    "ELBO, DReG": (
        lambda: ELBO(estimator="dreg"),
        "estimator to be 'standard' or 'stl', got 'dreg'",
    ),
    "STL of a closed form": (
        lambda: ELBO(estimator="stl", analytic=True),
        "analytic to be None or",
    ),
    "VR-max, DReG": (lambda: Renyi(alpha=-float("inf"), estimator="dreg"), "no second derivative"),
    "alpha of infinity": (lambda: Renyi(alpha=float("inf")), "minus infinity, got inf"),
    "beta of a tensor": (lambda: ELBO(beta=torch.tensor(-1.0)), "beta to be zero or more"),
    "beta of text": (lambda: ELBO(beta="0.5"), "beta to be zero or more, got '0.5'"),
    "analytic of zero": (lambda: ELBO(analytic=0), "analytic to be True, False or None, got 0"),
    "alpha of a tensor": (lambda: Renyi(alpha=torch.tensor(-torch.inf)), "alpha to be finite"),
    "tensor share without DReG": (lambda: IWAE(dreg_alpha=torch.tensor(0.5)), "0 without"),
    "alpha of NaN": (lambda: Renyi(alpha=float("nan")), "alpha to be a number, got nan"),
    "share without DReG": (lambda: IWAE(dreg_alpha=0.5), "dreg_alpha to be 0 without"),
    "share above one": (lambda: IWAE(estimator="dreg", dreg_alpha=2), r"within \[0, 1\], got 2"),
    "CIWAE above one": (lambda: CIWAE(beta=1.5), r"beta to be within \[0, 1\], got 1.5"),
    "groups that do not divide": (lambda: MIWAE(8, groups=3), "groups to divide num_particles"),
    "no groups": (lambda: PIWAE(8, groups=0), "groups to be an integer of at least 1, got 0"),
    "order of none": (lambda: Jackknife(3, order=0), "order to be an integer of at least 1, got 0"),
    "order of all": (lambda: Jackknife(3, order=3), "order to be below num_particles"),
    "guide by another bound": (
        lambda: Jackknife(guide_bound="miwae"),
        "guide_bound to be 'elbo', 'iwae' or 'jackknife', got 'miwae'",
    ),
    "too many subsets": (lambda: Jackknife(100, order=4), "at most 10000 subsets"),
    "negative capacity": (lambda: objectives.Capacity(capacity=-1), "capacity to be zero or more"),
    "negative free bits": (lambda: objectives.FreeBits(nats=-1), "nats to be zero or more"),
    "free bits per row": (
        lambda: objectives.FreeBits(per="row"),
        "per to be 'dimension' or 'site'",
    ),
    "target of NaN": (lambda: objectives.GECO(target=float("nan")), "target to be a number"),
    "multiplier above a million": (
        lambda: objectives.GECO(target=1.0, multiplier=2e6),
        "multiplier to be within",
    ),
    "momentum above one": (lambda: objectives.GECO(target=1.0, momentum=2), r"within \[0, 1\]"),
}


def test_the_largest_number_of_subsets_is_accepted(monkeypatch):
    # Both particles, and each alone.
    monkeypatch.setattr(jackknife, "_MOST_SUBSETS", 3)
    assert Jackknife(2, order=1).order == 1
    monkeypatch.setattr(jackknife, "_MOST_SUBSETS", 2)
    with pytest.raises(ValueError, match="at most 2 subsets, got 3"):
        Jackknife(2, order=1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_defined_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
