"""Pyro's handlers and settings around a VAE: followed, or refused by an error that says why."""

import gc
import re
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC, SVI, JitTrace_ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.reparam import AutoReparam, LocScaleReparam
from pyro.nn import PyroModule

from helpers.tables import OBJECTIVES
from helpers.truths import SIGMAS, exact_vae, family_limit, linear_data
from pyro_vae import VAE, AutoVAEGuide, networks, objectives

ROWS = 12
X = (torch.rand(ROWS, 5, generator=torch.Generator().manual_seed(1)) > 0.5).float()
MLP = partial(networks.MLP, hidden=[8])


def made(**options) -> VAE:
    return VAE(5, 2, **{"encoder": MLP, "decoder": MLP, **options})


def inside(side, plate):
    """A side of a VAE within a plate, its own or the caller's."""

    def run(x=X, **kwargs):
        with pyro.plate("rows", ROWS) if plate is None else nullcontext():
            return side(x, **kwargs)

    return run


class Program(PyroModule):
    """A model whose attribute is a VAE; its guide is a method."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.inner = vae

    def forward(self, x):
        with pyro.plate("rows", len(x)):
            return self.inner.model(x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            return self.inner.guide(x)


class Posterior(Program):
    """The same guide as a PyroModule of its own."""

    def forward(self, x):
        return self.guide(x)


def svi(model, guide, loss=None) -> SVI:
    return SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss or Trace_ELBO())


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


def stored() -> set[str]:
    return set(pyro.get_param_store().keys())


def named(names, vae="vae") -> set[str]:
    return {f"{vae}$$${name}" for name in names}


@pytest.fixture(params=[False, True], ids=["global", "local"])
def local(request):
    with pyro.settings.context(module_local_params=request.param):
        yield request.param


@pytest.mark.parametrize("loss", [Trace_ELBO, objectives.ELBO])
@pytest.mark.parametrize("plate", [True, None])
def test_svi_trains_all_where_parameters_are_local_too(plate, loss, local):
    vae = made(plate=plate)
    before = state(vae)
    engine = svi(inside(vae.model, plate), inside(vae.guide, plate), loss())
    first = engine.step()
    assert changed(vae, before) == set(before)
    assert stored() == (set() if local else named(before))
    for _ in range(50):
        last = engine.step()
    assert last < first


@pytest.mark.parametrize("side", [Program, Posterior])
def test_a_pyro_modules_vae_is_trained_under_one_name(side, local):
    vae = made(plate=None)
    model, guide = Program(vae), side(vae)
    guide = guide if side is Posterior else guide.guide
    before = state(vae)
    engine = svi(model, guide)
    for _ in range(2):
        engine.step(X)
    assert changed(vae, before) == set(before)
    assert set(engine.optim.optim_objs) == set(vae.parameters())
    assert stored() == (set() if local else named(before))
    assert pyro.get_param_store().param_name(vae.encoder.layers[0].bias) == (
        None if local else "vae$$$encoder.layers.0.bias"
    )


def test_what_else_a_pyro_module_has_keeps_its_name():
    class Larger(Program):
        def __init__(self, vae):
            super().__init__(vae)
            self.other = torch.nn.Linear(2, 1)

        def forward(self, x):
            z = super().forward(x)
            with pyro.plate("outcomes", len(x)):
                pyro.sample("y", dist.Normal(self.other(z).squeeze(-1), 1.0), obs=x[:, 0])

    vae = made(plate=None)
    program = Larger(vae)
    svi(program, program.guide).step(X)
    assert stored() == named(state(vae)) | named(state(program.other), "other")


def test_two_vaes_that_share_a_part_keep_two_names():
    first, second = made(name="first"), made(name="second")
    second.decoder = first.decoder
    for _ in range(2):
        before = state(first)
        for vae in (first, second):
            svi(vae.model, vae.guide).step(X)
        assert changed(first, before) == set(before)
    assert stored() == named(state(first), "first") | named(state(second), "second")


def test_a_pyro_module_made_again_is_trained():
    for _ in range(2):
        vae = made(plate=None)
        program = Program(vae)
        before = state(vae)
        svi(program, program.guide).step(X)
        assert changed(vae, before) == set(before)
        del program, vae


def test_frozen_parts_of_a_pyro_module_stay_as_they_are(local):
    vae = made(plate=None)
    program = Program(vae)
    vae.decoder.requires_grad_(False)
    before = state(vae)
    # Pyro's own warning, of any frozen module in training mode.
    frozen = nullcontext() if local else pytest.warns(UserWarning, match="requires_grad=False")
    with frozen:
        svi(program, program.guide).step(X)
    trained = {name for name in before if name.startswith("encoder.")}
    assert changed(vae, before) == trained
    assert stored() == (set() if local else named(trained))


def test_a_list_of_guides_is_trained_where_parameters_are_local_too(local):
    vae = made(plate=None)
    model = regression(vae)
    guide = listed(model, vae)
    guide(X)
    before = state(guide)
    svi(model, guide, Trace_ELBO(num_particles=2)).step(X)
    assert changed(guide, before) == set(before)
    own = {name for name in stored() if name.startswith("vae")}
    assert own == (set() if local else named(state(vae)))


def regression(vae: VAE):
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            z = vae.model(x)
            pyro.sample("y", dist.Normal((z * w).sum(-1), 1.0), obs=torch.ones(len(x)))

    return model


def listed(model, vae: VAE) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["vae.z", "vae.x", "y"])))
    guide.append(AutoVAEGuide(model, vae))
    return guide


def sites(trace) -> set[str]:
    return {name for name, site in trace.nodes.items() if site["type"] == "sample"}


@pytest.mark.parametrize("plate", [True, None])
def test_block_hides_sites_and_freezes_what_it_hides_the_parameters_of(plate):
    vae = made(plate=plate)
    model, guide = inside(vae.model, plate), inside(vae.guide, plate)
    trace = poutine.trace(poutine.block(model, hide=["vae.z"])).get_trace()
    assert sites(trace) == {"vae.x", "rows" if plate is None else "vae.data"}
    before = state(vae)
    svi(model, poutine.block(guide, hide_types=["param"])).step()
    assert changed(vae, before) == {name for name in before if name.startswith("decoder.")}


def one_loss(loss, model, guide, *args) -> float:
    with torch.no_grad():
        pyro.set_rng_seed(3)
        return float(loss().loss(model, guide, *args))


LOSSES = {"trace": Trace_ELBO, "mean_field": TraceMeanField_ELBO, "ours": objectives.ELBO}


@pytest.mark.parametrize("plate", [True, None])
@pytest.mark.parametrize("name", LOSSES)
def test_conditioned_on_data_it_is_the_model_given_data(name, plate):
    vae = made(plate=plate)
    n = {} if plate is None else {"n": ROWS}
    free = partial(inside(vae.model, plate), None, **n)
    guide = inside(vae.guide, plate)
    given = poutine.condition(free, {"vae.x": X})
    expected = one_loss(LOSSES[name], inside(vae.model, plate), guide)
    assert one_loss(LOSSES[name], given, guide) == pytest.approx(expected, rel=1e-6)
    drawn = poutine.trace(poutine.uncondition(inside(vae.model, plate))).get_trace()
    assert not torch.equal(drawn.nodes["vae.x"]["value"], X)


@pytest.mark.parametrize("plate", [True, None])
def test_replay_gives_the_latent_variable_of_the_other_side(plate):
    vae = made(plate=plate)
    sides = [inside(side, plate) for side in (vae.model, vae.guide)]
    for first, second in (sides, sides[::-1]):
        trace = poutine.trace(first).get_trace()
        z = poutine.trace(poutine.replay(second, trace)).get_trace().nodes["_RETURN"]["value"]
        assert torch.equal(z, trace.nodes["vae.z"]["value"])


@pytest.mark.parametrize("plate", [True, None])
@pytest.mark.parametrize("name", LOSSES)
def test_scale_and_mask_weigh_the_terms_of_rows(name, plate):
    vae = made(plate=plate)
    sides = inside(vae.model, plate), inside(vae.guide, plate)
    loss = LOSSES[name]
    whole = one_loss(loss, *sides)
    scaled = one_loss(loss, *(poutine.scale(side, 0.25) for side in sides))
    assert scaled == pytest.approx(0.25 * whole, rel=1e-5)
    rows = torch.arange(ROWS) < 5
    masked = one_loss(loss, *(poutine.mask(side, mask=rows) for side in sides))
    assert masked == pytest.approx(
        one_loss(loss, *(partial(side, mask=rows) for side in sides)), rel=1e-5
    )
    assert 0 < masked < whole


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("handler", ["lift", "substitute"])
def test_a_value_in_a_parameters_place_is_refused(handler, captured):
    vae = made()
    name = "vae$$$decoder.layers.0.bias"
    around = {
        "lift": partial(poutine.lift, prior={"decoder.layers.0.bias": dist.Normal(0.0, 1.0)}),
        "substitute": partial(poutine.substitute, data={"decoder.layers.0.bias": torch.zeros(8)}),
    }[handler]
    model = around(vae.model)
    expected = rf"the parameter '{re.escape(name)}' as it is.*{handler.title()}Messenger"
    with pytest.raises(ValueError, match=expected), poutine.trace(param_only=captured):
        model(X)


def test_lifting_what_is_none_of_its_parameters_leaves_it_alone():
    vae = made(plate=None)

    def model():
        bias = pyro.param("bias", torch.zeros(()))
        with pyro.plate("rows", ROWS):
            z = vae.model(X)
            pyro.sample("y", dist.Normal(z.sum(-1) + bias, 1.0), obs=torch.ones(ROWS))

    trace = poutine.trace(poutine.lift(model, prior={"bias": dist.Normal(0.0, 1.0)})).get_trace()
    assert sites(trace) == {"bias", "rows", "vae.z", "vae.x", "y"}


CONFIGS = {"loc_scale": {"vae.z": LocScaleReparam(0.0)}, "auto": AutoReparam(centered=0.0)}

OURS = {name: loss for name, loss in OBJECTIVES.items() if not name.startswith("trace")}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", [*OURS, "report"])
def test_a_latent_variable_that_was_reparameterized_away_is_refused(name, config):
    vae = made()
    model = poutine.reparam(vae.model, config=CONFIGS[config])
    run = objectives.kl_report if name == "report" else OURS[name]().loss
    with pytest.raises(ValueError, match=r"'vae.z' observed in the model: leave it out"):
        run(model, vae.guide, X)


def test_a_component_for_a_latent_variable_that_is_gone_is_refused():
    vae = made(plate=None)
    model = poutine.reparam(regression(vae), config=CONFIGS["auto"])
    with pytest.raises(ValueError, match=r"the latent site 'vae\.z'"):
        AutoVAEGuide(model, vae)(X)


@pytest.mark.parametrize("name", LOSSES)
def test_reparameterized_but_for_the_vae_a_model_is_trained(name):
    vae = made(plate=None)
    auto = AutoReparam(centered=0.0)
    model = poutine.reparam(
        regression(vae), config=lambda site: None if site["name"].startswith("vae.") else auto(site)
    )
    guide = listed(model, vae)
    guide(X)
    before = state(guide)
    svi(model, guide, LOSSES[name]()).step(X)
    assert changed(guide, before) == set(before)
    assert set(guide(X)) == {"w_decentered", "vae.z"}


def test_hamiltonian_monte_carlo_from_the_encoders_mean():
    """The draws have the mean and covariance of the exact posterior, each row its own."""
    truth, x = linear_data(rows=5, d=6, k=2)
    vae = exact_vae(truth).eval().requires_grad_(False)
    model = poutine.reparam(vae.model, config=CONFIGS["auto"])
    start = {"vae.z_decentered": vae.encode(x).mean}
    kernel = HMC(model, step_size=0.2, num_steps=8)
    chain = MCMC(kernel, 600, warmup_steps=100, initial_params=start, disable_progbar=True)
    chain.run(x)
    z = chain.get_samples()["vae.z_decentered"]
    mean, covariance = truth.posterior(x)
    independent = chain.diagnostics()["vae.z_decentered"]["n_eff"].clamp(max=600)
    error = (z.mean(0) - mean) / (covariance.diagonal() / independent).sqrt()
    assert error.abs().max() < family_limit(error.numel())
    ratio = z.var(0) / covariance.diagonal()
    assert ((ratio - 1) / (2 / independent).sqrt()).abs().max() < SIGMAS + 1


def alive() -> int:
    """How many numbers the tensors that the collector knows hold."""
    gc.collect()
    return sum(t.numel() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter))


@pytest.mark.parametrize("program", [False, pytest.param(True, marks=pytest.mark.long)])
def test_thirty_vaes_leave_nothing_behind(program, local):
    def trained() -> int:
        vae = made(plate=None)
        model = Program(vae)
        sides = (inside(vae.model, None), inside(vae.guide, None))
        svi(*((model, model.guide) if program else sides)).step(X)
        return sum(p.numel() for p in vae.parameters())

    size = trained()
    before = alive()
    for _ in range(30):
        trained()
    # Less than one of thirty.
    assert alive() - before < size
    assert stored() == set()


def test_pyros_compiler_takes_a_vae_whose_name_is_its_attributes(recwarn):
    """It wants a parameter under one name; the warnings are PyTorch's, of its old compiler."""
    vae = made(plate=None, name="inner")
    program, before = Program(vae), state(vae)
    loss = JitTrace_ELBO(ignore_jit_warnings=True)
    svi(program, program.guide, loss).step(X)
    assert changed(vae, before) == set(before)
    assert {warning.category for warning in recwarn} <= {FutureWarning}
