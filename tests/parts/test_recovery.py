"""Dispersions and zero inflation are recovered from counts that were drawn with known ones."""

import math
from functools import partial

import pytest
import torch

from pyro_vae import VAE, fit, likelihoods, networks, transforms
from pyro_vae.networks import eval_mode

ROWS, COLUMNS = 4000, 12

LINEAR = partial(networks.MLP, hidden=[])
ADAM = partial(torch.optim.Adam, lr=1e-2)


def draw(theta, gate, size_factor):
    """Counts whose log means are linear in two latents, with their size factors."""
    torch.manual_seed(0)
    z, weight = torch.randn(ROWS, 2), 0.5 * torch.randn(2, COLUMNS)
    log_mean = math.log(6.0) + z @ weight
    if size_factor == "row_sum":
        size = 60 * torch.exp(0.5 * torch.randn(ROWS, 1))
        mean = size * log_mean.softmax(1)
    else:
        mean = log_mean.exp()
    rate = mean * torch.distributions.Gamma(theta, theta).sample((ROWS,))
    return torch.poisson(rate) * (torch.rand(ROWS, COLUMNS) >= gate)


def train(likelihood, x):
    torch.manual_seed(1)
    vae = VAE((COLUMNS,), 2, likelihood=likelihood, encoder=partial(networks.MLP, hidden=[32]),
              decoder=LINEAR, input_transform=transforms.Log1p)  # fmt: skip
    fit(vae, x, epochs=60, batch_size=200, optimizer=ADAM, seed=0)
    with eval_mode(vae), torch.no_grad():
        return vae, vae.decode(torch.zeros(1, 2))


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.long)])
def test_dispersions_are_recovered(shared):
    theta = torch.full((COLUMNS,), 2.0) if shared else torch.logspace(-0.3, 0.9, COLUMNS)
    kind = "shared" if shared else "element"
    x = draw(theta, torch.zeros(()), None)
    _, p = train(partial(likelihoods.NegativeBinomial, inverse_dispersion=kind), x)
    found = p.base_dist.inverse_dispersion.expand(1, COLUMNS)[0]
    # The standard error of a log dispersion from 4,000 rows is 0.03 to 0.06 here.
    error = (found.log() - theta.log()).abs()
    assert error.max() < 0.25
    assert error.mean() < 0.1


@pytest.mark.long
def test_a_poisson_is_the_limit():
    x = draw(torch.full((COLUMNS,), 1e6), torch.zeros(()), None)
    _, p = train(likelihoods.NegativeBinomial, x)
    mean = p.mean[0]
    # A dispersion of 2 would make the variance four times the mean; a posterior that is not exact
    # leaves a little of it.
    assert (mean / p.base_dist.inverse_dispersion < 0.5).all()


@pytest.mark.long
def test_zero_inflation_is_recovered():
    gate = torch.linspace(0.05, 0.6, COLUMNS)
    x = draw(torch.full((COLUMNS,), 4.0), gate, None)
    kind = partial(likelihoods.ZeroInflatedNegativeBinomial, zero_inflation="element")
    vae, p = train(kind, x)
    found = vae.likelihood.gate_logits.detach().sigmoid()
    assert (found - gate).abs().max() < 0.06
    theta = p.base_dist.base_dist.inverse_dispersion.expand(1, COLUMNS)[0]
    assert (theta.log() - math.log(4.0)).abs().mean() < 0.25


@pytest.mark.long
def test_dispersions_are_recovered_given_the_row_sum():
    theta = torch.logspace(-0.3, 0.6, COLUMNS)
    x = draw(theta, torch.zeros(()), "row_sum")
    kind = partial(likelihoods.NegativeBinomial, size_factor="row_sum")
    vae, _ = train(kind, x)
    found = vae.likelihood.inverse_dispersion(torch.zeros(1, 1, COLUMNS), -2).detach()
    # The row sum stands for the size factor, which it estimates with the noise of all elements.
    error = (found.reshape(-1).expand(COLUMNS).log() - theta.log()).abs()
    assert error.mean() < 0.3
