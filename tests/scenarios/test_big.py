"""Batches of a linear VAE: their losses are those of all rows, and so is what they train."""

from functools import partial

import pytest
import torch
from pyro import poutine
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from torch import Tensor

from helpers.truths import SIGMAS, exact_vae, linear_data, maximum, read_off, z_score
from pyro_vae import VAE, likelihoods, networks, objectives, posteriors
from scenarios.big import program

BATCH = 100
TRUTH, X = linear_data()
ROWS, D = X.shape
K = TRUTH.weight.shape[1]


def made(posterior=posteriors.Full) -> VAE:
    linear = partial(networks.MLP, hidden=[])
    likelihood = partial(likelihoods.Normal, scale="shared")
    parts = {"likelihood": likelihood, "encoder": linear, "decoder": linear}
    return VAE(D, K, name="row", plate=None, posterior=posterior, **parts).double()


def exact(**spoilt: float) -> VAE:
    vae = made()
    vae.load_state_dict(exact_vae(TRUTH, **spoilt).state_dict())
    return vae


LOSSES = {
    "trace": Trace_ELBO,
    "ours": partial(objectives.ELBO, analytic=False),
    "iwae": partial(objectives.IWAE, 3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_over_a_partition_is_the_loss_of_all_rows(name):
    """Under the exact posterior every draw gives the evidence: nothing is left to chance."""
    sides, loss = program(exact(), BATCH), LOSSES[name]()
    losses = [float(loss.loss(*sides, X, rows)) for rows in torch.randperm(ROWS).split(BATCH)]
    expected = -TRUTH.evidence(X).sum().item()
    assert sum(losses) / len(losses) == pytest.approx(expected, rel=1e-9)
    assert max(losses) - min(losses) > 1.0


@pytest.mark.parametrize("name", [*LOSSES, "jit"])
def test_the_mean_over_random_batches_is_the_loss_of_all_rows(name):
    vae = exact(shift=0.3, inflate=1.5)
    loss = LOSSES[name]() if name in LOSSES else JitTrace_ELBO(ignore_jit_warnings=True)
    every = estimates(LOSSES.get(name, Trace_ELBO)(), vae, ROWS)
    assert abs(z_score(estimates(loss, vae, BATCH) - every)) < SIGMAS


@pytest.mark.filterwarnings("ignore::FutureWarning")
def estimates(loss, vae: VAE, size: int) -> Tensor:
    sides = program(vae, size)
    with torch.no_grad():
        return torch.tensor([float(loss.loss(*sides, X)) for _ in range(300)]).double()


def test_the_encoder_sees_the_rows_that_are_drawn_and_no_others():
    vae, seen = made(), []
    vae.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model, guide = program(vae, BATCH)
    traced = poutine.trace(guide).get_trace(X)
    rows = traced.nodes["rows"]["value"]
    assert torch.equal(seen[0], X[rows])
    trace = poutine.trace(poutine.replay(model, traced)).get_trace(X)
    assert torch.equal(trace.nodes["row.x"]["value"], X[rows])
    assert trace.nodes["row.x"]["scale"] == traced.nodes["row.z"]["scale"] == ROWS / BATCH


@pytest.mark.long
def test_batches_train_the_model_that_all_rows_have_as_their_optimum():
    """The best linear model is known from the eigenvalues of the covariance of all rows.

    Of its mean log evidence, 13.7 nats below zero, less than 0.005 are missing.
    """
    vae = made()
    model, guide = program(vae, BATCH)
    loss = objectives.ELBO(analytic=False, estimator="stl")(model, guide)
    optimizer, steps = torch.optim.Adam(vae.parameters(), lr=2e-2), 1200
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(X).backward()
        optimizer.step()
        schedule.step()
    missing = maximum(X, K) - read_off(vae).evidence(X).mean().item()
    assert 0 < missing < 0.005
