"""Series whose codes are a Gaussian process, linearly decoded: evidence and posterior are known."""

import math
from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from helpers.truths import below_diagonal, unsoftplus
from pyro_vae import VAE, evaluate, fit, likelihoods, networks, objectives, posteriors, priors
from scenarios.series import JITTER, EachTime, GaussianProcess

TIMES, D, LENGTH, NOISE = 8, 3, 2.0, 1.0
EPOCHS = 60
CLOCK = torch.arange(TIMES, dtype=torch.float64)
EYE = partial(torch.eye, dtype=torch.float64)
GENERATOR = torch.Generator().manual_seed(11)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


KERNEL = (-0.5 * ((CLOCK[:, None] - CLOCK) / LENGTH) ** 2).exp() + JITTER * EYE(TIMES)
WEIGHT = normal(D)
DESIGN = torch.kron(EYE(TIMES), WEIGHT[:, None])


def drawn(rows: int) -> Tensor:
    z = normal(rows, TIMES) @ torch.linalg.cholesky(KERNEL).T
    return z[..., None] * WEIGHT + NOISE * normal(rows, TIMES, D)


TRAIN, TEST = drawn(2000), drawn(300)


def evidence(x: Tensor) -> Tensor:
    covariance = DESIGN @ KERNEL @ DESIGN.T + NOISE**2 * EYE(TIMES * D)
    zero = torch.zeros(TIMES * D, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(x.flatten(1))


def made(prior, scale: float | str = "shared") -> VAE:
    return VAE(
        (TIMES, D),
        TIMES,
        prior=prior,
        posterior=posteriors.Full,
        likelihood=partial(likelihoods.Normal, scale=scale),
        encoder=partial(networks.MLP, hidden=[]),
        decoder=partial(EachTime, hidden=[]),
    ).double()


PROCESS = partial(GaussianProcess, times=CLOCK)


@torch.no_grad()
def exact() -> VAE:
    """The model that the data were drawn from, with its posterior."""
    vae = made(partial(PROCESS, length=LENGTH), NOISE)
    (decoder,), (encoder,) = vae.decoder.network.layers, vae.encoder.layers
    decoder.weight[:, 0], decoder.bias[:] = WEIGHT, 0.0
    inverse = torch.linalg.inv(KERNEL) + DESIGN.T @ DESIGN / NOISE**2
    covariance = torch.linalg.inv(inverse)
    tril = torch.linalg.cholesky(covariance)
    encoder.weight.zero_()
    encoder.weight[:TIMES] = covariance @ DESIGN.T / NOISE**2
    encoder.bias[:TIMES] = 0.0
    encoder.bias[TIMES : 2 * TIMES] = unsoftplus(tril.diagonal() - vae.posterior.min_scale)
    encoder.bias[2 * TIMES :] = below_diagonal(tril)
    return vae


@pytest.mark.parametrize("loss", [Trace_ELBO, partial(objectives.IWAE, 3)])
def test_the_exact_posterior_gives_the_evidence_whatever_it_draws(loss):
    vae = exact()
    found = -float(loss().loss(vae.model, vae.guide, TEST))
    assert found == pytest.approx(evidence(TEST).sum().item(), rel=1e-8)


def held_out(prior) -> Tensor:
    """The bound of test series under a VAE that learned all but the kind of its prior."""
    vae = made(prior)
    fit(
        vae,
        TRAIN,
        epochs=EPOCHS,
        batch_size=200,
        optimizer=partial(torch.optim.Adam, lr=3e-2),
        lr_schedule=lambda optimizer: CosineAnnealingLR(optimizer, EPOCHS),
    )
    return evaluate.elbo(vae, TEST, num_particles=20).elbo


@pytest.mark.long
def test_a_process_as_prior_beats_independent_times_on_held_out_series():
    process, independent = held_out(PROCESS), held_out(priors.Normal)
    gain = process - independent
    assert gain.mean() > 3 * gain.std() / math.sqrt(len(gain))
    gap = evidence(TEST).mean() - process.mean()
    assert 0 < gap < 1.0
