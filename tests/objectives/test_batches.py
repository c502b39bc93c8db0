"""Objectives of a batch's means: masks, scales, loops, empty batches, several particles.

Two latent sites per datum, a ~ N(0, 1) and b ~ N(0, 1), with guides of known rates, and an
observation whose expected log density is known for a guide of b without spread.
"""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from helpers.truths import SIGMAS, z_score
from pyro_vae.objectives import ELBO, GECO, IWAE, Capacity, FreeBits, Jackknife, Renyi
from pyro_vae.objectives.core.batch_means import divide_by_size

ROWS = 6
LOC_A, LOC_B = torch.linspace(0.5, 2.0, ROWS), torch.linspace(-1.0, 1.0, ROWS)
X = torch.linspace(-2.0, 2.0, ROWS)
SOME, FEW = torch.tensor([1, 1, 1, 1, 0, 0]).bool(), torch.tensor([1, 1, 0, 0, 0, 0]).bool()
NONE = torch.zeros(ROWS).bool()


def program(order="ab", masks=None, observed=None, scale=1.0):
    """A model and guide: the order of their latent sites, masks by site, the mask of x."""
    masks = masks or {}
    locs = {"a": LOC_A, "b": LOC_B}

    def site(name, loc):
        with poutine.mask(mask=masks.get(name, torch.tensor(True))):
            return pyro.sample(name, dist.Normal(loc, 1.0))

    def model():
        with pyro.plate("data", ROWS), poutine.scale(scale=scale):
            for name in order:
                site(name, torch.zeros(ROWS))
            with poutine.mask(mask=torch.tensor(True) if observed is None else observed):
                pyro.sample("x", dist.Normal(torch.zeros(ROWS), 1.0), obs=X)

    def guide():
        with pyro.plate("data", ROWS), poutine.scale(scale=scale):
            for name in order:
                site(name, locs[name])

    return model, guide


def rate(mask_a, mask_b):
    """The sum over rows of the KL of both sites, (loc^2) / 2 each."""
    return (LOC_A**2 / 2)[mask_a].sum() + (LOC_B**2 / 2)[mask_b].sum()


ALL = torch.ones(ROWS).bool()
DISTORTION = -dist.Normal(0.0, 1.0).log_prob(X)

MASKS = {
    "none": (ALL, ALL, ROWS),
    "different": (SOME, FEW, 4),
    "one site": (FEW, ALL, ROWS),
    "disjoint": (FEW, ~SOME, 4),
}


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("particles", [1, 3])
def test_a_datum_counts_where_any_latent_site_is_observed(order, name, scale, particles):
    mask_a, mask_b, size = MASKS[name]
    pair = program(order, {"a": mask_a, "b": mask_b}, scale=scale)
    n, kl = scale * size, scale * rate(mask_a, mask_b)
    distortion = scale * DISTORTION.sum()
    # The same for any number of particles, for both terms are the same for each.
    capacity = Capacity(particles, capacity=0.7, gamma=3.0).differentiable_loss(*pair)
    torch.testing.assert_close(capacity, distortion + 3.0 * n * (kl / n - 0.7).abs())
    geco = GECO(particles, target=1.1, multiplier=2.0)
    torch.testing.assert_close(geco.differentiable_loss(*pair), kl + 2.0 * (distortion - 1.1 * n))


@pytest.mark.parametrize("of", ["datum", "batch"])
def test_free_bits_are_not_rounded_to_single_precision(of):
    def prior():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1).to_event(1))

    loss = FreeBits(nats=0.3, of=of).differentiable_loss(prior, prior)
    assert abs(loss.item() - 3 * 2 * 0.3) < 1e-14


@pytest.mark.parametrize("particles", [1, 3])
def test_free_bits_count_the_data_of_each_site(particles):
    pair = program("ab", {"a": SOME, "b": FEW})
    means = [(LOC_A**2 / 2)[SOME].mean(), (LOC_B**2 / 2)[FEW].mean()]
    assert means[0] > 0.4 > means[1] or means[1] > 0.4 > means[0]
    expected = DISTORTION.sum() + 4 * max(means[0], 0.4) + 2 * max(means[1], 0.4)
    torch.testing.assert_close(FreeBits(particles, nats=0.4).differentiable_loss(*pair), expected)


@pytest.mark.parametrize("vectorize", [False, True])
def test_means_of_several_particles_are_means_of_sums(vectorize):
    x = torch.tensor([0.5, -1.0, 2.0])

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    # E (x - z)^2 under the guide is (x / 2)^2 + 0.64, whatever the number of particles.
    kl = (x**2 / 4 + 0.64 - 1).sum() / 2 - 3 * torch.tensor(0.8).log()
    known = 0.5 * (x**2 / 4 + 0.64).sum() + 1.5 * torch.tensor(2 * torch.pi).log()
    pyro.set_rng_seed(0)
    for make, expected in (
        (partial(Capacity, capacity=0.1, gamma=2.0), known + 2 * (kl - 0.3).abs()),
        (partial(GECO, target=1.0, multiplier=3.0), kl + 3.0 * (known - 3.0)),
    ):
        objective = make(num_particles=7, vectorize_particles=vectorize)
        losses = torch.tensor([objective.loss(model, guide) for _ in range(150)])
        assert abs(z_score(losses, expected.item())) < SIGMAS
        single = make(num_particles=1)
        alone = torch.tensor([single.loss(model, guide) for _ in range(150)])
        assert 4 < alone.var() / losses.var() < 12


def test_different_scales_of_latent_sites_are_refused():
    def model():
        with pyro.plate("data", 3):
            pyro.sample("a", dist.Normal(torch.zeros(3), 1.0))
            with poutine.scale(scale=2.0):
                pyro.sample("b", dist.Normal(torch.zeros(3), 1.0))

    for objective in (Capacity(), GECO(target=1.0)):
        with pytest.raises(ValueError, match=r"one scale at all latent sites .*'a': 1.0, 'b': 2.0"):
            objective.loss(model, model)
    assert math.isfinite(ELBO().loss(model, model))


MEANS = {
    "capacity": (Capacity, "an objective of means per datum"),
    "geco": (partial(GECO, target=1.0), "an objective of means per datum"),
    "free bits": (FreeBits, "free bits of a batch's mean"),
}


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("where", ["both", "model"])
def test_a_sequential_plate_is_refused(name, where):
    def sites(latent, observed):
        for i in pyro.plate("data", 4):
            if latent:
                pyro.sample(f"z_{i}", dist.Normal(torch.tensor(0.0), 1.0))
            if observed:
                pyro.sample(f"x_{i}", dist.Normal(torch.tensor(0.0), 1.0), obs=torch.tensor(1.0))

    make, objective = MEANS[name]
    with pytest.raises(ValueError, match=f"vectorized plates for {objective}"):
        make().loss(lambda: sites(True, True), lambda: sites(True, False))


def test_free_bits_of_each_datum_are_the_same_in_a_loop():
    def loop(observed):
        for i in pyro.plate("data", ROWS):
            loc = torch.tensor(0.0) if observed else LOC_A[i]
            pyro.sample(f"z_{i}", dist.Normal(loc, 1.0))

    objective = FreeBits(nats=0.5, of="datum")
    loss = objective.differentiable_loss(partial(loop, True), partial(loop, False))
    torch.testing.assert_close(loss, (LOC_A**2 / 2).clamp(min=0.5).sum())


EMPTY = {
    "elbo": (ELBO, 0.0),
    "capacity": (Capacity, 0.0),
    "geco": (partial(GECO, target=1.0, step_size=0.1), 0.0),
    "free bits": (FreeBits, 0.0),
    "iwae": (IWAE, 0.0),
    "jackknife": (Jackknife, 0.0),
    "renyi": (Renyi, 0.0),
}


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", EMPTY)
def test_a_batch_in_which_nothing_is_observed_has_loss_zero_and_no_gradient(name, particles):
    make, expected = EMPTY[name]
    if name == "jackknife":
        particles = 3
    loc = torch.nn.Parameter(torch.ones(ROWS))

    def model():
        with pyro.plate("data", ROWS), poutine.mask(mask=NONE):
            z = pyro.sample("z", dist.Normal(torch.zeros(ROWS), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def guide():
        with pyro.plate("data", ROWS), poutine.mask(mask=NONE):
            pyro.sample("z", dist.Normal(loc, 1.0))

    objective = make(num_particles=particles)
    loss = objective.differentiable_loss(model, guide)
    loss.backward()
    assert loss.item() == expected
    assert torch.equal(loc.grad, torch.zeros(ROWS))


def test_an_empty_batch_does_not_move_the_multiplier():
    objective = GECO(target=1.0, step_size=0.1)
    objective.differentiable_loss(*program())
    before = objective.state_dict()
    assert before["multiplier"] != 1
    objective.differentiable_loss(*program(masks={"a": NONE, "b": NONE}, observed=NONE))
    after = objective.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_site_in_which_nothing_is_observed_costs_nothing():
    pair = program(masks={"a": NONE, "b": FEW})
    expected = DISTORTION.sum() + 2 * max((LOC_B**2 / 2)[FEW].mean(), 0.01)
    torch.testing.assert_close(FreeBits(nats=0.01).differentiable_loss(*pair), expected)


def test_elements_of_an_inner_plate_do_not_count_as_data():
    mask = torch.tensor([[True, False, False], [False, False, False]]).T

    def sites(observed):
        with pyro.plate("data", 2, dim=-1):
            pyro.sample("a", dist.Normal(torch.full((2,), 0.0 if observed else 1.0), 1.0))
            with pyro.plate("inner", 3, dim=-2), poutine.mask(mask=mask):
                pyro.sample("b", dist.Normal(torch.full((3, 2), 0.0 if observed else 2.0), 1.0))

    # KL of a is 1/2 in each of two data, that of b 2 in one element of one of them.
    pair = (partial(sites, True), partial(sites, False))
    loss = Capacity(capacity=0.0, gamma=1.0).differentiable_loss(*pair)
    torch.testing.assert_close(loss, torch.tensor(3.0))


def test_sums_over_nothing_are_zero_per_datum():
    assert divide_by_size(torch.tensor(0.0), torch.tensor(0.0)) == 0
    assert divide_by_size(torch.tensor(3.0), torch.tensor(2.0)) == 1.5


def exact_jackknife(log_weights, order):
    """The sum over orders, from its definition, in double precision."""
    k, total = len(log_weights), 0.0
    for j in range(order + 1):
        factor = (-1) ** j * (k - j) ** order / math.factorial(order - j) / math.factorial(j)
        subsets = list(itertools.combinations(range(k), k - j))
        level = sum(log_weights[list(s)].logsumexp(0) - math.log(k - j) for s in subsets)
        total = total + factor * level / len(subsets)
    return total


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("offset", [0.0, -1000.0, 3e4])
def test_the_jackknife_keeps_its_figures_far_from_zero(order, offset):
    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(8, 50, generator=generator, dtype=torch.float64) + offset).float()
    found = Jackknife(8, order=order).bound(weights)
    expected = exact_jackknife(weights.double(), order)
    # Half a unit in the last place of the offset, and the factors times that of the rest.
    assert (found.double() - expected).abs().max() < abs(offset) * 6e-8 + 3e-4


@pytest.mark.parametrize("particles", [2, 100, 100_000])
@pytest.mark.parametrize("alpha", [-3.0, -0.5, 0.0, 0.5, 0.99, 1.001, 1.5, 4.0])
@pytest.mark.parametrize("scheduled", [False, True])
def test_renyi_keeps_its_figures(particles, alpha, scheduled):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(particles, 20, generator=generator, dtype=torch.float64)
    weights = (5 * normal - 100).float().requires_grad_()
    objective = Renyi(particles, alpha=torch.tensor(alpha) if scheduled else alpha)
    found = objective.bound(weights)
    found.sum().backward()
    power = 1 - float(torch.tensor(alpha)) if scheduled else 1 - alpha
    exact = weights.detach().double()
    expected = ((power * exact).logsumexp(0) - math.log(particles)) / power
    assert (found.double() - expected).abs().max() < 4e-5
    assert (weights.grad.double() - torch.softmax(power * exact, 0)).abs().max() < 2e-6


@pytest.mark.parametrize("estimator", ["standard", "stl"])
def test_vr_max_follows_the_largest_weight_of_each_datum(estimator):
    x, loc = torch.tensor([0.5, -1.0, 2.0]), torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(loc, 1.0))

    objective = Renyi(4, alpha=-float("inf"), estimator=estimator)
    pyro.set_rng_seed(0)
    loss = objective.differentiable_loss(model, guide)
    loss.backward()
    pyro.set_rng_seed(0)
    noise = poutine.trace(pyro.plate("k", 4, dim=-2)(guide)).get_trace().nodes["z"]["value"] - loc
    free = loc.detach().clone().requires_grad_()
    z = free + noise.detach()
    log_q = dist.Normal(free if estimator == "standard" else free.detach(), 1.0).log_prob(z)
    weights = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x) - log_q
    largest = weights.max(0).values
    torch.testing.assert_close(loss, -largest.sum())
    (gradient,) = torch.autograd.grad(-largest.sum(), free)
    torch.testing.assert_close(loc.grad, gradient)


@pytest.mark.parametrize("per", ["dimension", "site"])
@pytest.mark.parametrize("of", ["batch", "datum"])
@pytest.mark.parametrize("analytic", [True, False])
def test_free_bits_are_scaled_after_the_threshold(per, of, analytic):
    loc = torch.stack([LOC_A, LOC_B], 1)

    def site(loc):
        with pyro.plate("data", ROWS), poutine.scale(scale=2.5):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    rates = loc**2 / 2 if per == "dimension" else (loc**2 / 2).sum(1, keepdim=True)
    if of == "datum":
        expected = 2.5 * rates.clamp(min=0.6).sum()
    else:
        expected = 2.5 * ROWS * rates.mean(0).clamp(min=0.6).sum()
    torch.manual_seed(0)
    objective = FreeBits(1 if analytic else 20_000, nats=0.6, per=per, of=of, analytic=analytic)
    loss = objective.differentiable_loss(lambda: site(torch.zeros(ROWS, 2)), lambda: site(loc))
    torch.testing.assert_close(loss, expected, rtol=0.0 if analytic else 0.02, atol=1e-5)


@pytest.mark.parametrize("scale", [torch.tensor(2.0), torch.linspace(0.5, 2.0, ROWS)])
def test_free_bits_refuse_scales_that_are_tensors(scale):
    with pytest.raises(ValueError, match="numbers as scales for free bits, got a tensor at 'a'"):
        FreeBits(per="site", analytic=False).loss(*program(scale=scale))


def test_a_plate_of_the_model_alone_has_the_same_rows_for_all_particles_of_a_loop():
    """With z all but fixed, every particle gives the bound of its rows."""
    x, width = torch.linspace(-2.0, 2.0, 5), 1e-5

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5, subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide():
        pyro.sample("z", dist.Uniform(-width / 2, width / 2))

    log_p = dist.Normal(0.0, 1.0).log_prob(x)
    sums = torch.stack([log_p[a] + log_p[b] for a, b in itertools.combinations(range(5), 2)])
    constant = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) + math.log(width)
    objective = FreeBits(4, nats=0.0, vectorize_particles=False)
    for seed in range(8):
        pyro.set_rng_seed(seed)
        bound = -objective.loss(model, guide)
        assert (sums * 5 / 2 + constant - bound).abs().min() < 1e-3
