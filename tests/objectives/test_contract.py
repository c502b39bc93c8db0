"""What objectives promise beyond the value of the loss: refusals, reports, values, no surprises."""

import copy
import inspect
import pickle
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

from helpers.tables import FEW_PRIORS, OBJECTIVES
from pyro_vae import VAE, networks, posteriors
from pyro_vae.objectives import ELBO, IWAE, kl_report
from pyro_vae.objectives.core.objective import RunOptions

X = torch.linspace(-1.0, 2.0, 6)
ZERO = torch.zeros(())


def model():
    with pyro.plate("data", 6):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def guide():
    with pyro.plate("data", 6):
        pyro.sample("z", dist.Normal(X / 2, 1.0))


def also(function, name, **options):
    """The function, and one more site outside of its plates."""

    def run():
        function()
        pyro.sample(name, dist.Normal(ZERO, 1.0), **options)

    return run


def loop(observe):
    for i in pyro.plate("data", 3):
        z = pyro.sample(f"z_{i}", dist.Normal(ZERO, 1.0))
        if observe:
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=X[i])


def discrete(observe):
    with pyro.plate("data", 6):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        if observe:
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=X)


def scaled(scale):
    with pyro.plate("data", 6):
        with poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def factored():
    model()
    pyro.factor("penalty", torch.tensor(0.5))


observed = {"obs": torch.tensor(0.5)}
looped = (partial(loop, True), partial(loop, False))
categorical = (partial(discrete, True), partial(discrete, False))

REFUSED = {
    "outer latent": ([IWAE], also(model, "w"), also(guide, "w"), r"'w' after 'z'.*use ELBO"),
    "outer observation": ([IWAE], also(model, "y", **observed), guide, r"'y'.*use ELBO"),
    "outer factor": ([IWAE], factored, guide, r"'penalty'.*use ELBO"),
    "two scales": ([IWAE], partial(scaled, 0.5), guide, r"'x in the model': 1.*use ELBO"),
    "tensor as scale": (
        [IWAE],
        partial(scaled, torch.tensor(0.5)),
        guide,
        r"'z in the model': tensor.*use ELBO",
    ),
    "loop": ([IWAE], *looped, r"'z_0'.*`with pyro.plate"),
    "nothing latent": ([IWAE], also(lambda: None, "y", **observed), lambda: None, "latent site"),
    "discrete": ([ELBO, IWAE], *categorical, r"'k' from Categorical.*TraceEnum_ELBO"),
    "in the model only": ([ELBO, IWAE, kl_report], also(model, "w"), guide, r"'w'.*in the guide"),
    "in the guide only": ([ELBO, IWAE, kl_report], model, also(guide, "u"), r"'u'.*is_auxiliary"),
    "sampled and observed": (
        [ELBO, IWAE, kl_report],
        also(model, "y", **observed),
        also(guide, "y"),
        r"'y' observed in the model: leave it out of the guide",
    ),
    "observed by both": (
        [ELBO, IWAE, kl_report],
        also(model, "y", **observed),
        also(guide, "y", **observed),
        r"'y' observed in the model and the guide",
    ),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_one_error_names_the_site_and_the_way_out(name, validate):
    refusing, *pair, message = REFUSED[name]
    for objective in refusing:
        if objective is kl_report:
            calls = [objective]
        else:
            made = [objective(), objective(3), objective(3, vectorize_particles=False)]
            calls = [call for o in made for call in (o.loss, o.loss_and_grads, o.values)]
        for call in calls:
            with pyro.validation_enabled(validate), pytest.raises(ValueError, match=message):
                call(*pair)


def test_what_iwae_refuses_elbo_takes():
    for name in ("outer latent", "outer observation", "outer factor", "two scales", "loop"):
        _, *pair, _ = REFUSED[name]
        expected, loss = Trace_ELBO(), ELBO(analytic=False).loss
        pyro.set_rng_seed(1)
        ours = float(loss(*pair))
        pyro.set_rng_seed(1)
        assert ours == pytest.approx(expected.loss(*pair), rel=1e-5)


@pytest.mark.parametrize("objective", [ELBO(3), IWAE(3)], ids=["elbo", "iwae"])
def test_a_deterministic_site_changes_nothing(objective):
    def noted(function):
        pyro.deterministic("half", X.sum() / 2)
        function()

    def losses(each, *pairs):
        out = []
        for pair in pairs:
            pyro.set_rng_seed(1)
            out.append(float(each.loss(*pair)))
        return out

    both = (partial(noted, model), partial(noted, guide))
    bare, ours = losses(objective, (model, guide), both)
    assert ours == bare
    assert objective.values(*both).log_likelihood.keys() == {"x"}
    # Pyro takes it for a sample outside of the plate, and then the batch for one datum.
    stock = RenyiELBO(0, 3, vectorize_particles=True, max_plate_nesting=1)
    bare, theirs = losses(stock, (model, guide), (both[0], guide))
    assert abs(theirs - bare) > 0.1


@pytest.mark.parametrize("objective", [ELBO, IWAE])
@pytest.mark.parametrize("number", [0, -1, 2.0, True])
def test_particles_are_a_positive_integer(objective, number):
    with pytest.raises(ValueError, match=r"Expected num_particles .* got"):
        objective(number)


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf"), torch.ones(2)])
def test_beta_is_zero_or_more(beta):
    with pytest.raises(ValueError, match=r"Expected beta to be .* got"):
        ELBO(beta=beta)


def test_beta_weights_the_kl_and_has_a_gradient(binary):
    vae, beta = VAE((1, 8, 8), 3), torch.tensor(0.7, requires_grad=True)
    values = ELBO(analytic=True).values(vae.model, vae.guide, binary)
    kl = values.rate["vae.z"].sum()
    losses = []
    for weight in (0.0, 0.7, beta):
        pyro.set_rng_seed(1)
        losses.append(ELBO(beta=weight).loss_and_grads(vae.model, vae.guide, binary))
    assert losses[1] == pytest.approx(losses[0] + 0.7 * kl.item(), rel=1e-5)
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(beta.grad, kl.detach())


def test_beta_of_zero_leaves_the_prior_alone(binary):
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS["normal_learned"])
    ELBO(beta=0.0).loss_and_grads(vae.model, vae.guide, binary)
    assert all(not p.grad.any() for p in vae.prior.parameters())
    assert all(p.grad.any() for p in vae.decoder.parameters())


OPTIONS = {
    "max_plate_nesting": 3,
    "vectorize_particles": False,
    "retain_graph": True,
    "strict_enumeration_warning": False,
    "ignore_jit_warnings": True,
    "num_particles": 6,
    "analytic": False,
    "estimator": "stl",
    "beta": 0.25,
    "nats": 0.125,
    "per": "site",
    "of": "datum",
    "capacity": 2.0,
    "gamma": 3.0,
    "target": 5.0,
    "momentum": 0.75,
    "step_size": 0.25,
    "groups": 3,
    "alpha": 0.25,
    "order": 2,
    "guide_bound": "iwae",
}
"""Another value than the default for each option that an objective keeps as it is."""


CLASSES = dict.fromkeys(
    row.func if isinstance(row, partial) else row for row in OBJECTIVES.values()
)


@pytest.mark.parametrize("make", CLASSES)
def test_every_option_is_kept(make):
    names = set(inspect.signature(make).parameters) - {"run"} | set(RunOptions.__annotations__)
    given = {option: OPTIONS[option] for option in names & set(OPTIONS)}
    assert len(given) >= 6
    objective = make(**given)
    assert {option: getattr(objective, option) for option in given} == given


def test_analytic_is_checked():
    with pytest.raises(ValueError, match=r"Expected analytic to be True, False or None, got '1'"):
        ELBO(analytic="1")


PAIRS = {
    ("normal", posteriors.Normal): (True, "closed form for Normal and Normal"),
    ("normal", posteriors.Full): (True, "closed form for FullNormal and Normal"),
    ("normal_learned", posteriors.Full): (True, "closed form for FullNormal and Normal"),
    ("mixture", posteriors.Normal): (False, "no closed form is known for Normal and Mixture"),
    ("vamp", posteriors.Full): (False, "no closed form is known for FullNormal and Mixture"),
}


@pytest.mark.parametrize(("pair", "answer"), PAIRS.items())
def test_report_says_how_each_kl_is_computed(pair, answer, binary):
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS[pair[0]], posterior=pair[1])
    (term,) = kl_report(vae.model, vae.guide, binary).values()
    assert term.closed_form is answer[0]
    assert term.reason.startswith(answer[1])
    strict = (
        partial(kl_report, strict=True),
        ELBO(analytic=True).loss,
        ELBO(3, analytic=True).loss,
    )
    for call in strict:
        if term.closed_form:
            call(vae.model, vae.guide, binary)
        else:
            with pytest.raises(
                ValueError, match=r"Expected a closed-form KL .* 'vae.z': no closed"
            ):
                call(vae.model, vae.guide, binary)


def test_a_class_of_the_users_own_is_sampled():
    class Skewed(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(value) + torch.log(2 * torch.sigmoid(value))

    def skewed():
        with pyro.plate("data", 6):
            z = pyro.sample("z", Skewed(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    report = kl_report(skewed, guide)["z"]
    assert not report.closed_form
    assert "Skewed is a custom class" in report.reason


class Handwritten:
    """Networks with running statistics, known to the program by a closure alone."""

    def __init__(self):
        self.encoder = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def model(self):
        pyro.param("loc", lambda: torch.randn(()))
        model()

    def guide(self):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(self.encoder(X[:, None])[..., 0], 1.0))


def handwritten():
    program = Handwritten()
    return program, program.encoder, ()


def batch_norm_vae():
    net = partial(networks.MLP, hidden=[16], batch_norm=True)
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS["vamp"], encoder=net, decoder=net)
    return vae, vae, (torch.ones(5, 1, 8, 8),)


@pytest.mark.parametrize("make", [handwritten, batch_norm_vae])
def test_report_leaves_no_trace(make):
    program, module, args = make()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(module.state_dict())
    state, modes = torch.get_rng_state(), [m.training for m in module.modules()]
    kl_report(program.model, program.guide, *args)
    assert torch.equal(torch.get_rng_state(), state)
    assert not pyro.get_param_store()
    assert [m.training for m in module.modules()] == modes
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in module.parameters())


@pytest.mark.parametrize("objective", [ELBO(3, analytic=False), IWAE(3)], ids=["elbo", "iwae"])
@pytest.mark.parametrize("make", [handwritten, batch_norm_vae])
def test_finding_the_plates_leaves_no_trace(make, objective):
    losses, states = [], []
    for given in (float("inf"), 1):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        program, module, args = make()
        known = type(objective)(3, max_plate_nesting=given)
        losses.append(known.loss_and_grads(program.model, program.guide, *args))
        states.append(module.state_dict())
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def deeper():
    with pyro.plate("groups", 2, dim=-2), pyro.plate("data", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        with pyro.plate("pixels", 2, dim=-3):
            pyro.deterministic("copy", z.expand(2, 2, 3) if z.dim() < 3 else z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=X.reshape(2, 3))


def deeper_guide():
    with pyro.plate("groups", 2, dim=-2), pyro.plate("data", 3, dim=-1):
        pyro.sample("z", dist.Normal(X.reshape(2, 3) / 2, 1.0))


@pytest.mark.parametrize("objective", [ELBO(4), IWAE(4)], ids=["elbo", "iwae"])
def test_one_object_serves_models_of_different_depth(objective):
    for pair in ((model, guide), (deeper, deeper_guide), (model, guide)):
        pyro.set_rng_seed(1)
        loss = objective.loss(*pair)
        pyro.set_rng_seed(1)
        fresh = type(objective)(4, max_plate_nesting=3 if pair[0] is deeper else 1)
        assert loss == pytest.approx(fresh.loss(*pair), rel=1e-5)


@pytest.mark.parametrize("objective", [ELBO(6), IWAE(6)], ids=["elbo", "iwae"])
def test_a_batch_without_a_plate_does_not_pass_for_particles(objective):
    def bare():
        pyro.sample("z", dist.Normal(torch.zeros(6), 1.0))

    with pytest.raises(ValueError, match="invalid log_prob shape"):
        objective.loss(bare, bare)


@pytest.mark.parametrize("objective", [ELBO(3, beta=0.5), IWAE(3)], ids=["elbo", "iwae"])
def test_copies_and_pickles(objective):
    objective.loss(model, guide)
    for twin in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        losses = []
        for each in (objective, twin):
            pyro.set_rng_seed(1)
            losses.append(each.loss(model, guide))
        assert losses[0] == losses[1]


@pytest.mark.parametrize("retain", [None, True])
def test_the_graph_is_retained_where_it_is_asked_for(retain):
    loc = torch.zeros((), requires_grad=True)
    scale = loc.exp()

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("z", dist.Normal(0.0, scale))

    objective = ELBO(retain_graph=retain)
    objective.loss_and_grads(model, guide)
    with nullcontext() if retain else pytest.raises(RuntimeError, match="second time"):
        objective.loss_and_grads(model, guide)
