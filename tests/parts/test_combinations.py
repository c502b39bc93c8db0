"""Every combination of parts trains, and the three ways to train it give one gradient."""

import copy
import itertools

import pyro
import pytest
import torch
from pyro.infer import SVI

from helpers.tables import (
    EVENT,
    FEW_LIKELIHOODS,
    FEW_NETWORKS,
    FEW_POSTERIORS,
    FEW_PRIORS,
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    data_for,
)
from pyro_vae import VAE

AXES = (FEW_PRIORS, FEW_POSTERIORS, FEW_LIKELIHOODS, FEW_NETWORKS, OBJECTIVES)
ALL = (FEW_PRIORS, FEW_POSTERIORS, LIKELIHOODS, NETWORKS, OBJECTIVES)

STEPS = 20


def pairs(row: tuple[str, ...]) -> set[tuple[int, str, int, str]]:
    """The pairs of options that a combination holds."""
    places = itertools.combinations(range(len(row)), 2)
    return {(i, row[i], j, row[j]) for i, j in places}


def covering(axes) -> list[tuple[str, ...]]:
    """Combinations among which every pair of options of two axes occurs, found greedily."""
    product = list(itertools.product(*axes))
    missing = set().union(*map(pairs, product))
    chosen = []
    while missing:
        best = max(product, key=lambda row: len(pairs(row) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


COVERING = covering(AXES)

EVERYTHING = [row for row in itertools.product(*AXES) if row not in COVERING]

OTHERS = [(p, "normal", other, n, o) for p, other, n, o in zip(
    itertools.cycle(FEW_PRIORS), [x for x in LIKELIHOODS if x not in FEW_LIKELIHOODS],
    itertools.cycle(NETWORKS), itertools.cycle(OBJECTIVES))]  # fmt: skip
"""One combination for each other likelihood."""

OTHERS += [(p, "normal", x, n, o) for (p, n), x, o in zip(
    itertools.product(("normal", "vamp"), [n for n in NETWORKS if n not in FEW_NETWORKS]),
    itertools.cycle(FEW_LIKELIHOODS), itertools.cycle(OBJECTIVES))]  # fmt: skip
"""Each other network, with and without pseudo-inputs of the prior."""


def made(row: tuple[str, ...]) -> tuple[VAE, torch.Tensor]:
    """The VAE of a combination, and data for it."""
    prior, posterior, likelihood, network, _ = row
    encoder, decoder = NETWORKS[network]
    pyro.set_rng_seed(2)
    vae = VAE(
        EVENT,
        3,
        prior=FEW_PRIORS[prior],
        posterior=FEW_POSTERIORS[posterior],
        likelihood=LIKELIHOODS[likelihood],
        encoder=encoder,
        decoder=decoder,
    )
    return vae, data_for(likelihood)


def gradients(vae: VAE) -> dict[str, torch.Tensor]:
    grads = {name: p.grad for name, p in vae.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in grads.values()), grads
    return {name: grad.clone() for name, grad in grads.items()}


class Capture(pyro.optim.PyroOptim):
    """An optimizer that keeps the gradients and does nothing."""

    def __init__(self, vae: VAE) -> None:
        super().__init__(torch.optim.SGD, {"lr": 0.0})
        self.vae = vae
        self.gradients: dict[str, torch.Tensor] = {}

    def __call__(self, params, *args, **kwargs):
        assert {id(p) for p in params} == {id(p) for p in self.vae.parameters()}
        self.gradients = gradients(self.vae)


def by_svi(vae, objective, x):
    capture = Capture(vae)
    loss = SVI(vae.model, vae.guide, capture, objective).step(x, data_size=36)
    return loss, capture.gradients


def by_module(vae, objective, x):
    module = objective(vae.model, vae.guide)
    assert {id(p) for p in module.parameters()} == {id(p) for p in vae.parameters()}
    loss = module(x, data_size=36)
    loss.backward()
    return loss.detach(), gradients(vae)


def by_hand(vae, objective, x):
    loss = objective.loss_and_grads(vae.model, vae.guide, x, data_size=36)
    return loss, gradients(vae)


def check(row: tuple[str, ...]) -> None:
    """Compares the three ways, then trains until each parameter has had a gradient."""
    vae, x = made(row)
    start, found = copy.deepcopy(vae.state_dict()), []
    for way in (by_svi, by_module, by_hand):
        vae.load_state_dict(start)
        vae.zero_grad()
        pyro.set_rng_seed(7)
        found.append(way(vae, OBJECTIVES[row[-1]](), x))
    for loss, grads in found[1:]:
        assert float(loss) == pytest.approx(float(found[0][0]), rel=1e-6)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], rtol=1e-5, atol=1e-5, msg=name)
    assert untrained(vae, OBJECTIVES[row[-1]]()(vae.model, vae.guide), x) == set()


def untrained(vae: VAE, module: torch.nn.Module, x: torch.Tensor) -> set[str]:
    """The parameters that get no gradient in a few steps of training."""
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    waiting = {name for name, p in vae.named_parameters() if p.requires_grad}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = module(x)
        loss.backward()
        optimizer.step()
        grads = gradients(vae)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(grad).all() for grad in grads.values())
        waiting -= {name for name, grad in grads.items() if grad.any()}
        if not waiting:
            break
    return waiting


@pytest.mark.parametrize("row", [*COVERING, *OTHERS], ids="-".join)
def test_three_ways_give_one_gradient_to_every_parameter(row):
    check(row)


@pytest.mark.long
@pytest.mark.parametrize(
    "row", dict.fromkeys([*EVERYTHING, *itertools.product(["normal"], ["normal"], *ALL[2:])]),
    ids="-".join,
)  # fmt: skip
def test_three_ways_give_one_gradient_in_every_combination(row):
    check(row)


def test_the_covering_holds_every_pair_of_options():
    held = set().union(*map(pairs, COVERING))
    for (i, a), (j, b) in itertools.combinations(enumerate(AXES), 2):
        assert {(i, x, j, y) for x in a for y in b} <= held


def test_a_parameter_without_gradient_is_noticed():
    vae, x = made(("normal", "normal", "bernoulli", "mlp", "elbo"))
    last = vae.decoder.layers[-1].weight.requires_grad_(False)
    last.zero_()
    module = OBJECTIVES["elbo_sampled"]()(vae.model, vae.guide)
    assert untrained(vae, module, x) == {"decoder.layers.0.weight", "decoder.layers.0.bias"}
