"""Pupils in classes in schools, all linear and normal: evidence and posterior are known."""

import math
from functools import partial

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from helpers.truths import SIGMAS, below_diagonal, unsoftplus
from pyro_vae import VAE, likelihoods, networks, objectives, posteriors
from scenarios.nested import SPREAD, Effect, program

PUPILS, CLASSES, SCHOOLS = 4, 3, 50
D, K, G = 5, 2, 2
NOISE = 0.6
EYE = partial(torch.eye, dtype=torch.float64)
NORMAL = partial(torch.randn, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
WEIGHT, LOADING, LOC = NORMAL(D, K), NORMAL(D, G), NORMAL(D)


def drawn() -> Tensor:
    school, apart = NORMAL(SCHOOLS, G), SPREAD * NORMAL(CLASSES, SCHOOLS, G)
    rows = (PUPILS, CLASSES, SCHOOLS)
    own = NORMAL(*rows, K) @ WEIGHT.T + NOISE * NORMAL(*rows, D)
    return LOC + (school + apart) @ LOADING.T + own


X = drawn()
OWN = WEIGHT @ WEIGHT.T + NOISE**2 * EYE(D)
APART = SPREAD**2 * LOADING @ LOADING.T


def evidence() -> float:
    """log p(x), for each school one normal over all values of its pupils."""
    alike = torch.ones(CLASSES, CLASSES, dtype=torch.float64)
    classes = torch.kron(alike, LOADING @ LOADING.T) + torch.kron(EYE(CLASSES), APART)
    pupils = torch.ones(PUPILS, PUPILS, dtype=torch.float64)
    covariance = torch.kron(pupils, classes) + torch.kron(EYE(PUPILS * CLASSES), OWN)
    p = torch.distributions.MultivariateNormal(LOC.repeat(PUPILS * CLASSES), covariance)
    return p.log_prob(X.permute(2, 0, 1, 3).flatten(1)).sum().item()


def conditional(design: Tensor, noise: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """The gain and the covariance of b given y = design b + noise, with b ~ N(0, spread^2 I)."""
    inverse = design.T @ torch.linalg.inv(noise)
    covariance = torch.linalg.inv(inverse @ design + EYE(design.shape[1]) / spread**2)
    return covariance @ inverse, covariance


SCHOOL_GIVEN = conditional(LOADING, APART / CLASSES + OWN / PUPILS / CLASSES, 1.0)


def made() -> tuple[VAE, Effect, Effect]:
    """A linear model, which is the one that the data were drawn from; the guide as it starts."""
    vae = VAE(
        D,
        K,
        name="pupil",
        plate=None,
        covariate_dim=G,
        posterior=posteriors.Full,
        likelihood=partial(likelihoods.Normal, scale=NOISE),
        encoder=partial(networks.MLP, hidden=[]),
        decoder=partial(networks.MLP, hidden=[]),
    ).double()
    (decoder,) = vae.decoder.layers
    decoder.weight.data = torch.cat([WEIGHT, LOADING], 1)
    decoder.bias.data = LOC
    vae.decoder.requires_grad_(False)
    return vae, Effect(D, G).double(), Effect(D, G, covariate_dim=G).double()


@torch.no_grad()
def set_exact(network, posterior, gain: Tensor, covariance: Tensor, given: bool = True) -> None:
    """Makes a linear network give the exact posterior: gain (x - LOC - LOADING given)."""
    (layer,), k = network.layers, len(gain)
    tril = torch.linalg.cholesky(covariance)
    layer.weight.zero_()
    layer.weight[:k] = torch.cat([gain, -gain @ LOADING], 1) if given else gain
    layer.bias[:k] = -gain @ LOC
    layer.bias[k : 2 * k] = unsoftplus(tril.diagonal() - posterior.min_scale)
    layer.bias[2 * k :] = below_diagonal(tril)


def exact() -> tuple[VAE, Effect, Effect]:
    vae, of_school, of_class = made()
    set_exact(vae.encoder, vae.posterior, *conditional(WEIGHT, NOISE**2 * EYE(D), 1.0))
    set_exact(of_class.network, of_class.posterior, *conditional(LOADING, OWN / PUPILS, SPREAD))
    set_exact(of_school.network, of_school.posterior, *SCHOOL_GIVEN, given=False)
    return vae, of_school, of_class


EXACT = {
    "trace": Trace_ELBO,
    "vectorized": partial(Trace_ELBO, 3, vectorize_particles=True),
    "ours": partial(objectives.ELBO, analytic=False),
    "iwae": partial(objectives.IWAE, 4),
}


@pytest.mark.parametrize("loss", EXACT)
def test_the_exact_guide_gives_the_evidence_whatever_it_draws(loss):
    """The log ratio of model and guide is the evidence at any draw: nothing is left to chance."""
    model, guide = program(*exact())
    assert float(-EXACT[loss]().loss(model, guide, X)) == pytest.approx(evidence(), rel=1e-9)


@pytest.mark.long
def test_a_guide_that_is_trained_finds_evidence_and_effects():
    """The guide's family holds the posterior: what is missing, optimization has left.

    Of 600 pupils it is less than one nat, and of the effect of a school less than a tenth of its
    posterior standard deviation.
    """
    vae, of_school, of_class = made()
    model, guide = program(vae, of_school, of_class)
    parameters = [*vae.encoder.parameters(), *of_school.parameters(), *of_class.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    loss = objectives.ELBO(analytic=False, estimator="stl")(model, guide)
    for _ in range(1500):
        optimizer.zero_grad()
        loss(X).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = torch.tensor([-loss(X).item() for _ in range(100)]).double()
        q = poutine.trace(guide).get_trace(X).nodes["school"]["fn"]
    error = found.std() / math.sqrt(len(found))
    assert -1.0 < found.mean() - evidence() < SIGMAS * error
    gain, covariance = SCHOOL_GIVEN
    off = (q.mean - (X.mean((0, 1)) - LOC) @ gain.T) / covariance.diagonal().sqrt()
    assert off.pow(2).mean().sqrt() < 0.1
    torch.testing.assert_close(q.covariance_matrix[0], covariance, atol=0.01, rtol=0)
