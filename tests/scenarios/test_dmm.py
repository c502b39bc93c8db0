"""Sequences of a linear state space, whose evidence a Kalman filter knows; ragged lengths."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from helpers.truths import SIGMAS, unsoftplus
from pyro_vae import VAE, likelihoods, networks, objectives, posteriors
from scenarios.dmm import Emission, Summary, Transition, program

TIMES, ROWS = 6, 200
D, K = 4, 2
GENERATOR = torch.Generator().manual_seed(7)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


MOVE = 0.9 * torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
STEP, NOISE = 0.5, 0.7
WEIGHT, LOC = normal(D, K), normal(D)
LENGTHS = 2 + torch.randint(TIMES - 1, (ROWS,), generator=GENERATOR)
SEEN = torch.arange(TIMES)[:, None] < LENGTHS


def drawn() -> Tensor:
    """Sequences, not a number where they have ended."""
    z, x = torch.zeros(ROWS, K, dtype=torch.float64), []
    for _ in range(TIMES):
        z = z @ MOVE.T + STEP * normal(ROWS, K)
        x.append(LOC + z @ WEIGHT.T + NOISE * normal(ROWS, D))
    return torch.where(SEEN[..., None], torch.stack(x), torch.nan)


X = drawn()


def kalman() -> float:
    """log p(x), the sum over sequences; the state before the first is zero but for 1e-4."""

    def spread(scale: float, size: int) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros(size, dtype=torch.float64), scale).to_event(1)

    emission = dist.Normal(LOC, NOISE).to_event(1)
    total = 0.0
    for length in LENGTHS.unique().tolist():
        p = dist.GaussianHMM(
            spread(1e-4, K), MOVE.T, spread(STEP, K), WEIGHT.T, emission, duration=length
        )
        total += p.log_prob(X[:length, length == LENGTHS].transpose(0, 1)).sum().item()
    return total


def made(hidden: int = 16) -> tuple[VAE, Summary]:
    """The model that the data were drawn from; the guide as it starts."""
    vae = VAE(
        D,
        K,
        name="state",
        plate=None,
        covariate_dim=K,
        prior=partial(Transition, hidden=[]),
        posterior=posteriors.Full,
        likelihood=partial(likelihoods.Normal, scale=NOISE),
        encoder=partial(networks.MLP, hidden=[hidden]),
        decoder=partial(Emission, hidden=[]),
    ).double()
    (move,), (emission,) = vae.prior.network.layers, vae.decoder.layers
    move.weight.data, move.bias.data = MOVE.clone(), torch.zeros(K, dtype=torch.float64)
    emission.weight.data, emission.bias.data = WEIGHT, LOC
    vae.prior.raw_scale.data[:] = unsoftplus(torch.tensor(STEP - 1e-3, dtype=torch.float64))
    return vae, Summary(D, hidden=hidden).double()


@pytest.mark.long
def test_the_bound_is_that_of_the_kalman_filter():
    vae, summary = made()
    model, guide = program(vae, summary)
    optimizer = torch.optim.Adam([*vae.encoder.parameters(), *summary.parameters()], lr=2e-2)
    steps = 600
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = objectives.ELBO(analytic=False, estimator="stl")(model, guide)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(X, LENGTHS).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = torch.tensor([-loss(X, LENGTHS).item() for _ in range(50)]).double()
    steps, error = LENGTHS.sum().item(), found.std() / math.sqrt(len(found))
    gap = kalman() - found.mean()
    assert -SIGMAS * error < gap < 0.015 * steps


def loss_and_gradient(x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Of one guide and one stream of noise, whatever the sequences."""
    pyro.set_rng_seed(0)
    vae, summary = made()
    value = Trace_ELBO().differentiable_loss(*program(vae, summary), x, LENGTHS)
    value.backward()
    parameters = [*vae.parameters(), *summary.parameters()]
    return value.detach(), [p.grad for p in parameters]


LONGER = torch.cat([X, torch.full((3, ROWS, D), torch.nan, dtype=torch.float64)])

PADDED = {"zeros": X.nan_to_num(0.0), "numbers": X.nan_to_num(1e3), "longer": LONGER}


@pytest.mark.parametrize("padding", PADDED)
def test_what_stands_after_the_end_gives_nothing_to_loss_or_gradient(padding):
    value, gradient = loss_and_gradient(X)
    found, found_gradient = loss_and_gradient(PADDED[padding])
    assert value.isfinite()
    assert torch.equal(value, found)
    for one, other in zip(gradient, found_gradient, strict=True):
        assert one.isfinite().all()
        assert one.any()
        assert torch.equal(one, other)


def test_a_batch_of_ragged_sequences_has_the_density_of_each_alone():
    sides = program(*made())
    traced = poutine.trace(sides[1]).get_trace(X, LENGTHS)
    codes = {f"state.z_{t}": traced.nodes[f"state.z_{t}"]["value"] for t in range(TIMES)}
    together = [density(side, codes, X, LENGTHS) for side in sides]
    for row in range(8):
        length = LENGTHS[row : row + 1]
        x = X[: int(length), row : row + 1]
        own = {name: z[row : row + 1] for name, z in codes.items()}
        for side, found in zip(sides, together, strict=True):
            torch.testing.assert_close(found[row : row + 1], density(side, own, x, length))


def density(side, codes: dict[str, Tensor], x: Tensor, lengths: Tensor) -> Tensor:
    """The log density of model or guide at these codes, a value a sequence."""
    trace = poutine.trace(poutine.condition(side, codes)).get_trace(x, lengths)
    trace.compute_log_prob()
    sites = [n for n in trace.nodes if n.startswith(("state.z", "state.x"))]
    return sum(trace.nodes[name]["log_prob"] for name in sites)
