"""What each likelihood accepts, how it keeps its scale, and what it is made by."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch

from helpers.tables import EVENT, LIKELIHOOD_ROWS, LIKELIHOODS, data_for
from pyro_vae import VAE, likelihoods, networks
from pyro_vae.distributions import ProfileNormal


def made(name: str, rows: int = 5):
    """A likelihood, and features for it."""
    part = LIKELIHOODS[name](EVENT)
    return part, torch.randn(rows, *part.feature_shape)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_check_accepts_its_data_and_its_draws(name):
    part, features = made(name)
    part.eval().check(data_for(name))
    draws = part(features).sample()
    part.check(draws)
    assert torch.isfinite(part(features).log_prob(draws)).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_check_refuses_other_data(name):
    row = LIKELIHOOD_ROWS[name]
    part, _ = made(name)
    for value in row.refused:
        x = data_for(name)
        x[3, 0, 2, 2] = value
        with pytest.raises(ValueError, match=f"Expected x to .*{row.message}"):
            part.check(x)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_extreme_features_give_finite_densities_and_gradients(name):
    part, _ = made(name)
    for size in (-1e5, -50.0, 50.0, 1e5):
        features = torch.full((5, *part.feature_shape), size, requires_grad=True)
        log_prob = part(features).log_prob(data_for(name, 5)).sum()
        (gradient,) = torch.autograd.grad(log_prob, features)
        assert torch.isfinite(log_prob)
        assert torch.isfinite(gradient).all()


def test_continuous_bernoulli_keeps_its_logits_within_a_bound():
    part = likelihoods.ContinuousBernoulli((2,), max_logit=7.0)
    h = torch.tensor([[[1e6, -1e6]], [[0.01, -0.02]]])
    logits = part(h).base_dist.logits
    torch.testing.assert_close(logits[0], torch.tensor([7.0, -7.0]))
    torch.testing.assert_close(logits[1], h[1, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", ["shared", "element", "network"])
def test_learned_scales_have_a_floor(scale):
    part = likelihoods.Normal((2,), scale=scale, min_scale=0.05)
    features = torch.full((3, *part.feature_shape), -1e3)
    if scale != "network":
        torch.nn.init.constant_(part.raw_scale, -1e3)
    torch.testing.assert_close(part(features).base_dist.scale, torch.full((3, 2), 0.05))


def test_scale_of_network_is_its_second_number():
    part = likelihoods.Normal((2,), scale="network")
    features = torch.randn(3, 2, 2)
    d = part(features).base_dist
    assert torch.equal(d.loc, features[:, 0])
    expected = torch.nn.functional.softplus(features[:, 1]) + 1e-3
    torch.testing.assert_close(d.scale, expected)


def test_optimal_scale_stays_one_of_the_batch_when_the_distribution_expands():
    base = likelihoods.Normal((3,), scale="optimal")(torch.randn(6, 1, 3)).base_dist
    assert isinstance(base.expand([4, *base.batch_shape]), ProfileNormal)


def test_optimal_scale_is_of_the_batch_in_training_and_frozen_in_evaluation():
    part = likelihoods.Normal((3,), scale="optimal", momentum=0.25)
    loc, x = torch.randn(6, 1, 3), 2 * torch.randn(6, 3)
    assert isinstance(part(loc).base_dist, ProfileNormal)
    mse = ((x - loc[:, 0]) ** 2).mean()
    torch.testing.assert_close(
        part(loc).log_prob(x), dist.Normal(loc[:, 0], mse.sqrt()).log_prob(x).sum(-1)
    )
    torch.testing.assert_close(part.variance, 0.75 + 0.25 * mse)
    part.eval()
    frozen = part.variance.clone()
    d = part(loc)
    torch.testing.assert_close(
        d.log_prob(x), dist.Normal(loc[:, 0], frozen.sqrt()).log_prob(x).sum(-1)
    )
    torch.testing.assert_close(d.log_prob(x)[:2], part(loc[:2]).log_prob(x[:2]))
    assert torch.equal(part.variance, frozen)
    part.calibrate(torch.tensor(0.3))
    torch.testing.assert_close(part(loc).base_dist.scale, torch.full((6, 3), 0.3**0.5))
    part.calibrate(torch.tensor(1e-12))
    torch.testing.assert_close(part.variance.sqrt(), torch.tensor(part.min_scale))


@pytest.mark.parametrize("batch_size", [1000, 5])
def test_calibration_takes_the_error_of_the_training_data(batch_size):
    vae = VAE(EVENT, 2, likelihood=partial(likelihoods.Normal, scale="optimal"))
    x = torch.randn(12, *EVENT)
    vae.posterior.min_scale = 1e-6
    torch.nn.init.zeros_(vae.encoder.layers[-1].weight)
    torch.nn.init.constant_(vae.encoder.layers[-1].bias, -50.0)
    with torch.no_grad():
        mse = ((x - vae.decode(vae.encode(x).mean).mean) ** 2).mean()
    vae.calibrate(x, batch_size=batch_size)
    torch.testing.assert_close(vae.likelihood.variance, mse, rtol=1e-3, atol=0)
    assert vae.training


def test_calibration_takes_covariates():
    vae = VAE(EVENT, 2, likelihood=partial(likelihoods.Normal, scale="optimal"), covariate_dim=3)
    vae.calibrate(torch.randn(12, *EVENT), covariates=torch.randn(12, 3))
    assert vae.likelihood.variance != 1


def test_calibration_changes_no_other_likelihood():
    vae = VAE(EVENT, 2, likelihood=likelihoods.Normal, encoder=partial(networks.MLP, hidden=[4]))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.calibrate(torch.randn(12, *EVENT))
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


BAD = {
    "levels": (
        lambda: likelihoods.Categorical((2,), levels=1),
        "levels to be an integer",
    ),
    "max_logit": (lambda: likelihoods.ContinuousBernoulli((2,), max_logit=0.0), "max_logit"),
    "min_scale": (lambda: likelihoods.Normal((2,), min_scale=0.0), "min_scale to be positive"),
    **{
        f"scale_{scale}": (
            lambda scale=scale: likelihoods.Normal((2,), scale=scale),
            "scale to be positive or one of",
        )
        for scale in ("fixed", 0, 0.0, -1.0, math.nan, math.inf, True, None)
    },
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=f"Expected {message}"):
        make()


def test_logits_of_a_continuous_bernoulli_stay_within_the_default_bound():
    d = likelihoods.ContinuousBernoulli((2,))(torch.tensor([[1e6, -1e6]]))
    assert d.base_dist.logits.tolist() == [20.0, -20.0]
