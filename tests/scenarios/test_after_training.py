"""NUTS over z from the encoder's mean: against a closed form, and against importance sampling."""

from functools import partial

import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from helpers.truths import exact_vae, family_limit, linear_data
from pyro_vae import VAE, data, fit, networks


def chain(vae: VAE, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Returns draws of z given x, and how many independent ones they are worth."""
    kernel = NUTS(vae.model, max_tree_depth=5)
    start = {"vae.z": vae.encode(x).mean}
    sampler = MCMC(kernel, draws, warmup_steps=150, initial_params=start, disable_progbar=True)
    sampler.run(x)
    return sampler.get_samples()["vae.z"], sampler.diagnostics()["vae.z"]["n_eff"].clamp(max=draws)


def importance(vae: VAE, x: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean and variance of z given x, and the effective number of draws, a row each."""
    q = vae.encode(x)
    wide = type(q.base_dist)(q.mean, 1.5 * q.stddev).to_event(1)
    z = wide.sample((draws,))
    log_weights = vae.decode(z).log_prob(x) + vae.prior_distribution().log_prob(z)
    weights = (log_weights - wide.log_prob(z)).softmax(0).unsqueeze(-1)
    mean = (weights * z).sum(0)
    return mean, (weights * (z - mean) ** 2).sum(0), 1 / weights.square().sum(0)


def off(z: Tensor, worth: Tensor, mean: Tensor, variance: Tensor, known_by: Tensor | float):
    """How far mean and variance of draws lie off at most, in limits of their standard errors.

    Those of the variance are of normal draws, and as many independent ones as for the mean.
    """
    error = (z.mean(0) - mean) / (variance * (1 / worth + 1 / known_by)).sqrt()
    ratio = (z.var(0) / variance - 1) / (2 / worth + 2 / known_by).sqrt()
    limit = family_limit(error.numel())
    return (error.abs().max() / limit).item(), (ratio.abs().max() / limit).item()


def test_the_posterior_of_a_linear_model_is_found():
    truth, x = linear_data(rows=5, d=6, k=2)
    vae = exact_vae(truth, shift=0.5, inflate=3.0).eval().requires_grad_(False)
    mean, covariance = truth.posterior(x)
    known = mean, covariance.diagonal(), float("inf")
    of_mean, of_variance = off(*chain(vae, x, 300), *known)
    assert of_mean < 1
    assert of_variance < 1.5
    assert min(off(vae.encode(x).sample((300,)), torch.tensor(300), *known)) > 1.5


@pytest.mark.long
def test_the_posterior_of_digits_is_that_of_importance_sampling():
    digits = data.digits()
    mlp = partial(networks.MLP, hidden=[64], batch_norm=True)
    vae = VAE(digits.event_shape, 2, encoder=mlp, decoder=mlp)
    fit(vae, digits.train, epochs=20, optimizer=partial(torch.optim.Adam, lr=3e-3))
    vae.eval().requires_grad_(False)
    x = digits.x.test[:4]
    known = importance(vae, x, 20_000)
    assert known[-1].min() > 2_000
    of_mean, of_variance = off(*chain(vae, x, 300), *known)
    assert of_mean < 1
    assert of_variance < 1.5
    assert max(off(vae.encode(x).sample((300,)), torch.tensor(300), *known)) > 1.5
