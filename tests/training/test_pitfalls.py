"""Three ways in which training goes wrong: the figure that tells, and what cures it."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from pyro_vae import VAE, data, evaluate, fit, likelihoods, networks, objectives

MLP = partial(networks.MLP, hidden=[32], activation="tanh")
ADAM = partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture(scope="module")
def fitted_to_the_curve():
    """Evidence and scale after a short and a long training, without a floor and with one."""
    rows = data.manifold()

    def fitted(min_scale, epochs):
        torch.manual_seed(0)
        small = partial(networks.MLP, hidden=[16], activation="tanh")
        likelihood = partial(likelihoods.Normal, scale="shared", min_scale=min_scale)
        vae = VAE((2,), 1, encoder=small, decoder=small, likelihood=likelihood)
        adam = partial(torch.optim.Adam, lr=2e-2)
        fit(vae, rows.x.train, optimizer=adam, epochs=epochs, batch_size=100)
        torch.manual_seed(0)
        evidence = evaluate.log_evidence(vae, rows.x.test, 500).mean().item()
        with torch.no_grad():
            scale = vae.decode(torch.zeros(1, 1)).base_dist.scale.flatten()[0].item()
        return evidence, scale

    return {floor: [fitted(floor, epochs) for epochs in (100, 400)] for floor in (1e-6, 0.1)}


@pytest.mark.long
def test_on_a_curve_the_evidence_grows_with_the_training(fitted_to_the_curve):
    (short, wide), (long, narrow) = fitted_to_the_curve[1e-6]
    assert long - short > 0.4
    assert narrow < 0.7 * wide


@pytest.mark.long
def test_a_least_scale_gives_the_evidence_a_bound(fitted_to_the_curve):
    (short, _), (long, narrow) = fitted_to_the_curve[0.1]
    assert long - short < 0.3
    assert 0.1 <= narrow < 0.105
    assert long < -math.log(2 * math.pi * 0.1**2)
    assert fitted_to_the_curve[1e-6][1][0] > long + 1


P = 1 / 12
INDEPENDENT = 11 * math.log(1 - P) + math.log(P)
"""The log evidence of a row of independent values, in nats."""


def fit_places(**options):
    rows = data.collapse()
    torch.manual_seed(0)
    vae = VAE(rows.event_shape, 2, encoder=MLP, decoder=MLP)
    fit(vae, rows.x.train, optimizer=ADAM, epochs=80, batch_size=100, **options)
    x = rows.x.test
    return vae, x, evaluate.elbo(vae, x, num_particles=50)


def test_the_posterior_collapses():
    vae, x, bound = fit_places()
    assert bound.rate.mean() < 0.15
    assert abs(bound.elbo.mean() - INDEPENDENT) < 0.05
    # What is reconstructed hardly depends on what was given.
    assert vae.reconstruct(x).std(0).max() < 0.05


def test_a_free_start_cures_the_collapse():
    schedule = objectives.Linear(0.0, 1.0, steps=400)
    vae, x, bound = fit_places(schedules={"beta": schedule})
    assert bound.rate.mean() > 1
    assert bound.elbo.mean() > INDEPENDENT + 0.08
    assert bool(evaluate.active_units(vae, x).all())
    assert vae.reconstruct(x).std(0).max() > 0.2


class Square(nn.Module):
    """The decoder of the process itself."""

    def forward(self, z, covariates=None):
        return z.square().unsqueeze(-1)


NOISE = 0.4


def fit_squares(objective):
    rows = data.two_modes(noise=NOISE)
    torch.manual_seed(0)
    likelihood = partial(likelihoods.Normal, scale=NOISE)
    vae = VAE((1,), 1, encoder=MLP, decoder=Square(), likelihood=likelihood)
    adam = partial(torch.optim.Adam, lr=5e-3)
    fit(vae, rows.x.train, objective=objective, optimizer=adam, epochs=150, batch_size=100)
    torch.manual_seed(0)
    return vae, rows.x.test


def exact_evidence(x):
    """Returns the mean of log p(x) by the trapezoidal rule."""
    z = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    normal = torch.distributions.Normal
    log_joint = normal(0.0, 1.0).log_prob(z) + normal(z.square(), NOISE).log_prob(x.double())
    return (log_joint.logsumexp(1) + math.log(1e-3)).mean().item()


@pytest.mark.long
def test_a_missed_mode_shows_in_the_gap_of_the_bound():
    vae, x = fit_squares(objectives.ELBO())
    exact = exact_evidence(x)
    bound = evaluate.elbo(vae, x, num_particles=100).elbo.mean().item()
    assert 0.4 < exact - bound < 0.8
    # The mode that has no samples is missed by importance sampling too; the prior finds it.
    missed = evaluate.log_evidence(vae, x, 2000).mean().item()
    found = evaluate.log_evidence(vae, x, 5000, proposal="prior").mean().item()
    assert exact - missed > 0.2
    assert abs(found - exact) < 0.05


@pytest.mark.long
def test_iwae_covers_both_modes():
    vae, x = fit_squares(objectives.IWAE(50))
    exact = exact_evidence(x)
    bound = evaluate.log_evidence(vae, x, 50).mean().item()
    assert exact - bound < 0.2
    assert abs(evaluate.log_evidence(vae, x, 5000).mean().item() - exact) < 0.03
