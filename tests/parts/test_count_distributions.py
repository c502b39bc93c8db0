"""Densities of counts and positive values, against high-precision arithmetic and scipy."""

import math

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vae import distributions as ours

mpmath.mp.dps = 50


def exact_poisson(x, mean):
    return x * mpmath.log(mean) - mean - mpmath.loggamma(x + 1)


def exact_negative_binomial(x, mean, theta):
    binomial = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
    total = theta + mean
    return binomial + theta * mpmath.log(theta / total) + x * mpmath.log(mean / total)


def exact_gamma(x, k, rate):
    return k * mpmath.log(rate) - mpmath.loggamma(k) + (k - 1) * mpmath.log(x) - rate * x


def exact_beta(x, a, b):
    normalizer = mpmath.loggamma(a + b) - mpmath.loggamma(a) - mpmath.loggamma(b)
    return normalizer + (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log(1 - x)


# A class, its density, and the exponents of ten between which its parameters lie.
CASES = {
    "poisson": (ours.Poisson, exact_poisson, [(-8, 7)]),
    "negative_binomial": (
        ours.NegativeBinomial, exact_negative_binomial, [(-8, 7), (-6, 9)]
    ),
    "gamma": (ours.Gamma, exact_gamma, [(-3, 6), (-5, 5)]),
    "beta": (ours.Beta, exact_beta, [(-3, 6), (-3, 6)]),
}  # fmt: skip
TOLERANCE = {torch.float32: 3e-4, torch.float64: 2e-12}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_densities_are_those_of_high_precision(name, dtype):
    make, exact, exponents = CASES[name]
    rng, worst = np.random.default_rng(0), 0.0
    tiny = torch.finfo(dtype).tiny
    for i in range(300):
        numbers = [torch.tensor(10 ** rng.uniform(*bounds), dtype=dtype) for bounds in exponents]
        d = make(*numbers)
        torch.manual_seed(i)
        x = d.sample()
        if i % 4 == 0 and name in ("poisson", "negative_binomial"):
            x = torch.tensor(float(rng.integers(0, 1000)), dtype=dtype)
        if (x == 0 and name == "gamma") or 0 < x < 2 * tiny:
            continue
        truth = float(exact(*(mpmath.mpf(value.item()) for value in (x, *numbers))))
        worst = max(worst, abs(d.log_prob(x).item() - truth) / (1 + abs(truth)))
    assert worst < TOLERANCE[dtype]


def test_torch_is_less_accurate_for_large_counts_and_concentrations():
    count = torch.tensor(4.1e6)
    truth = float(exact_poisson(mpmath.mpf(count.item()), mpmath.mpf(count.item())))
    assert abs(dist.Poisson(count).log_prob(count).item() - truth) > 0.1
    assert ours.Poisson(count).log_prob(count).item() == pytest.approx(truth, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name):
    make, _, _ = CASES[name]
    numbers = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.7, 21.0)]
    numbers = numbers[: len(CASES[name][2])]
    for value in (0.0, 1.0, 4.0, 300.0):
        x = torch.tensor(value, dtype=torch.float64)
        if name in ("gamma", "beta"):
            x = (x + 0.5) / 400
        assert torch.autograd.gradcheck(lambda *p, x=x: make(*p).log_prob(x), numbers)


def test_multinomial_is_scipys():
    logits = torch.randn(4, dtype=torch.float64)
    d = ours.Multinomial(logits, torch.tensor(9.0))
    for x in ([9, 0, 0, 0], [2, 3, 4, 0], [0, 0, 0, 0], [100, 200, 300, 400]):
        truth = stats.multinomial.logpmf(x, sum(x), logits.softmax(-1).numpy())
        value = d.log_prob(torch.tensor(x, dtype=torch.float64)).item()
        assert value == pytest.approx(truth, rel=1e-12, abs=1e-12)


def test_multinomial_draws_follow_their_density():
    d = ours.Multinomial(torch.tensor([0.0, 1.0, -1.0]), torch.tensor(4.0))
    torch.manual_seed(0)
    draws = d.sample(torch.Size((20_000,)))
    assert (draws.sum(-1) == 4).all()
    values, counts = draws.unique(dim=0, return_counts=True)
    expected = d.log_prob(values).exp() * len(draws)
    # Every event has a chance: there are 15 of them, and all occur.
    assert len(values) == 15
    assert stats.chisquare(counts.numpy(), expected.numpy(), sum_check=False).pvalue > 1e-4


def test_multinomial_of_an_image_is_that_of_its_elements():
    logits = torch.randn(5, 2, 3)
    image = ours.Multinomial(logits, torch.tensor(7.0), event_dim=2)
    flat = ours.Multinomial(logits.flatten(1), torch.tensor(7.0))
    x = image.sample()
    assert x.shape == (5, 2, 3)
    torch.testing.assert_close(image.log_prob(x), flat.log_prob(x.flatten(1)))
    torch.testing.assert_close(image.mean.flatten(1), flat.mean)
    sizes = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert torch.equal(image.at_size(sizes).sample().sum((-1, -2)), sizes)


def test_zero_inflation_mixes_a_zero_in():
    base = ours.NegativeBinomial(torch.tensor(3.0), torch.tensor(2.0))
    d = ours.ZeroInflated(base, torch.tensor(0.7))
    gate = torch.sigmoid(torch.tensor(0.7))
    counts = torch.arange(400.0)
    expected = (1 - gate) * base.log_prob(counts).exp() + gate * (counts == 0)
    torch.testing.assert_close(d.log_prob(counts).exp(), expected)
    assert d.mean.item() == pytest.approx((counts * expected).sum().item(), rel=1e-5)
    second = (counts**2 * expected).sum().item()
    assert d.variance.item() == pytest.approx(second - d.mean.item() ** 2, rel=1e-4)


def test_a_draw_does_not_change_the_density_of_zero_inflated_counts():
    base = ours.Poisson(torch.tensor(3.0))
    pyros = dist.ZeroInflatedDistribution(base, gate_logits=torch.tensor(50.0))
    d = ours.ZeroInflated(base, torch.tensor(50.0))
    one = torch.tensor(1.0)
    before = d.log_prob(one)
    assert torch.equal(pyros.log_prob(one), before)
    d.sample()
    pyros.sample()
    assert torch.equal(d.log_prob(one), before)
    assert pyros.log_prob(one) == -math.inf


@pytest.mark.parametrize("size", [0.5, 40.0])
def test_counts_given_the_row_sum_are_those_at_that_size(size):
    mean, theta = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1.0, 2.0, 0.5])
    unit = ours.ZeroInflated(ours.NegativeBinomial(mean, theta), torch.tensor(-1.0)).to_event(1)
    d = ours.GivenRowSum(unit, torch.tensor(size))
    x = torch.tensor([[1.0, 5.0, 0.0], [0.0, 0.0, 0.0], [20.0, 0.0, 3.0]])
    for row in x:
        own = ours.NegativeBinomial(mean * row.sum().clamp(min=1e-8), theta)
        truth = ours.ZeroInflated(own, torch.tensor(-1.0)).log_prob(row).sum()
        torch.testing.assert_close(d.log_prob(row), truth)
    torch.testing.assert_close(d.log_prob(x), torch.stack([d.log_prob(row) for row in x]))
    torch.testing.assert_close(d.mean, torch.sigmoid(torch.tensor(1.0)) * mean * size)


def test_a_row_of_zeros_has_a_finite_gradient():
    h = torch.zeros(3, requires_grad=True)
    unit = ours.Poisson(h.softmax(-1)).to_event(1)
    ours.GivenRowSum(unit, torch.tensor(1.0)).log_prob(torch.zeros(3)).backward()
    assert torch.isfinite(h.grad).all()


def test_draws_of_beta_lie_strictly_inside():
    draws = ours.Beta(torch.tensor(1e-3), torch.tensor(1e-3)).sample(torch.Size((2000,)))
    assert bool(((draws > 0) & (draws < 1)).all())


def test_tiny_probabilities_keep_their_density_and_gradient():
    logits = torch.tensor([0.0, -200.0], requires_grad=True)
    log_prob = ours.Multinomial(logits, torch.tensor(3.0)).log_prob(torch.tensor([2.0, 1.0]))
    assert log_prob.item() == pytest.approx(math.log(3) - 200, rel=1e-6)
    assert torch.autograd.grad(log_prob, logits)[0].tolist() == pytest.approx([-1, 1])
    impossible = ours.Multinomial(torch.tensor([0.0, -math.inf]), torch.tensor(2.0))
    assert impossible.log_prob(torch.tensor([1.0, 1.0])) == -math.inf
    assert impossible.log_prob(torch.tensor([2.0, 0.0])) == 0


@pytest.mark.parametrize(("x", "k", "rate"), [(1e7, 1.0, 1.0), (1e9, 1.0, 1.0), (1e3, 1e-3, 1e6)])
def test_the_gradient_of_a_concentration_does_not_cancel(x, k, rate):
    numbers = [torch.tensor(v, requires_grad=True) for v in (k, rate)]
    log_prob = ours.Gamma(*numbers).log_prob(torch.tensor(x))
    gradient = torch.autograd.grad(log_prob, numbers[0])[0].item()
    truth = math.log(rate) - float(mpmath.digamma(k)) + math.log(x)
    assert gradient == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize(("a", "b"), [(1e-3, 1e-3), (1e-4, 3e-4), (0.5, 2.0), (40.0, 7.0)])
def test_draws_of_a_beta_follow_its_mean_and_halves(a, b):
    torch.manual_seed(0)
    draws = ours.Beta(torch.tensor(a), torch.tensor(b)).sample(torch.Size((40_000,)))
    above = (draws > 0.5).double().mean().item()
    expected = stats.beta.sf(0.5, a, b)
    assert abs(above - expected) < 4 * math.sqrt(expected * (1 - expected) / len(draws)) + 1e-4
    assert (draws == 0.5).double().mean() < 1e-3


@pytest.mark.parametrize(
    ("x", "mean", "theta"),
    [
        (1.0, 1e12, 1e30),
        (1.0, 1e19, 1e20),
        (1.0, 1e30, 1e9),
        (0.0, 1e-30, 1e-30),
        (3.0, 2.0, 1e-15),
    ],
)
def test_negative_binomials_do_not_overflow_within(x, mean, theta):
    numbers = [torch.tensor(v) for v in (mean, theta)]
    value = ours.NegativeBinomial(*numbers).log_prob(torch.tensor(x)).item()
    mpmath.mp.dps = 120
    truth = float(
        exact_negative_binomial(*(mpmath.mpf(t.item()) for t in (torch.tensor(x), *numbers)))
    )
    mpmath.mp.dps = 50
    assert value == pytest.approx(truth, rel=1e-5, abs=1e-5)


def test_zero_inflation_that_is_almost_off_changes_nothing():
    base = ours.NegativeBinomial(torch.tensor(0.01), torch.tensor(0.1))
    zero = torch.tensor(0.0)
    for gate in (-1000.0, -60.0):
        torch.testing.assert_close(
            ours.ZeroInflated(base, torch.tensor(gate)).log_prob(zero), base.log_prob(zero)
        )


COUNTS = ours.Poisson(torch.ones(3))

BAD = {
    "total": (lambda: ours.Multinomial(torch.zeros(2), torch.tensor(2.5)), "parameter total"),
    "total number": (lambda: ours.Multinomial(torch.zeros(2), 2), "total to be a tensor of shape"),
    "total shape": (
        lambda: ours.Multinomial(torch.zeros(5, 4), torch.arange(3.0)), r"shape \(\) or \(5,\)"
    ),
    "logits": (lambda: ours.Multinomial(torch.tensor([0, math.nan]), torch.tensor(2.0)),
               "parameter logits"),
    "event_dim": (lambda: ours.Multinomial(torch.tensor(0.0), torch.tensor(2.0)), "logits of 1"),
    "reference": (lambda: ours.GivenRowSum(COUNTS.to_event(1), torch.tensor(-1.0)),
                  "parameter reference"),
    "unit": (lambda: ours.GivenRowSum(COUNTS, torch.tensor(1.0)), "unit to be independent counts"),
    "kind": (lambda: ours.GivenRowSum(
        ours.Gamma(torch.ones(3), torch.ones(3)).to_event(1), torch.tensor(1.0)).mean,
        "unit to be Poisson, NegativeBinomial or ZeroInflated"),
    "base": (lambda: ours.ZeroInflated(COUNTS.to_event(1), torch.tensor(0.0)),
             "base_dist without event dimensions"),
    "gamma": (lambda: ours.Gamma(torch.tensor(1.0), torch.tensor(1.0)).log_prob(torch.tensor(0.0)),
              "within the support"),
    "beta": (lambda: ours.Beta(torch.tensor(1.0), torch.tensor(1.0)).log_prob(torch.tensor(1.0)),
             "within the support"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
