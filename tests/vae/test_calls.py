"""Several calls of one VAE in one trace, and what Pyro is told of the site of z."""

from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import (
    SVI,
    Predictive,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

from helpers.tables import data_for
from helpers.truths import SIGMAS, z_score
from pyro_vae import VAE, fit, networks, objectives, posteriors

STEPS, ROWS, EVENT = 3, 12, (1, 8, 8)
X = torch.stack([data_for("bernoulli"), 1 - data_for("bernoulli"), torch.zeros(ROWS, *EVENT)])
SEEN = torch.arange(ROWS).expand(STEPS, ROWS) < torch.tensor([[12], [8], [5]])
ADAM = partial(torch.optim.Adam, lr=1e-2)

MLP = partial(networks.MLP, hidden=[8])


def made(**options) -> VAE:
    return VAE(EVENT, 2, **{"encoder": MLP, "decoder": MLP, **options})


def loop(side, *, seen=None, **options):
    """Calls a side once for each step, in one plate of the caller's; later steps of fewer rows."""

    def run(x=X):
        with pyro.plate("rows", ROWS):
            for step in range(STEPS):
                mask = None if seen is None else seen[step]
                side(x[step], suffix=step, mask=mask, **options)

    return run


def sites(trace, kind="sample") -> set[str]:
    return {name for name, site in trace.nodes.items() if site["type"] == kind}


@pytest.mark.parametrize("plate", [True, None])
def test_a_suffix_is_appended_to_every_site(plate):
    vae = made(plate=plate, name="digit")

    def run(side):
        with pyro.plate("rows", ROWS) if plate is None else nullcontext():
            side(X[0], suffix="left")
            side(X[1], suffix=7)

    of = {side: sites(poutine.trace(run).get_trace(side)) for side in (vae.model, vae.guide)}
    data = {"rows"} if plate is None else {"digit.data_left", "digit.data_7"}
    codes = {"digit.z_left", "digit.z_7"}
    assert of[vae.guide] == codes | data
    assert of[vae.model] == codes | data | {"digit.x_left", "digit.x_7"}


def test_parameters_are_those_of_one_vae_however_often_it_is_called():
    vae = made(plate=None)
    trace = poutine.trace(loop(vae.guide)).get_trace()
    assert sites(trace, "param") == {f"vae$$${name}" for name, _ in vae.guide.named_parameters()}
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(loop(vae.model), loop(vae.guide), pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step()
    names = {f"vae$$${name}" for name, _ in vae.named_parameters()}
    assert set(pyro.get_param_store().keys()) == names
    assert not any(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize("seen", [None, SEEN])
def test_the_loop_has_the_density_of_its_steps(seen):
    vae = made(plate=None)
    guide = poutine.trace(loop(vae.guide, seen=seen)).get_trace()
    model = poutine.trace(poutine.replay(loop(vae.model, seen=seen), guide)).get_trace()
    expected = torch.zeros(ROWS)
    for step in range(STEPS):
        z = guide.nodes[f"vae.z_{step}"]["value"]
        value = vae.decode(z).log_prob(X[step]) + vae.prior_distribution().log_prob(z)
        value = value - vae.encode(X[step]).log_prob(z)
        expected += value if seen is None else torch.where(seen[step], value, 0.0)
    torch.testing.assert_close(model.log_prob_sum() - guide.log_prob_sum(), expected.sum())


LOSSES = {
    "trace": Trace_ELBO,
    "mean_field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "ours": objectives.ELBO,
}


def losses(loss, model, guide, runs: int = 100) -> torch.Tensor:
    with torch.no_grad():
        return torch.tensor([float(loss.loss(model, guide)) for _ in range(runs)]).double()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_loop_is_the_sum_of_its_steps(name):
    vae = made(plate=None)
    found = losses(LOSSES[name](), loop(vae.model, seen=SEEN), loop(vae.guide, seen=SEEN))
    alone = made()
    alone.load_state_dict(vae.state_dict())
    expected = sum(
        losses(
            LOSSES[name](),
            partial(alone.model, X[step], mask=SEEN[step]),
            partial(alone.guide, X[step], mask=SEEN[step]),
        )
        for step in range(STEPS)
    )
    assert abs(z_score(found - expected)) < SIGMAS


def test_the_weights_of_a_datum_are_those_of_all_its_steps():
    vae = made(plate=None)
    values = objectives.IWAE(5).values(loop(vae.model), loop(vae.guide))
    assert values.log_weights.shape == (5, ROWS)
    pyro.set_rng_seed(1)
    found = objectives.IWAE(5).values(loop(vae.model), loop(vae.guide)).log_weights
    pyro.set_rng_seed(1)
    with pyro.plate("particles", 5, dim=-2):
        guide = poutine.trace(loop(vae.guide)).get_trace()
    expected = torch.zeros(5, ROWS)
    for step in range(STEPS):
        z = guide.nodes[f"vae.z_{step}"]["value"]
        expected += vae.decode(z).log_prob(X[step]) + vae.prior_distribution().log_prob(z)
        expected -= vae.encode(X[step]).log_prob(z)
    torch.testing.assert_close(found, expected)


def test_the_report_names_each_call():
    vae = made(plate=None)
    report = objectives.kl_report(loop(vae.model), loop(vae.guide))
    assert {name: term.closed_form for name, term in report.items()} == {
        f"vae.z_{step}": True for step in range(STEPS)
    }


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_by_suffix(parallel):
    vae = made().eval()
    draw = Predictive(vae.model, guide=vae.guide, num_samples=400, parallel=parallel)
    found = draw(X[0], suffix="b")["vae.z_b"]
    q = vae.encode(X[0])
    error = (found.mean(0) - q.mean) / (q.stddev / 20)
    assert found.shape == (400, ROWS, 2)
    assert error.abs().max() < SIGMAS + 1


def test_a_vae_that_fit_trained_goes_into_a_loop():
    vae = made()
    before = losses(objectives.ELBO(), by_own_plates(vae.model), by_own_plates(vae.guide))
    fit(vae, X.flatten(0, 1), epochs=30, batch_size=12, optimizer=ADAM)
    after = losses(objectives.ELBO(), by_own_plates(vae.model), by_own_plates(vae.guide))
    assert after.mean() < 0.9 * before.mean()
    assert len(pyro.get_param_store()) == 0


def by_own_plates(side):
    def run():
        for step in range(STEPS):
            side(X[step], suffix=step)

    return run


def test_codes_of_several_calls_compose_one_observation():
    """As in attend, infer, repeat: the steps' means add up, and only their sum is observed."""
    vae = made(plate=None)
    canvas = X.sum(0)

    def model():
        with pyro.plate("rows", ROWS):
            total = torch.zeros(ROWS, *EVENT)
            for step in range(STEPS):
                z = poutine.block(vae.model, hide=[f"vae.x_{step}"])(suffix=step)
                total = total + vae.decode(z).mean
            pyro.sample("canvas", dist.Normal(total, 0.3).to_event(3), obs=canvas)

    def guide():
        with pyro.plate("rows", ROWS):
            left = canvas
            for step in range(STEPS):
                z = vae.guide(left, suffix=step)
                left = left - vae.decode(z).mean

    traced = poutine.trace(guide).get_trace()
    trace = poutine.trace(poutine.replay(model, traced)).get_trace()
    assert sites(trace) == {"rows", "canvas", *(f"vae.z_{step}" for step in range(STEPS))}
    means = [vae.decode(traced.nodes[f"vae.z_{step}"]["value"]).mean for step in range(STEPS)]
    trace.compute_log_prob()
    torch.testing.assert_close(
        trace.nodes["canvas"]["log_prob_sum"], dist.Normal(sum(means), 0.3).log_prob(canvas).sum()
    )
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), objectives.ELBO(analytic=False))
    found = [svi.step() for _ in range(150)]
    assert sum(found[-10:]) < 0.5 * sum(found[:10])


class Unreparameterized(posteriors.Normal):
    """A posterior without a pathwise gradient, which a baseline is for."""

    def forward(self, features):
        q = super().forward(features).base_dist
        return NonreparameterizedNormal(q.loc, q.scale).to_event(1)


BASELINE = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}}


def test_a_baseline_belongs_to_its_site_and_quiets_the_gradient():
    vae = made(plate=None, posterior=Unreparameterized)
    spread = {}
    for name, infer in (("without", None), ("with", BASELINE)):
        gradients = []
        for _ in range(60):
            vae.zero_grad()
            guide = loop(vae.guide, infer=infer)
            TraceGraph_ELBO().loss_and_grads(loop(vae.model), guide)
            gradients.append(vae.encoder.layers[-1].bias.grad.clone())
        # The first ones go before the average has settled.
        spread[name] = torch.stack(gradients)[10:].std(0).mean()
    assert spread["with"] < 0.3 * spread["without"]
    averages = {name for name in pyro.get_param_store() if "baseline" in name}
    assert averages == {f"__baseline_avg_downstream_cost_vae.z_{step}" for step in range(STEPS)}


@pytest.mark.parametrize("side", ["model", "guide"])
def test_infer_reaches_the_latent_site_alone_and_stays_the_callers(side):
    vae = made()
    infer = {"told": 1}
    marked = poutine.infer_config(getattr(vae, side), lambda site: {"more": 2})
    trace = poutine.trace(marked).get_trace(X[0], infer=infer)
    found = {
        name: site["infer"].get("told")
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and name != "vae.data"
    }
    assert found == ({"vae.z": 1, "vae.x": None} if side == "model" else {"vae.z": 1})
    assert infer == {"told": 1}


@pytest.mark.parametrize("side", ["model", "guide"])
@pytest.mark.parametrize("plate", [True, None])
def test_two_calls_alike_are_refused_with_what_to_do(plate, side):
    vae = made(plate=plate)

    def run(*suffixes):
        with pyro.plate("rows", ROWS) if plate is None else nullcontext():
            for suffix in suffixes:
                getattr(vae, side)(X[0], suffix=suffix)

    for twice in ((None, None), (1, 1), (1, "1")):
        with pytest.raises(ValueError, match=r"different values of suffix=.*vae"):
            poutine.trace(run).get_trace(*twice)
    run(None, None)


def test_other_errors_of_the_runtime_stay_as_they_are():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("out of order")

    vae = made(encoder=Broken())
    with pytest.raises(RuntimeError, match="out of order"):
        vae.guide(X[0])


def test_a_call_out_of_sight_needs_no_suffix():
    vae = made()

    def run():
        vae.guide(X[0])
        return poutine.block(vae.model)(n=3)

    trace = poutine.trace(run).get_trace()
    assert trace.nodes["_RETURN"]["value"].shape == (3, 2)


REFUSED = {
    "empty": ({"suffix": ""}, "suffix to be a non-empty string or an integer, got ''"),
    "tensor": ({"suffix": torch.tensor(1)}, "suffix .* got tensor"),
    "bool": ({"suffix": True}, "suffix .* got True"),
    "float": ({"suffix": 1.0}, "suffix .* got 1.0"),
    "infer": ({"infer": "parallel"}, "infer to be a dict or None, got 'parallel'"),
}


@pytest.mark.parametrize("side", ["model", "guide"])
@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_no_site_can_carry_are_refused(name, side):
    kwargs, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"Expected {message}"):
        getattr(made(), side)(X[0], **kwargs)
