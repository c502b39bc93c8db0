"""An effect that is known, of a treatment that a hidden confounder decides on."""

import pyro
import pytest
import torch
from torch import Tensor

from pyro_vae import objectives
from scenarios.causal import Heads, program, proxies_of

ROWS, EFFECT = 2000, 1.0


def trial(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns proxies, treatment and outcome; who is ill is treated, and fares worse."""
    pyro.set_rng_seed(seed)
    ill = torch.randn(ROWS)
    x = torch.tensor([1.0, -0.8, 0.6, 0.5]) * ill.unsqueeze(-1) + torch.randn(ROWS, 4)
    treated = torch.bernoulli((1.5 * ill).sigmoid())
    effect = EFFECT + 0.5 * (ill - ill.mean())
    return x, treated, effect * treated - 1.5 * ill + 0.5 * torch.randn(ROWS)


def unadjusted(x: Tensor, treated: Tensor, y: Tensor) -> float:
    return (y[treated > 0].mean() - y[treated == 0].mean()).item()


def adjusted_for_proxies(x: Tensor, treated: Tensor, y: Tensor) -> float:
    """The difference of two regressions on the proxies, one for each treatment, over all rows."""
    design = torch.cat([torch.ones(ROWS, 1), x], -1)
    fits = [torch.linalg.lstsq(design[treated == t], y[treated == t]).solution for t in (0, 1)]
    return (design @ (fits[1] - fits[0])).mean().item()


def by_the_vae(x: Tensor, treated: Tensor, y: Tensor) -> float:
    vae, heads = proxies_of(4, 1, hidden=16), Heads(1)
    loss = objectives.ELBO()(*program(vae, heads))
    optimizer = torch.optim.Adam([*vae.parameters(), *heads.parameters()], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        loss(x, treated, y).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        z = vae.encode(x, torch.stack([treated, y], -1)).sample((100,))
        both = [heads.outcome(z, torch.full((ROWS,), t)).mean for t in (0.0, 1.0)]
        return (both[1] - both[0]).mean().item()


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_the_effect_is_found_where_no_regression_finds_it(seed):
    """Over ten draws of the data: 0.93, and 0.05 from one to the next; the regression 0.48."""
    data = trial(seed)
    error = abs(by_the_vae(*data) - EFFECT)
    assert error < 0.25
    assert error < 0.5 * abs(adjusted_for_proxies(*data) - EFFECT)
    assert error < 0.2 * abs(unadjusted(*data) - EFFECT)
