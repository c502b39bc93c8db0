"""The lower half of digits given the upper: against a network whose pixels are independent."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_vae import data, evaluate, networks, objectives
from scenarios.cvae import program

HALF = (1, 4, 8)
EPOCHS = 60

DIGITS = data.digits()
SEEN = DIGITS.x.map(lambda x: x[:, :, :4].flatten(1))
MISSING = DIGITS.x.map(lambda x: x[:, :, 4:])

Score = Callable[[Tensor, Tensor], Tensor]
"""Maps what is missing and what is seen to nats, a value a row."""


def train(module: nn.Module, score: Score) -> None:
    """Trains on the mean score, and keeps the weights that are best on the validation rows."""
    optimizer = torch.optim.Adam(module.parameters(), lr=4e-3)
    best, kept = -math.inf, module.state_dict()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(SEEN.train)).split(100):
            optimizer.zero_grad()
            (-score(MISSING.train[rows], SEEN.train[rows]).mean()).backward()
            optimizer.step()
        with torch.no_grad():
            value = score(MISSING.valid, SEEN.valid).mean().item()
        if value > best:
            best, kept = value, {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(kept)


def deterministic() -> Tensor:
    """Log likelihoods of test rows by a network from what is seen to the chance of each pixel."""
    network = networks.MLP(SEEN.train.shape[1:], HALF, hidden=[200])

    def score(missing: Tensor, seen: Tensor) -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits
        return -loss(network(seen), missing, reduction="none").sum((1, 2, 3))

    train(network, score)
    with torch.no_grad():
        return score(MISSING.test, SEEN.test)


def conditional() -> Tensor:
    """Log likelihoods of test rows by the conditional VAE."""
    vae = program(HALF, SEEN.train.shape[1], latent_dim=8, width=64)
    elbo = objectives.ELBO()

    def score(missing: Tensor, seen: Tensor) -> Tensor:
        return -elbo.differentiable_loss(vae.model, vae.guide, missing, covariates=seen) / len(seen)

    train(vae, score)
    return evaluate.log_evidence(vae, MISSING.test, 500, covariates=SEEN.test)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_halves_are_likelier_than_under_independent_pixels(seed):
    """In nats a picture, more than five standard errors of the mean over 359 test pictures."""
    torch.manual_seed(seed)
    gain = (conditional() - deterministic()).double()
    assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))
    assert gain.mean() > 0.5
