"""Codes as regressors: the posterior of the weights that all rows share is known."""

from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from helpers.truths import LinearGaussian, exact_vae, linear_data
from pyro_vae import VAE, likelihoods, networks, objectives, posteriors
from scenarios.regression import program

NOISE = 0.5


def known() -> tuple[VAE, LinearGaussian, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A VAE that is exact for x, and an outcome of its codes with known weights."""
    truth, _ = linear_data(2)
    generator = torch.Generator().manual_seed(7)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    z, weights = normal(400, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x = z @ truth.weight.T + truth.loc + truth.scale * normal(400, 10)
    y = z @ weights + NOISE * normal(400)
    exact = exact_vae(truth)
    vae = VAE(
        10,
        3,
        plate=None,
        posterior=posteriors.Full,
        likelihood=partial(likelihoods.Normal, scale="shared"),
        encoder=partial(networks.MLP, hidden=[]),
        decoder=partial(networks.MLP, hidden=[]),
    ).double()
    vae.load_state_dict(exact.state_dict())
    return vae.requires_grad_(False), truth, x, y, weights


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "loss", "size"),
    [
        (AutoMultivariateNormal, objectives.ELBO, None),
        (AutoNormal, Trace_ELBO, None),
        (AutoNormal, TraceMeanField_ELBO, 100),
    ],
)
def test_the_posterior_of_the_weights_is_recovered(family, loss, size):
    """With q(z given x) as it is, the best q(w) is normal, of moments of z and y alone."""
    vae, truth, x, y, weights = known()
    model, guide = program(vae, family, noise=NOISE, size=size, init_scale=0.03)
    guide(x, y)
    module = loss(num_particles=10, vectorize_particles=True)(model, guide)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        module(x, y).backward()
        optimizer.step()
        schedule.step()
    mean, covariance = truth.posterior(x)
    precision = torch.eye(3) + (mean.T @ mean + len(x) * covariance) / NOISE**2
    best = torch.linalg.solve(precision, mean.T @ y) / NOISE**2
    joint = family is AutoMultivariateNormal
    scale = precision.inverse().diagonal().sqrt() if joint else precision.diagonal().rsqrt()
    # A normal variable lies below its median plus one scale with this probability.
    level = torch.distributions.Normal(0.0, 1.0).cdf(torch.ones(())).item()
    middle, above = guide[0].quantiles([0.5, level])["w"]
    # The noise of the gradients leaves a part of a scale, more of it where rows are drawn.
    left = 1 if size is None else 2
    assert ((middle - best) / scale).abs().max() < 0.3 * left
    assert ((above - middle) / scale).log().abs().max() < 0.1 * left
    assert (middle - weights).abs().max() < 0.2
