"""The discretized logistic: probabilities, tails, gradients, moments, draws and features."""

import itertools
import math
from functools import partial

import mpmath
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chisquare

from pyro_vae import VAE, distributions, likelihoods, networks, transforms
from pyro_vae.distributions import DiscretizedLogistic, discretized_logistic

DTYPES = (torch.float32, torch.float64)
LEVELS = (2, 3, 17, 256, 1000)
LOCS = (-50.0, -1.0, -0.01, 0.0, 0.1234, 0.5, 0.5 + 1 / 512, 0.9, 1.0, 1.2, 50.0)
SCALES = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.7, 3.0, 30.0, 1e3)


def make_grid(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of locations and scales."""
    return torch.tensor(list(itertools.product(LOCS, SCALES)), dtype=dtype).unbind(-1)


def make_levels(levels: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The levels, as values of shape ``(levels, 1)``."""
    return (torch.arange(levels, dtype=dtype) / (levels - 1)).unsqueeze(-1)


def make_mixture(levels: int = 17) -> DiscretizedLogistic:
    """A mixture of three components for each of four elements, some off the range."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 3, dtype=torch.float64, generator=generator)
    return DiscretizedLogistic(0.5 + noise[0], (noise[1] - 2).exp(), levels, 2 * noise[2])


def compute_exact(level: int, levels: int, loc: float, scale: float) -> float:
    """The log probability of a level, with 60 digits."""
    with mpmath.workdps(60):
        loc, scale = mpmath.mpf(loc), mpmath.mpf(scale)
        lower, upper = (
            ((mpmath.mpf(level) + half) / (levels - 1) - loc) / scale
            for half in (-mpmath.mpf(1) / 2, mpmath.mpf(1) / 2)
        )
        lower = -mpmath.inf if level == 0 else lower
        upper = mpmath.inf if level == levels - 1 else upper
        if lower > 0:
            lower, upper = -upper, -lower

        def cdf(x):
            return mpmath.exp(x) / (1 + mpmath.exp(x)) if x < 0 else 1 / (1 + mpmath.exp(-x))

        return float(mpmath.log(cdf(upper) - cdf(lower)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVELS)
def test_probabilities_sum_to_one(levels, dtype):
    loc, scale = make_grid(dtype)
    total = (
        DiscretizedLogistic(loc, scale, levels).log_prob(make_levels(levels, dtype)).exp().sum(0)
    )
    assert total.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)


@pytest.mark.parametrize("levels", LEVELS)
def test_probabilities_agree_with_sixty_digits(levels):
    loc, scale = make_grid(torch.float64)
    chosen = sorted({0, 1, levels // 8, levels // 2, levels - 2, levels - 1})
    values = make_levels(levels)[chosen]
    actual = DiscretizedLogistic(loc, scale, levels).log_prob(values)
    expected = [
        [
            compute_exact(level, levels, *pair)
            for pair in zip(loc.tolist(), scale.tolist(), strict=True)
        ]
        for level in chosen
    ]
    # The first is the error of the probability; the second is that of tails beyond exp(-700).
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=1e-14
    )


@pytest.mark.parametrize("levels", LEVELS)
def test_single_precision_is_exact_to_the_rounding_of_the_location(levels):
    loc, scale = make_grid(torch.float32)
    values = make_levels(levels, torch.float32)
    actual = DiscretizedLogistic(loc, scale, levels).log_prob(values).double()
    exact = DiscretizedLogistic(loc.double(), scale.double(), levels).log_prob(values.double())
    error = 6e-8 * (loc.double().abs() + 1 / levels) / scale.double()
    assert ((actual - exact).abs() <= 1e-6 + 4 * error + 4e-7 * exact.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVELS)
def test_values_and_gradients_are_finite_for_extreme_parameters(levels, dtype):
    pairs = itertools.product((-1e4, -1.0, 0.5, 1.0, 1e4), (1e-7, 1e-4, 1.0, 1e4, 1e10))
    loc, scale = torch.tensor(list(pairs), dtype=dtype).unbind(-1)
    loc.requires_grad_(), scale.requires_grad_()
    d = DiscretizedLogistic(loc, scale, levels)
    for out in (d.log_prob(make_levels(levels, dtype)), d.mean, d.variance):
        assert torch.isfinite(out).all()
        for gradient in torch.autograd.grad(out.sum(), (loc, scale)):
            assert torch.isfinite(gradient).all()


def test_gradients_agree_with_finite_differences():
    mixture = make_mixture()
    for levels in (2, 3, 17):

        def compute(loc, scale, logits, levels=levels):
            d = DiscretizedLogistic(loc, scale, levels, logits)
            return d.log_prob(make_levels(levels)), d.mean, d.variance

        parameters = [mixture.loc.clone(), mixture.scale.clone(), mixture.logits.clone()]
        assert torch.autograd.gradcheck(compute, [p.requires_grad_() for p in parameters])
        single = [p[:, 0].detach().requires_grad_() for p in parameters[:2]]
        assert torch.autograd.gradcheck(partial(compute, logits=None), single)


def test_a_mixture_is_the_weighted_sum_of_its_components():
    d = make_mixture()
    values = make_levels(17)
    parts = DiscretizedLogistic(d.loc, d.scale, 17).log_prob(values.unsqueeze(-1)).exp()
    torch.testing.assert_close(d.log_prob(values).exp(), (d.logits.exp() * parts).sum(-1))
    torch.testing.assert_close(d.logits.exp().sum(-1), torch.ones(4).double())


@pytest.mark.parametrize("cells", [400, 2**20])
@pytest.mark.parametrize("kind", ["single", "mixture"])
@pytest.mark.parametrize("levels", LEVELS)
def test_moments_are_those_of_the_sum_over_levels(levels, kind, cells, monkeypatch):
    monkeypatch.setattr(discretized_logistic, "_MAX_CELLS", cells)
    grid = make_grid(torch.float64)
    d = DiscretizedLogistic(*grid, levels) if kind == "single" else make_mixture(levels)
    values = make_levels(levels)
    p = d.log_prob(values).exp()
    mean = (p * values).sum(0)
    # A narrow distribution far below the range has a mean and a variance near zero.
    torch.testing.assert_close(d.mean, mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(d.variance, (p * (values - mean) ** 2).sum(0), rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_variance_of_a_certain_level_is_not_negative(dtype):
    d = DiscretizedLogistic(torch.tensor(200 / 255, dtype=dtype), torch.tensor(1e-4, dtype=dtype))
    assert 0 <= d.variance < 1e-12
    assert d.mean.item() == pytest.approx(200 / 255, rel=1e-6)


def test_a_wide_scale_gives_each_end_half_of_the_mass():
    d = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(1e6))
    torch.testing.assert_close(d.log_prob(torch.tensor([0.0, 1.0])).exp(), torch.full((2,), 0.5))


@pytest.mark.parametrize("level", [0, 1, 100, 255])
def test_a_narrow_scale_gives_one_level_all_of_the_mass(level):
    d = DiscretizedLogistic(torch.tensor(level / 255), torch.tensor(1e-5))
    log_prob = d.log_prob(make_levels(256, torch.float32))[:, 0]
    assert log_prob[level] > -1e-6
    assert (log_prob[torch.arange(256) != level] < -100).all()
    assert (d.sample((100,)) == torch.tensor(level / 255)).all()


def test_two_levels_are_a_bernoulli():
    loc, scale = make_grid(torch.float64)
    d, reference = DiscretizedLogistic(loc, scale, 2), dist.Bernoulli(logits=(loc - 0.5) / scale)
    x = make_levels(2)
    torch.testing.assert_close(d.log_prob(x), reference.log_prob(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(d.mean, reference.mean)


def test_many_levels_approach_the_logistic_density():
    levels = 100_001
    x = torch.arange(10, levels - 10, 97).double() / (levels - 1)
    loc, scale = torch.tensor([0.4, 0.05], dtype=torch.float64)
    d = DiscretizedLogistic(loc, scale, levels)
    u = (x - loc) / scale
    density = -u - 2 * torch.nn.functional.softplus(-u) - scale.log()
    torch.testing.assert_close(d.log_prob(x) + math.log(levels - 1), density, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["single", "mixture"])
def test_draws_have_their_probabilities(kind):
    """The seed is fixed; with another, each of the eight tests fails at a rate of 1e-5."""
    torch.manual_seed(0)
    d, rows = make_mixture(), 200_000
    if kind == "single":
        loc, scale = torch.tensor([-0.2, 0.3, 0.5, 1.4]), torch.tensor([0.1, 0.02, 0.3, 0.3])
        d = DiscretizedLogistic(loc.double(), scale.double(), 17)
    draws = d.sample((400, rows // 400))
    assert draws.shape == (400, rows // 400, 4)
    assert d.support.check(draws).all()
    expected = rows * d.log_prob(make_levels(17)).exp()
    counts = torch.stack([(draws == level).sum((0, 1)) for level in make_levels(17)])
    for count, mean in zip(counts.T, expected.T, strict=True):
        rare = mean < 10
        count, mean = (torch.cat([v[~rare], v[rare].sum(0, keepdim=True)]) for v in (count, mean))
        used = mean > 1
        assert chisquare(count[used], mean[used] * count[used].sum() / mean[used].sum())[1] > 1e-5
        assert count[~used].sum() < 20


def test_shapes_broadcast():
    d = DiscretizedLogistic(torch.rand(3, 1), torch.rand(2) + 0.1, 5)
    assert d.batch_shape == (3, 2)
    assert d.log_prob(torch.zeros(7, 1, 1)).shape == (7, 3, 2)
    assert d.log_prob(torch.tensor(0.25)).shape == (3, 2)
    mixture = DiscretizedLogistic(torch.rand(3, 1, 4), torch.tensor(0.1), 5, torch.zeros(2, 1))
    assert mixture.batch_shape == (3, 2)
    assert mixture.log_prob(torch.zeros(7, 1, 1)).shape == (7, 3, 2)
    for one in (d, mixture):
        assert one.scale.shape == one.loc.shape
        wide = one.expand([6, 3, 2])
        assert wide.batch_shape == wide.mean.shape == wide.variance.shape == (6, 3, 2)
        assert wide.sample((7,)).shape == (7, 6, 3, 2)
        x = torch.tensor(0.25).expand(6, 3, 2)
        torch.testing.assert_close(wide.log_prob(x), one.log_prob(x))
        torch.testing.assert_close(wide.to_event(2).log_prob(x), wide.log_prob(x).sum((-1, -2)))


def test_the_support_is_the_discrete_grid_of_levels():
    assert DiscretizedLogistic.support.is_discrete
    for d in (make_mixture(), DiscretizedLogistic(torch.zeros(4), torch.ones(()), 17)):
        assert d.support.is_discrete
        assert repr(d.support) == repr(distributions.Levels(torch.zeros(17)).support)
        for wrong in (0.03, -1 / 16, 17 / 16, math.nan):
            with pytest.raises(ValueError, match="support"):
                d.log_prob(torch.full((4,), wrong, dtype=d.loc.dtype))


BAD = {
    "levels": lambda: DiscretizedLogistic(torch.zeros(2), torch.ones(2), 1),
    "loc": lambda: DiscretizedLogistic(torch.tensor(math.nan), torch.ones(2)),
    "scale": lambda: DiscretizedLogistic(torch.zeros(2), torch.zeros(2)),
    "logits": lambda: DiscretizedLogistic(
        torch.zeros(2), torch.ones(2), 3, torch.tensor([0.0, math.nan])
    ),
    "part levels": lambda: likelihoods.DiscretizedLogistic((2,), levels=1),
    "components": lambda: likelihoods.DiscretizedLogistic((2,), components=0),
    "part scale": lambda: likelihoods.DiscretizedLogistic((2,), scale="optimal"),
    "min_scale": lambda: likelihoods.DiscretizedLogistic((2,), min_scale=0.0),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise(name):
    with pytest.raises(ValueError, match=f"Expected .*{name.split()[-1]}"):
        BAD[name]()


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("scale", [0.2, "shared", "element", "network"])
def test_features_are_locations_weights_and_scales(components, scale):
    part = likelihoods.DiscretizedLogistic((2, 5), levels=9, components=components, scale=scale)
    kinds = 1 + (components > 1) + (scale == "network")
    assert part.feature_shape == (kinds * components, 2, 5)
    features = torch.randn(7, *part.feature_shape)
    if scale in ("shared", "element"):
        torch.nn.init.normal_(part.scale.raw)
    base = part(features).base_dist
    assert base.levels == 9
    for k in range(components):
        middle = (k + 0.5) / components
        loc = base.loc if components == 1 else base.loc[..., k]
        torch.testing.assert_close(loc, middle + features[:, k] / 2)
        raw = features[:, (kinds - 1) * components + k] if scale == "network" else part.scale
        if scale != "network":
            raw = getattr(raw, "raw", None)
        expected = 0.2 if raw is None else torch.nn.functional.softplus(raw) / 4 + 1e-4
        actual = base.scale if components == 1 else base.scale.expand(base.loc.shape)[..., k]
        torch.testing.assert_close(actual, torch.as_tensor(expected).expand(actual.shape))
    if components > 1:
        weights = features[:, components : 2 * components].softmax(1).movedim(1, -1)
        torch.testing.assert_close(base.logits.exp(), weights)
    else:
        assert base.logits is None


def test_features_of_zero_give_nearly_the_moments_of_the_uniform():
    for components, spread in ((1, 0.27), (3, 0.335), (10, 0.34)):
        part = likelihoods.DiscretizedLogistic((1,), components=components)
        d = part(torch.zeros(1, *part.feature_shape))
        assert d.mean.item() == pytest.approx(0.5, abs=1e-6)
        assert d.variance.sqrt().item() == pytest.approx(spread, abs=0.005)


@pytest.mark.parametrize("scale", ["shared", "element", "network"])
def test_learned_scales_have_a_floor(scale):
    part = likelihoods.DiscretizedLogistic((2,), scale=scale, min_scale=0.05)
    features = torch.full((3, *part.feature_shape), -1e3)
    if scale != "network":
        torch.nn.init.constant_(part.scale.raw, -1e3)
    scales = part(features).base_dist.scale
    torch.testing.assert_close(scales, torch.full_like(scales, 0.05))


@pytest.mark.parametrize("options", [{}, {"components": 3}, {"scale": "shared"}])
@pytest.mark.parametrize("levels", [2, 256])
def test_extreme_features_of_all_signs_give_finite_gradients(levels, options):
    part = likelihoods.DiscretizedLogistic((levels,), levels=levels, **options)
    torch.manual_seed(0)
    signs = torch.randint(-1, 2, (40, *part.feature_shape)).float()
    features = (1e4 * signs).requires_grad_()
    d = part(features)
    for out in (d.log_prob(make_levels(levels, torch.float32)[:, 0]), d.mean, d.variance):
        (gradient,) = torch.autograd.grad(out.sum(), features, retain_graph=True)
        assert torch.isfinite(out).all()
        assert torch.isfinite(gradient).all()


def test_components_differ_from_the_start():
    part = likelihoods.DiscretizedLogistic((1,), components=3)
    features = torch.zeros(1, *part.feature_shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(part(features).log_prob(torch.ones(1)).sum(), features)
    for kind in gradient.reshape(3, 3):
        assert kind.unique().numel() == 3


def test_the_levels_of_an_input_transform_are_those_of_the_likelihood():
    parts = {"encoder": networks.MLP, "decoder": networks.MLP}
    part = partial(likelihoods.DiscretizedLogistic, levels=17)
    VAE((1, 4, 4), 2, likelihood=part, input_transform=partial(transforms.OneHot, levels=17))
    with pytest.raises(ValueError, match="levels of the likelihood, 17, got 16"):
        VAE(
            (1, 4, 4), 2, likelihood=part,
            input_transform=partial(transforms.OneHot, levels=16), **parts,
        )  # fmt: skip
