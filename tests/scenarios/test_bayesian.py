"""A Bayesian decoder against a posterior of its weights that is known."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor

from pyro_vae import VAE, AutoVAEGuide, likelihoods, networks, objectives, posteriors
from scenarios.bayesian import BayesianLinear, Program, guide_of

ROWS, D, K, NOISE = 200, 5, 2, 0.5


def rows() -> Tensor:
    pyro.set_rng_seed(4)
    weight = torch.randn(D, K)
    return torch.randn(ROWS, K) @ weight.T + torch.randn(D) + NOISE * torch.randn(ROWS, D)


def with_offset(z: Tensor) -> Tensor:
    return torch.nn.functional.pad(z, (0, 1), value=1.0)


def trained(vae: VAE, x: Tensor, steps: int):
    model = Program(vae)
    guide = guide_of(model, AutoMultivariateNormal, init_scale=0.05)
    guide(x)
    loss = objectives.ELBO(5, vectorize_particles=True)(model, guide)
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()
        schedule.step()
    return model, guide


def made() -> VAE:
    return VAE(
        D,
        K,
        plate=None,
        posterior=posteriors.Full,
        likelihood=partial(likelihoods.Normal, scale=NOISE),
        encoder=partial(networks.MLP, hidden=[]),
        decoder=BayesianLinear,
    )


def best_weights(mean: Tensor, covariance: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The best q(w) given q(z): its mean, (D, K + 1), and covariance, the same for each of D."""
    z = with_offset(mean)
    second = z.T @ z
    second[:K, :K] += covariance.sum(0)
    posterior = torch.linalg.inv(torch.eye(K + 1) + second / NOISE**2)
    return (posterior @ z.T @ x / NOISE**2).T, posterior


def test_the_posterior_of_the_weights_is_recovered():
    """Whatever the codes are, those of an encoder that has learned nothing here."""
    x = rows()
    vae = made()
    vae.eval().encoder.requires_grad_(False)
    _, guide = trained(vae, x, steps=800)
    q = vae.encode(x)
    mean, covariance = best_weights(q.mean, q.covariance_matrix, x)
    # A normal variable lies below its median plus one scale with this probability.
    level = torch.distributions.Normal(0.0, 1.0).cdf(torch.ones(())).item()
    middle, above = guide[0].quantiles([0.5, level])["decoder.weight"]
    scale = covariance.diagonal().sqrt()
    # The noise of the gradients leaves a part of a scale.
    assert ((middle - mean) / scale).abs().max() < 0.4
    assert ((above - middle) / scale).log().abs().max() < 0.1


def principal_components(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q(z) and q(w) in turn, each as good as can be: Bishop's variational principal components."""
    mean = torch.randn(ROWS, K)
    covariance = torch.eye(K).expand(ROWS, K, K)
    for _ in range(300):
        weight, spread = best_weights(mean, covariance, x)
        w, offset = weight[:, :K], weight[:, K]
        second = w.T @ w + D * spread[:K, :K]
        covariance = torch.linalg.inv(torch.eye(K) + second / NOISE**2).expand(ROWS, K, K)
        drift = w.T @ (x - offset).T - D * spread[:K, K:]
        mean = (covariance[0] @ drift / NOISE**2).T
    return mean, covariance, weight, spread


def bound(model, guide, x: Tensor) -> float:
    """The ELBO of all rows, of a standard error of 0.3 nats."""
    with torch.no_grad():
        return -float(objectives.ELBO(2000, vectorize_particles=True).loss(model, guide, x))


@pytest.mark.long
def test_the_bound_is_that_of_variational_principal_components():
    x = rows()
    mean, covariance, weight, spread = principal_components(x)
    model, guide = trained(made(), x, steps=1000)

    def best(x):
        q = dist.MultivariateNormal(weight, spread)
        pyro.sample("decoder.weight", q.to_event(1))
        with pyro.plate("rows", ROWS):
            pyro.sample("vae.z", dist.MultivariateNormal(mean, covariance))

    gap = bound(model, best, x) - bound(model, guide, x)
    assert -1.5 < gap < 3


def test_a_network_of_pytorchs_becomes_one_of_random_weights():
    vae = VAE(D, K, plate=None, decoder=partial(networks.MLP, hidden=[8]))
    to_pyro_module_(vae.decoder)
    layers = [layer for layer in vae.decoder.layers if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        for name, value in list(layer.named_parameters()):
            prior = dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim())
            setattr(layer, name, PyroSample(prior))

    class Deep(Program):
        def forward(self, x):
            _ = [(layer.weight, layer.bias) for layer in layers]
            with pyro.plate("rows", len(x)):
                return self.vae.model(x)

    model, x = Deep(vae), rows().sigmoid().round()
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["vae.z", "vae.x"])))
    guide.append(AutoVAEGuide(model, vae))
    shapes = {name: tuple(value.shape) for name, value in guide(x).items()}
    assert shapes == {
        "decoder.layers.0.weight": (8, K),
        "decoder.layers.0.bias": (8,),
        "decoder.layers.2.weight": (D, 8),
        "decoder.layers.2.bias": (D,),
        "vae.z": (ROWS, K),
    }
    before = [p.detach().clone() for p in guide.parameters()]
    loss = objectives.IWAE(3, vectorize_particles=False)
    pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss).step(x)
    assert not any(torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))
