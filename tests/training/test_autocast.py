"""``torch.autocast`` around training and evaluation: current weights, and densities in float32."""

import copy
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_vae import VAE, data, evaluate, fit, fit_many, likelihoods, networks, objectives, priors
from pyro_vae.networks import apply_network

SMALL = partial(networks.MLP, hidden=[16])
autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def small(**parts):
    torch.manual_seed(3)
    return VAE((1, 8, 8), 2, encoder=SMALL, decoder=SMALL, **parts)


def weights(vae):
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


def elbo(vae, x):
    torch.manual_seed(0)
    return evaluate.elbo(vae, x).elbo.mean().item()


def trained(vae, digits, **options):
    options = {"valid": digits.x.valid, "epochs": 4, "compile": False} | options
    return fit(vae, digits.x.train[:600], **options)


def assert_alike(one, other, start):
    """Compares two trainings by the steps that they made from the same start."""
    moved = weights(other) - start
    assert (weights(one) - weights(other)).norm() < 0.1 * moved.norm()


@pytest.mark.parametrize("prior", [priors.Normal, partial(priors.Vamp, components=5)])
def test_fit_within_autocast_trains_as_without(digits, prior):
    plain, mixed = small(prior=prior), small(prior=prior)
    start = weights(plain)
    expected = trained(plain, digits)
    with autocast():
        found = trained(mixed, digits)
        assert torch.is_autocast_cache_enabled()
    for row, other in zip(found.history, expected.history, strict=True):
        for name in ("train_objective", "valid_elbo"):
            assert row[name] == pytest.approx(other[name], rel=0.01)
    assert_alike(mixed, plain, start)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The VAEs are trained one after another")
def test_fit_many_within_autocast_trains_as_without(digits):
    plain, mixed = small(), [small(), small()]
    start = weights(plain)
    trained(plain, digits)
    with autocast():
        fit_many(mixed, digits.x.train[:600], valid=digits.x.valid, epochs=4)
    assert_alike(mixed[0], plain, start)
    assert torch.equal(weights(mixed[0]), weights(mixed[1]))


@pytest.mark.long
def test_compiled_steps_within_autocast_train_as_without(digits):
    plain, mixed = small(), small()
    start = weights(plain)
    trained(plain, digits)
    with autocast():
        assert trained(mixed, digits, compile="strict").engine.startswith("compiled")
    assert_alike(mixed, plain, start)


@pytest.mark.parametrize(
    "objective",
    [objectives.ELBO(), objectives.IWAE(3), objectives.ELBO(3, vectorize_particles=False),
     Trace_ELBO()],
    ids=["ELBO", "IWAE", "one by one", "Pyro"],
)  # fmt: skip
def test_svi_within_one_autocast_sees_its_own_steps(digits, objective):
    x, vae = digits.x.train[:100], small()
    reference = copy.deepcopy(vae)
    start = weights(vae)

    def steps(vae, between):
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
        torch.manual_seed(0)
        for _ in range(5):
            svi.step(x)
            with torch.random.fork_rng():
                between(vae)
        pyro.clear_param_store()

    steps(reference, lambda _: None)
    with autocast():
        # Without gradients, so that the rounded weights in the cache would have none.
        steps(vae, lambda vae: evaluate.elbo(vae, x))
        within = elbo(vae, x)
    assert_alike(vae, reference, start)
    assert within == pytest.approx(elbo(vae, x), rel=0.01)


@pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli, likelihoods.Normal])
def test_evaluation_has_the_precision_of_the_data(digits, likelihood):
    x, vae = digits.x.test[:50], small(likelihood=likelihood)
    expected = elbo(vae, x)
    with autocast():
        assert elbo(vae, x) == pytest.approx(expected, rel=1e-3)
        values = [
            *evaluate.elbo(vae, x)[:3],
            evaluate.log_evidence(vae, x, 10),
            evaluate.posterior_means(vae, x),
            vae.sample(2),
            vae.reconstruct(x),
        ]
    assert {value.dtype for value in values} == {torch.float32}


def test_networks_within_autocast_multiply_in_bfloat16():
    network, x = torch.nn.Linear(300, 2), torch.randn(5, 300)
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with autocast():
        out = apply_network(network, x, 1)
        double = apply_network(torch.nn.Linear(300, 2).double(), x.double(), 1)
    assert seen == [torch.bfloat16]
    assert (out.dtype, double.dtype) == (torch.float32, torch.float64)
