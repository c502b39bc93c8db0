"""Pyro's parameter store: written only by SVI, under one name a VAE, and left as it was found."""

import copy
import gc
import math
import subprocess
import sys
import textwrap
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from helpers.tables import EVENT, FEW_PRIORS, OBJECTIVES, data_for
from pyro_vae import VAE, networks, objectives, priors

X = data_for("bernoulli")


def made(**options) -> VAE:
    network = partial(networks.MLP, hidden=[8])
    return VAE(EVENT, 3, **{"encoder": network, "decoder": network, **options})


def svi(model, guide, loss=None) -> SVI:
    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss or Trace_ELBO())


def state(vae: VAE) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in vae.named_parameters()}


def changed(vae: VAE, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in vae.named_parameters() if not torch.equal(p, before[name])}


def stored() -> set[str]:
    return set(pyro.get_param_store().keys())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prior", FEW_PRIORS)
def test_svi_trains_every_parameter_under_the_vaes_name(prior, objective):
    vae = made(prior=FEW_PRIORS[prior], name="mine")
    before = state(vae)
    engine = svi(vae.model, vae.guide, OBJECTIVES[objective]())
    for _ in range(3):
        engine.step(X)
    assert stored() == {f"mine$$${name}" for name in before}
    assert changed(vae, before) == set(before)


def test_nothing_but_svi_writes_to_the_store():
    vae = made(prior=FEW_PRIORS["vamp"])
    for objective in OBJECTIVES.values():
        loss = objective()
        loss.loss_and_grads(vae.model, vae.guide, X)
        loss.loss(vae.model, vae.guide, X)
        objective()(vae.model, vae.guide)(X).backward()
    poutine.trace(vae.model).get_trace(X)
    Predictive(vae.model, guide=vae.guide, num_samples=2)(X)
    vae.model(n=3)
    vae.guide(X)
    vae.sample(3)
    vae.reconstruct(X)
    vae.initialize(X)
    vae.state_dict()
    assert stored() == set()


def test_svi_loss_is_evaluated_with_no_trace_but_the_entries():
    vae = made()
    engine = svi(vae.model, vae.guide)
    before = state(vae)
    assert engine.evaluate_loss(X) > 0
    assert changed(vae, before) == set()


def test_frozen_parameters_stay_as_they_are():
    vae = made()
    vae.decoder.requires_grad_(False)
    before = state(vae)
    engine = svi(vae.model, vae.guide)
    engine.step(X)
    trained = {name for name in before if not name.startswith("decoder.")}
    assert changed(vae, before) == trained
    assert stored() == {f"vae$$${name}" for name in trained}
    vae.decoder.requires_grad_(True)
    engine.step(X)
    assert changed(vae, before) == set(before)


@pytest.mark.parametrize("collect", [False, True])
def test_entries_vanish_with_the_vae(collect):
    vae = made()
    engine = svi(vae.model, vae.guide)
    engine.step(X)
    pyro.param("other", torch.zeros(()))
    assert len(stored()) > 1
    del vae
    gc.collect()
    assert len(stored()) > 1
    engine.step(X)
    del engine
    if collect:
        gc.collect()
    assert stored() == {"other"}


def test_entries_vanish_from_a_cycle():
    vae = made()
    svi(vae.model, vae.guide).step(X)
    vae.itself = [vae]
    del vae
    gc.collect()
    assert stored() == set()


def test_a_vae_made_again_is_trained():
    for _ in range(3):
        vae = made()
        before = state(vae)
        engine = svi(vae.model, vae.guide)
        engine.step(X)
        assert changed(vae, before) == set(before)
        # As in a notebook: the names stay bound until the next ones are made.
        del engine
        old = vae
        del vae, old


def test_a_vae_made_again_is_trained_while_the_old_one_waits_for_the_collector():
    gc.disable()
    try:
        vae = made()
        vae.itself = [vae]
        svi(vae.model, vae.guide).step(X)
        vae = made()
        before = state(vae)
        svi(vae.model, vae.guide).step(X)
    finally:
        gc.enable()
    assert changed(vae, before) == set(before)
    assert stored() == {f"vae$$${name}" for name in before}


def both(first: VAE, second: VAE):
    """A program of two VAEs, as model and guide."""

    def model(x):
        first.model(x)
        second.model(x)

    def guide(x):
        first.guide(x)
        second.guide(x)

    return model, guide


def test_two_vaes_of_different_names_are_both_trained():
    first, second = made(name="first"), made(name="second", prior=FEW_PRIORS["vamp"])
    before = state(first), state(second)
    svi(*both(first, second)).step(X)
    assert changed(first, before[0]) == set(before[0])
    assert changed(second, before[1]) == set(before[1])


def test_two_vaes_of_one_name_raise_in_one_program():
    first, second = made(), made()
    model, guide = both(first, second)
    clash = "Two VAEs named 'vae' are alive in one program: give one of them another name"
    with pytest.raises(ValueError, match=clash):
        svi(model, guide).step(X)
    pyro.clear_param_store()
    for run in (model, guide):
        with pytest.raises(ValueError, match=clash):
            poutine.trace(run).get_trace(X)
    with pytest.raises(ValueError, match=clash):
        Trace_ELBO().loss_and_grads(model, guide, X)
    assert stored() == set()


def test_two_vaes_of_one_name_raise_one_after_the_other():
    first, second = made(), made()
    svi(first.model, first.guide).step(X)
    before = state(second)
    with pytest.raises(ValueError, match="Two VAEs named 'vae'"):
        svi(second.model, second.guide).step(X)
    assert changed(second, before) == set()
    second.name = "second"
    svi(second.model, second.guide).step(X)
    assert changed(second, before) == set(before)
    kept = state(first)
    svi(first.model, first.guide).step(X)
    assert changed(first, kept) == set(kept)


def test_two_vaes_of_one_name_may_live_apart():
    first, second = made(), made()
    for vae in (first, second):
        poutine.trace(vae.model).get_trace(X)
        Trace_ELBO().loss_and_grads(vae.model, vae.guide, X)
    assert stored() == set()


def test_a_copy_needs_a_name_of_its_own():
    vae = made()
    svi(vae.model, vae.guide).step(X)
    other = copy.deepcopy(vae)
    with pytest.raises(ValueError, match="Two VAEs named"):
        svi(other.model, other.guide).step(X)
    other.name = "copy"
    before = state(other), state(vae)
    svi(other.model, other.guide).step(X)
    assert changed(other, before[0]) == set(before[0])
    assert changed(vae, before[1]) == set()


def test_renaming_takes_the_entries_away():
    vae = made()
    engine = svi(vae.model, vae.guide)
    engine.step(X)
    vae.name = "new"
    assert stored() == set()
    before = state(vae)
    engine.step(X)
    assert changed(vae, before) == set(before)
    assert stored() == {f"new$$${name}" for name in before}
    other = made()
    svi(other.model, other.guide).step(X)


def test_training_goes_on_after_the_store_is_cleared():
    vae = made()
    engine = svi(vae.model, vae.guide)
    engine.step(X)
    pyro.clear_param_store()
    before = state(vae)
    engine.step(X)
    assert changed(vae, before) == set(before)
    assert stored() == {f"vae$$${name}" for name in before}


def test_a_cleared_store_frees_the_name():
    first, second = made(), made()
    svi(first.model, first.guide).step(X)
    pyro.clear_param_store()
    before = state(second)
    svi(second.model, second.guide).step(X)
    assert changed(second, before) == set(before)
    del first
    gc.collect()
    assert stored() == {f"vae$$${name}" for name in before}


def test_another_tensor_of_the_name_raises():
    vae = made()
    name = f"vae$$${next(iter(state(vae)))}"
    pyro.param(name, torch.zeros(3))
    with pytest.raises(ValueError, match="already holds another tensor named"):
        svi(vae.model, vae.guide).step(X)
    assert torch.equal(pyro.param(name), torch.zeros(3))


def test_a_parameter_that_is_replaced_is_trained():
    vae = made()
    engine = svi(vae.model, vae.guide)
    engine.step(X)
    old = vae.decoder.layers[-1].bias
    vae.decoder.layers[-1].bias = torch.nn.Parameter(torch.zeros_like(old))
    before = state(vae)
    engine.step(X)
    assert changed(vae, before) == set(before)


@pytest.mark.parametrize("name", ["", "a$$$b", 3, None])
def test_bad_names_are_refused(name):
    with pytest.raises(ValueError, match="Expected name to be a non-empty string"):
        made(name=name)
    vae = made()
    with pytest.raises(ValueError, match="Expected name to be a non-empty string"):
        vae.name = name
    assert vae.name == "vae"


def test_importing_everything_changes_nothing():
    program = """
        import logging, pkgutil, random, sys
        import numpy, pyro, torch
        def host():
            return (
                torch.distributions.Distribution._validate_args,
                pyro.poutine.util.is_validation_enabled(),
                torch.get_default_dtype(),
                torch.get_rng_state().tolist(),
                str(numpy.random.get_state()),
                random.getstate(),
                [type(handler) for handler in logging.getLogger().handlers],
                logging.getLogger().level,
                set(pyro.get_param_store().keys()),
                torch.get_num_threads(),
                torch.is_grad_enabled(),
            )
        before = host()
        import pyro_vae
        for module in pkgutil.walk_packages(pyro_vae.__path__, "pyro_vae."):
            if not module.name.rpartition(".")[2].startswith("_"):
                __import__(module.name)
        after = host()
        assert after == before, [(a, b) for a, b in zip(before, after) if a != b]
        assert "torchvision" not in sys.modules
        print("unchanged")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "unchanged"


def test_the_package_alone_imports_no_torch():
    program = "import pyro_vae, sys; print('torch' in sys.modules, len(dir(pyro_vae)) > 10)"
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


def test_parameters_that_a_pyro_module_names_too_do_no_harm():
    class Outer(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.inner = VAE((5,), 2, name="image", plate=None)

        def forward(self, x):
            with pyro.plate("rows", len(x)):
                self.inner.model(x)

        def guide(self, x):
            with pyro.plate("rows", len(x)):
                self.inner.guide(x)

    outer, x = Outer(), torch.ones(4, 5)
    for objective in (objectives.ELBO(3), objectives.IWAE(3)):
        svi = pyro.infer.SVI(outer, outer.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
        before = outer.inner.encoder.layers[0].weight.detach().clone()
        svi.step(x)
        assert not torch.equal(outer.inner.encoder.layers[0].weight, before)


def test_a_part_of_another_kind_can_take_a_parts_place():
    vae = VAE((5,), 2)
    vae.prior = priors.Vamp(2, (5,), components=3)
    x = torch.ones(4, 5)
    assert math.isfinite(objectives.ELBO().loss(vae.model, vae.guide, x))
    assert {"encoder", "posterior"} <= set(dict(vae.model.named_children()))
    vae.prior = priors.Normal(2)
    assert set(dict(vae.model.named_children())) == {"prior", "decoder", "likelihood"}
    with pytest.raises(ValueError, match="Expected prior to have latent_dim=2, got 7"):
        vae.prior = priors.Normal(7)


def test_parts_that_a_program_calls_by_themselves_are_trained():
    def by_parts(vae):
        def model(x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", vae.prior_distribution())
                pyro.sample("x", vae.decode(z), obs=x)

        def guide(x):
            with pyro.plate("rows", len(x)):
                pyro.sample("z", vae.encode(x))

        return model, guide

    for _ in range(2):
        vae = made(prior=partial(priors.Normal, learned=True))
        before = state(vae)
        svi(*by_parts(vae)).step(X)
        assert changed(vae, before) == set(before)
        assert stored() == {f"vae$$${name}" for name in before}
        gc.collect()
    other = made()
    with pytest.raises(ValueError, match="Two VAEs named 'vae' are alive"):
        svi(by_parts(vae)[0], by_parts(other)[1]).step(X)


@pytest.mark.parametrize("call", ["encode", "decode"])
def test_each_call_in_a_program_announces_the_network_that_it_uses(call):
    vae = VAE(3, 2)
    with poutine.trace() as traced:
        getattr(vae, call)(torch.zeros(4, 3 if call == "encode" else 2))
    names = {n for n, site in traced.trace.nodes.items() if site["type"] == "param"}
    own, other = ("encoder", "decoder") if call == "encode" else ("decoder", "encoder")
    assert any(own in name for name in names)
    assert not any(other in name for name in names)


def test_a_prior_that_is_used_alone_is_announced():
    vae = VAE(3, 2, prior=partial(priors.Normal, learned=True))
    with poutine.trace() as traced:
        vae.prior_distribution()
    names = {n for n, site in traced.trace.nodes.items() if site["type"] == "param"}
    assert {f"vae$$$prior.{name}" for name, _ in vae.prior.named_parameters()} <= names
    assert len(list(vae.prior.parameters())) == 2
