"""Two modalities of one linear model: evidence and prediction of each alone are known."""

from functools import partial

import pytest
import torch
from torch import Tensor

from helpers.truths import LinearGaussian
from pyro_vae import VAE, likelihoods, networks, objectives
from scenarios.modalities import product_of_experts, program

SIZES, ROWS = (6, 4), 900
LINEAR = partial(networks.MLP, hidden=[])


def truth() -> list[LinearGaussian]:
    """Two observations of z, whose weights are orthogonal, so that every posterior is diagonal."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for size, strength in zip(SIZES, ([1.0, 0.4], [0.5, 1.2]), strict=True):
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q[:, :2]
        loc = torch.randn(size, generator=generator)
        found.append(LinearGaussian(basis * torch.tensor(strength), loc, torch.tensor(0.4)))
    return found


def joint(parts: list[LinearGaussian]) -> LinearGaussian:
    weight, loc = torch.cat([p.weight for p in parts]), torch.cat([p.loc for p in parts])
    return LinearGaussian(weight, loc, parts[0].scale)


def drawn(model: LinearGaussian, rows: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 2, generator=generator)
    noise = torch.randn(rows, sum(SIZES), generator=generator)
    return list((z @ model.weight.T + model.loc + model.scale * noise).split(SIZES, -1))


def rows_of(*seen: bool, rows: int = ROWS) -> list[Tensor]:
    return [torch.full((rows,), one) for one in seen]


def made() -> list[VAE]:
    """Returns a VAE of each modality."""
    return [
        VAE(
            size,
            2,
            name=name,
            encoder=LINEAR,
            decoder=LINEAR,
            likelihood=partial(likelihoods.Normal, scale="shared"),
        )
        for name, size in zip(("first", "second"), SIZES, strict=True)
    ]


@pytest.fixture(scope="module")
def trained() -> list[VAE]:
    """Trained on thirds of rows: with both modalities, with the first alone, with the second."""
    turn = torch.arange(ROWS) % 3
    seen = [turn != 2, turn != 1]
    pairs = zip(drawn(joint(truth()), ROWS, seed=4), seen, strict=True)
    # What is missing has no value that could help.
    data = [torch.where(rows.unsqueeze(-1), x, 100.0) for x, rows in pairs]
    torch.manual_seed(0)
    vaes = made()
    loss = objectives.ELBO()(*program(vaes))
    optimizer = torch.optim.Adam([p for vae in vaes for p in vae.parameters()], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
    for _ in range(2000):
        optimizer.zero_grad()
        loss(data, seen).backward()
        optimizer.step()
        schedule.step()
    return vaes


@pytest.mark.long
@pytest.mark.parametrize("seen", [(True, True), (True, False), (False, True)])
def test_the_bound_is_the_evidence_of_what_is_seen(trained, seen):
    parts = truth()
    data = drawn(joint(parts), ROWS, seed=5)
    some = [i for i, one in enumerate(seen) if one]
    evidence = joint([parts[i] for i in some]).evidence(torch.cat([data[i] for i in some], -1))
    with torch.no_grad():
        loss = objectives.ELBO(100).loss(*program(trained), data, rows_of(*seen))
    gap = evidence.mean().item() + float(loss) / ROWS
    # 31 parameters learned from two thirds of 900 rows each cost about 31 / 1200 nats a row; the
    # draws leave a standard error of 0.003.
    assert -0.01 < gap < 0.05


def test_of_a_row_of_which_nothing_is_seen_the_prior_remains():
    nothing = [torch.zeros(ROWS, size) for size in SIZES]
    assert objectives.ELBO().loss(*program(made()), nothing, rows_of(False, False)) == 0


@pytest.mark.long
@pytest.mark.parametrize("given", [0, 1])
def test_one_modality_predicts_the_other_as_well_as_can_be(trained, given):
    parts = truth()
    data = drawn(joint(parts), ROWS, seed=5)
    mean, _ = parts[given].posterior(data[given])
    other = 1 - given
    best = mean @ parts[other].weight.T + parts[other].loc
    with torch.no_grad():
        q = product_of_experts(trained, data, rows_of(given == 0, given == 1))
        found = trained[other].decode(q.mean).mean
    error, signal = found - best, best - parts[other].loc
    assert error.pow(2).mean() < 0.1**2 * signal.pow(2).mean()
