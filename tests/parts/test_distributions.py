"""Laws of the distributions: normalization, moments, draws and their gradients."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy.special import roots_legendre

from pyro_vae.distributions import ContinuousBernoulli, FullNormal, Levels, ProfileNormal

Z_BOUND = 4.5
"""Passed by chance at a rate below 1e-5; the seeds are fixed."""

DTYPES = (torch.float32, torch.float64)

LOGITS = (-300.0, -40.0, -3.0, -0.6, -0.4, -0.051, -0.049, -1e-3, -1e-6, 0.0)
LOGITS += tuple(-value for value in LOGITS[:-1])


def quadrature(nodes: int = 400, low: float = 0.0, high: float = 1.0):
    """Nodes and weights of Gauss and Legendre, in double precision."""
    x, w = (torch.as_tensor(v, dtype=torch.float64) for v in roots_legendre(nodes))
    return low + (high - low) * (x + 1) / 2, w * (high - low) / 2


def exact_moments(eta: float):
    """The normalizer, mean and variance of exp(eta x) on [0, 1], by quadrature."""
    x, w = quadrature()
    weight = w * torch.exp(eta * x - max(eta, 0.0))
    mass = weight.sum()
    mean = (weight * x).sum() / mass
    return mass.log() + max(eta, 0.0), mean, (weight * (x - mean) ** 2).sum() / mass


def z_scores(draws: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """How many standard errors the mean of draws, over the first dimension, is off."""
    return (draws.mean(0) - mean) / (draws.std(0) / math.sqrt(len(draws))).clamp(min=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_continuous_bernoulli_integrates_to_one(dtype):
    x, w = quadrature()
    logits = torch.tensor(LOGITS, dtype=dtype)
    density = ContinuousBernoulli(logits).log_prob(x.to(dtype)[:, None]).exp()
    assert density.dtype == dtype
    mass = (w[:, None] * density.double()).sum(0)
    # In single precision eta x - A(eta) carries the rounding of a number of the size of eta.
    tolerance = 1e-11 if dtype == torch.float64 else 1e-6 + 2e-7 * logits.double().abs()
    assert ((mass - 1).abs() < tolerance).all(), mass - 1


@pytest.mark.parametrize("eta", [0.01, 0.03, 0.0499, 0.0501, 0.1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_normalizer_of_a_continuous_bernoulli_is_precise_near_zero(eta, sign):
    """Of the exact log((exp(eta) - 1) / eta), as its power series to higher order."""
    eta = sign * eta
    series = eta / 2 + eta**2 / 24 - eta**4 / 2880 + eta**6 / 181440 - eta**8 / 9676800
    d = ContinuousBernoulli(torch.tensor(eta, dtype=torch.float64))
    assert abs(d.log_normalizer().item() - series) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eta", LOGITS)
def test_continuous_bernoulli_has_the_moments_of_its_density(eta, dtype):
    normalizer, mean, variance = exact_moments(eta)
    d = ContinuousBernoulli(torch.tensor(eta, dtype=dtype))
    rtol = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(d.log_normalizer().double(), normalizer, rtol=rtol, atol=rtol)
    torch.testing.assert_close(d.mean.double(), mean, rtol=rtol, atol=0)
    torch.testing.assert_close(d.variance.double(), variance, rtol=rtol, atol=0)


@pytest.mark.parametrize(
    ("probability", "log_c"), [(0.01, 1.5452), (0.3, 0.7506), (0.5, 0.6931), (0.9, 1.0103)]
)
def test_continuous_bernoulli_has_the_published_normalizer(probability, log_c):
    p = torch.tensor(probability, dtype=torch.float64)
    d = ContinuousBernoulli(torch.logit(p))
    got = d.log_prob(torch.tensor(1.0, dtype=torch.float64)) - p.log()
    assert got.item() == pytest.approx(log_c, abs=6e-5)
    if probability != 0.5:
        mean = p / (2 * p - 1) + 1 / (2 * torch.atanh(1 - 2 * p))
        torch.testing.assert_close(d.mean, mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("eta", [-1e13, -700.0, -0.01, 0.0, 0.01, 700.0, 1e13])
def test_continuous_bernoulli_has_finite_gradients_everywhere(eta):
    logits = torch.tensor(eta, requires_grad=True)
    d = ContinuousBernoulli(logits)
    value = torch.tensor(0.25)
    for out in (d.log_prob(value), d.mean, d.variance, d.rsample()):
        (gradient,) = torch.autograd.grad(out, logits)
        assert torch.isfinite(out)
        assert torch.isfinite(gradient)
    (slope,) = torch.autograd.grad(d.log_prob(value), logits)
    torch.testing.assert_close(slope, value - d.mean.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("eta", [-200.0, -5.0, -0.03, -0.01, 0.0, 0.01, 0.03, 5.0, 200.0])
def test_continuous_bernoulli_draws_follow_the_distribution_function(eta):
    n = 50_000
    logits = torch.full((n,), eta, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    draws = ContinuousBernoulli(logits).rsample()
    torch.manual_seed(3)
    u = torch.rand(n, dtype=torch.float64)
    # The distribution function of draws made for eta > 0 by reflection is that of 1 - u.
    x = draws.detach()
    f = torch.expm1(eta * x) / math.expm1(eta) if eta else x
    target = 1 - u if eta > 0.02 else u
    torch.testing.assert_close(f, target, rtol=0, atol=1e-9)
    _, mean, variance = exact_moments(eta)
    assert z_scores(x, mean).abs() < Z_BOUND
    assert z_scores((x - mean) ** 2, variance).abs() < Z_BOUND
    (gradient,) = torch.autograd.grad(draws.sum(), logits)
    torch.testing.assert_close(gradient, implicit_gradient(x, eta), rtol=1e-5, atol=1e-8)


def implicit_gradient(x: torch.Tensor, eta: float) -> torch.Tensor:
    """The derivative of the quantile, -(dF / d eta) / f: closed form, near 0 quadrature."""
    if abs(eta) > 1:
        size, y = abs(eta), (1 - x if eta > 0 else x)
        share = torch.expm1(-size * y) / math.expm1(-size)
        return (y - torch.exp(-size * (1 - y)) * share) / size
    t, w = quadrature(60)
    normalizer, mean, _ = exact_moments(eta)
    points = x[:, None] * t
    density = torch.exp(eta * points - normalizer)
    by_eta = (w * density * (points - mean)).sum(-1) * x
    return -by_eta / torch.exp(eta * x - normalizer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_sum_to_one_and_have_the_moments_of_the_sum(levels, dtype):
    torch.manual_seed(0)
    spread = torch.tensor([0.0, 1.0, 40.0], dtype=dtype)[:, None]
    d = Levels(spread * torch.linspace(-1, 1, levels, dtype=dtype)[torch.randperm(levels)])
    grid = torch.arange(levels, dtype=dtype) / (levels - 1)
    p = d.log_prob(grid[:, None]).double().exp()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(p.sum(0), torch.ones(3).double(), rtol=0, atol=tolerance)
    x = grid.double()[:, None]
    mean = (p * x).sum(0)
    torch.testing.assert_close(d.mean.double(), mean, rtol=tolerance, atol=0)
    variance = (p * (x - mean) ** 2).sum(0)
    torch.testing.assert_close(d.variance.double(), variance, rtol=10 * tolerance, atol=0)


def test_only_levels_are_discrete():
    assert Levels.support.is_discrete
    assert Levels(torch.zeros(3)).support.is_discrete
    assert not any(d.support.is_discrete for d in (ContinuousBernoulli, FullNormal, ProfileNormal))


def test_levels_variance_of_a_certain_level_is_not_negative():
    logits = torch.zeros(256)
    logits[200] = 60.0
    d = Levels(logits)
    assert d.variance >= 0
    assert d.variance.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sample_shape", [(), (40_000,), (200, 100)])
def test_levels_draw_their_probabilities(sample_shape):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    d = Levels(logits)
    draws = d.sample(sample_shape)
    assert draws.shape == (*sample_shape, 2, 3)
    assert draws.dtype == torch.float64
    assert d.support.check(draws).all()
    if sample_shape:
        counts = torch.stack([(draws == level / 4).double() for level in range(5)], -1)
        assert z_scores(counts.flatten(0, -4), logits.softmax(-1)).abs().max() < Z_BOUND


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_normal_integrates_to_one(dtype):
    tril = torch.tensor([[0.7, 0.0], [-0.9, 0.4]], dtype=dtype)
    loc = torch.tensor([0.3, -1.0], dtype=dtype)
    x, w = quadrature(120, -9.0, 9.0)
    grid = torch.cartesian_prod(x, x).to(dtype)
    density = FullNormal(loc, scale_tril=tril).log_prob(grid).double().exp()
    weight = (w[:, None] * w).flatten() * density
    assert weight.sum().item() == pytest.approx(1, abs=1e-6)
    mean = (weight[:, None] * grid.double()).sum(0)
    torch.testing.assert_close(mean, loc.double(), rtol=1e-5, atol=1e-6)
    centred = grid.double() - mean
    covariance = torch.einsum("n,ni,nj->ij", weight, centred, centred)
    torch.testing.assert_close(covariance, (tril @ tril.T).double(), rtol=1e-5, atol=1e-5)


def test_full_normal_draws_and_their_gradient():
    loc = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    tril = torch.tensor([[0.7, 0.0], [-0.9, 0.4]], dtype=torch.float64, requires_grad=True)
    draws = FullNormal(loc, scale_tril=tril).rsample((50_000,))
    with torch.no_grad():
        assert z_scores(draws, loc).abs().max() < Z_BOUND
        second = (draws - loc)[:, :, None] * (draws - loc)[:, None, :]
        assert z_scores(second, tril @ tril.T).abs().max() < Z_BOUND
        noise = torch.linalg.solve_triangular(tril, (draws - loc).T, upper=False).T
    by_loc, by_tril = torch.autograd.grad((draws * torch.tensor([2.0, 3.0])).sum(), [loc, tril])
    weight = torch.tensor([2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(by_loc, weight * len(draws))
    torch.testing.assert_close(by_tril, weight[:, None] * noise.sum(0), rtol=1e-8, atol=1e-8)


def test_full_normal_scores_its_last_draw_by_the_noise():
    size = 400
    tril = torch.randn(size, size).tril(-1) + torch.eye(size)
    q = FullNormal(torch.zeros(size), scale_tril=tril)
    with torch.no_grad():
        first = q.sample((50,))
        torch.manual_seed(3)
        z = q.sample((50,))
        torch.manual_seed(3)
        noise = torch.randn(50, size)
        expected = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1)
        torch.testing.assert_close(q.log_prob(z), expected)
        # Solving for the noise overflows, as this factor is singular in single precision.
        assert not torch.isfinite(q.log_prob(z.clone())).all()
        assert not torch.isfinite(q.log_prob(first)).all()


def test_full_normal_scores_like_its_parent():
    tril = (torch.randn(3, 4, 4) * 0.3).tril(-1) + torch.eye(4)
    loc, tril = torch.randn(2, 3, 4).double(), tril.double()
    leaf = tril.clone().requires_grad_()
    q = FullNormal(loc, scale_tril=leaf)
    reference = dist.MultivariateNormal(loc, scale_tril=tril)
    for shape in ((), (5,), (5, 6)):
        z = q.rsample(torch.Size(shape))
        torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))
        with torch.no_grad():
            torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))
            wide = q.expand([*shape, 2, 3])
            torch.testing.assert_close(wide.log_prob(z), reference.log_prob(z))
    # The slope of the density at a draw is that at any value, not that of constant noise.
    z = q.sample()
    (at_draw,) = torch.autograd.grad(q.log_prob(z).sum(), leaf)
    (at_value,) = torch.autograd.grad(q.log_prob(z.clone()).sum(), leaf)
    torch.testing.assert_close(at_draw, at_value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_profile_normal_is_the_maximum_likelihood_of_the_scale(dtype):
    loc, x = torch.randn(6, 5, dtype=dtype, requires_grad=True), torch.randn(6, 5, dtype=dtype)
    seen: list[torch.Tensor] = []
    d = ProfileNormal(loc, torch.tensor(2.0, dtype=dtype), observe=seen.append)
    log_prob = d.log_prob(x).sum()
    mse = ((x - loc) ** 2).mean()
    expected = -x.numel() / 2 * (1 + (2 * math.pi * mse).log())
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(seen, [mse.detach()])
    assert not seen[0].requires_grad
    (gradient,) = torch.autograd.grad(log_prob, loc)
    (by_hand,) = torch.autograd.grad(expected, loc)
    torch.testing.assert_close(gradient, by_hand)
    scales = torch.linspace(0.2, 3.0, 200, dtype=dtype)[:, None, None]
    others = dist.Normal(loc.detach(), scales).log_prob(x).sum((-1, -2))
    assert others.max() <= log_prob + 1e-4
    assert others.max() > log_prob - 0.1


def test_samples_of_profile_normal_are_reparameterized():
    loc, scale = torch.zeros(5, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    d = ProfileNormal(loc, scale)
    assert d.has_rsample
    assert d.to_event(1).has_rsample
    value = d.rsample()
    for_loc, for_scale = torch.autograd.grad(value.sum(), (loc, scale))
    torch.testing.assert_close(for_loc, torch.ones(5))
    torch.testing.assert_close(for_scale, (value / scale).detach().sum())


def test_profile_normal_at_its_floor_is_a_normal():
    loc = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([1e-4, -2e-4, 0.0], dtype=torch.float64)
    d = ProfileNormal(loc, torch.ones(()), floor=0.01)
    normal = dist.Normal(loc, 0.01)
    torch.testing.assert_close(d.log_prob(x), normal.log_prob(x))
    (gradient,) = torch.autograd.grad(d.log_prob(x).sum(), loc)
    torch.testing.assert_close(gradient, x / 0.01**2)


@pytest.mark.parametrize("inner", [True, False])
def test_profile_normal_leaves_what_is_masked_out_of_the_scale(inner):
    loc, x = torch.randn(4, 5), torch.randn(4, 5)
    mask = torch.rand(4, 5) > 0.4
    x[~mask] = 1e6
    d = ProfileNormal(loc.requires_grad_(), torch.ones(()))
    masked = d.mask(mask).expand([4, 5]) if inner else d.expand([4, 5]).mask(mask)
    log_prob = masked.log_prob(x)
    assert (log_prob[~mask] == 0).all()
    alone = ProfileNormal(loc[mask], torch.ones(())).log_prob(x[mask])
    torch.testing.assert_close(log_prob[mask], alone)
    (gradient,) = torch.autograd.grad(log_prob.sum(), loc)
    assert (gradient[~mask] == 0).all()
    (by_hand,) = torch.autograd.grad(alone.sum(), loc)
    torch.testing.assert_close(gradient, by_hand)


def by_hand(errors: torch.Tensor) -> torch.Tensor:
    """Returns the log density of errors under a normal whose variance is their mean square."""
    return -0.5 * len(errors) * (1 + torch.log(2 * math.pi * errors.square().mean()))


ROWS_SEEN = torch.tensor([True, False, True, True])
MORE_SEEN = torch.tensor([True, True, True, False])
SEEN = torch.rand(4, 2, 5, generator=torch.Generator().manual_seed(0)) > 0.4
LINES_SEEN = torch.tensor([[True, False], [True, True], [False, False], [False, True]])

NESTED = {
    "rows": (lambda d: d.to_event(2).mask(ROWS_SEEN), ROWS_SEEN[:, None, None]),
    "rows_twice": (
        lambda d: d.to_event(2).mask(ROWS_SEEN).mask(MORE_SEEN),
        (ROWS_SEEN & MORE_SEEN)[:, None, None],
    ),
    "elements_and_rows": (
        lambda d: d.mask(SEEN).to_event(2).mask(ROWS_SEEN),
        SEEN & ROWS_SEEN[:, None, None],
    ),
    "in_steps": (lambda d: d.to_event(1).mask(LINES_SEEN).to_event(1), LINES_SEEN[..., None]),
    "true": (lambda d: d.to_event(2).mask(True).mask(ROWS_SEEN), ROWS_SEEN[:, None, None]),
    "expanded": (lambda d: d.to_event(2).mask(ROWS_SEEN).expand([4]), ROWS_SEEN[:, None, None]),
}


@pytest.mark.parametrize("name", NESTED)
def test_profile_normal_counts_what_masks_around_its_wrappers_leave(name):
    make, seen = NESTED[name]
    seen = seen.expand(4, 2, 5)
    loc, x = torch.randn(4, 2, 5, requires_grad=True), torch.randn(4, 2, 5)
    x = torch.where(seen, x, 1e3)
    log_prob = make(ProfileNormal(loc, torch.ones(()))).log_prob(x).sum()
    expected = by_hand((x - loc)[seen])
    torch.testing.assert_close(log_prob, expected)
    (gradient,), (slope,) = (torch.autograd.grad(v, loc) for v in (log_prob, expected))
    torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("mask", [False, torch.zeros(4, dtype=torch.bool)])
def test_profile_normal_keeps_its_scale_where_nothing_is_observed(mask):
    best: list[torch.Tensor] = []
    d = ProfileNormal(torch.randn(4, 2), torch.tensor(0.7), observe=best.append)
    assert d.to_event(1).mask(mask).log_prob(torch.randn(4, 2)).tolist() == [0.0] * 4
    torch.testing.assert_close(best, [torch.tensor(0.49)] * len(best))
    d.counting(mask if mask is False else mask[:, None]).log_prob(torch.full((4, 2), 1e9))
    torch.testing.assert_close(best[-1], torch.tensor(0.49))


def test_profile_normal_draws_with_its_fixed_scale():
    loc = torch.tensor([0.0, 4.0], dtype=torch.float64, requires_grad=True)
    d = ProfileNormal(loc, torch.tensor(2.0, dtype=torch.float64))
    draws = d.rsample((50_000,))
    with torch.no_grad():
        assert z_scores(draws, d.mean).abs().max() < Z_BOUND
        assert z_scores((draws - loc) ** 2, d.variance).abs().max() < Z_BOUND
    (gradient,) = torch.autograd.grad(draws.sum(), loc)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 50_000.0))


ROWS = {
    "ContinuousBernoulli": (lambda: ContinuousBernoulli(torch.randn(3, 1)), 0.25, (-0.01, 1.01)),
    "Levels": (lambda: Levels(torch.randn(3, 1, 5)), 0.25, (0.2, 1.25, -0.25)),
    "ProfileNormal": (lambda: ProfileNormal(torch.randn(3, 1), torch.ones(())), 0.25, ()),
    "FullNormal": (
        lambda: FullNormal(torch.zeros(3, 1, 2), scale_tril=torch.eye(2)),
        (0.1, 0.2),
        (),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_expand_gives_the_same_distribution_of_another_batch_shape(name):
    make, value, _ = ROWS[name]
    d = make()
    wide = d.expand([4, 3, 2])
    assert type(wide) is type(d)
    assert wide.batch_shape == (4, 3, 2)
    assert wide.event_shape == d.event_shape
    x = torch.tensor(value).expand(wide.shape())
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x))
    assert wide.sample((7,)).shape == (7, *wide.shape())
    assert wide.mean.shape == wide.variance.shape == wide.shape()
    torch.testing.assert_close(wide.mean, d.mean.expand(wide.shape()))
    torch.testing.assert_close(wide.to_event(2).log_prob(x), wide.log_prob(x).sum((-1, -2)))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("sample_shape", [(), (2,), torch.Size((2, 3))])
def test_draws_have_the_shape_that_is_asked_for(name, sample_shape):
    d = ROWS[name][0]()
    assert d.sample(sample_shape).shape == (*sample_shape, *d.shape())
    assert not d.sample(sample_shape).requires_grad


@pytest.mark.parametrize("name", ROWS)
def test_values_outside_of_the_support_are_refused(name):
    make, value, outside = ROWS[name]
    d = make()
    good = torch.tensor(value).expand(d.shape())
    for wrong in (*outside, math.nan):
        with pytest.raises(ValueError, match="support"):
            d.log_prob(torch.full_like(good, wrong))
        with pytest.raises(ValueError, match="support"):
            d.expand([2, *d.batch_shape]).log_prob(torch.full_like(good, wrong))
    with pytest.raises(ValueError, match="Value is not broadcastable"):
        d.log_prob(torch.zeros(4, 5, 7)[..., : d.event_shape[-1] if d.event_shape else 7])


@pytest.mark.parametrize("name", ["ContinuousBernoulli", "Levels", "ProfileNormal"])
def test_validation_can_be_switched_off(name):
    kinds = {
        "ContinuousBernoulli": ContinuousBernoulli,
        "Levels": Levels,
        "ProfileNormal": lambda loc, **kw: ProfileNormal(loc, torch.ones(()), **kw),
    }
    bad = torch.full((5,), math.nan)
    with pytest.raises(ValueError, match="Expected parameter"):
        kinds[name](bad)
    d = kinds[name](torch.zeros(5), validate_args=False)
    assert torch.isfinite(d.log_prob(torch.tensor(0.25))).all()
    assert torch.isfinite(d.expand([2, *d.batch_shape]).log_prob(torch.tensor(0.26))).all()


def test_expanding_does_not_validate_what_was_not_validated():
    wild = ContinuousBernoulli(torch.tensor(float("nan")), validate_args=False)
    assert wild.expand([3]).batch_shape == (3,)


@pytest.mark.parametrize("draw", ["sample", "rsample"])
def test_draws_lie_on_the_device_of_the_parameters(draw):
    d = ContinuousBernoulli(logits=torch.zeros(3, device="meta"), validate_args=False)
    assert getattr(d, draw)((2,)).device.type == "meta"
