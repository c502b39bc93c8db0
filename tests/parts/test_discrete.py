"""Discrete latent variables: enumeration, importance sampling, and the ways to train them."""

import gc
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate

from helpers.tables import DISCRETE_OBJECTIVES
from helpers.truths import SIGMAS, family_limit, z_score
from pyro_vae import VAE, evaluate, fit, fit_many, load, networks, objectives, posteriors, priors
from pyro_vae.objectives import Linear

EVENT = (7,)
MLP = partial(networks.MLP, hidden=[8])

PRIORS = {
    "one_hot": partial(priors.OneHot, variables=2, learned=True),
    "autoregressive": partial(priors.Autoregressive, variables=2, hidden=[8]),
}


def made(prior: str = "one_hot", posterior=posteriors.OneHot, **options) -> VAE:
    pyro.set_rng_seed(1)
    vae = VAE(
        EVENT, 6, prior=PRIORS[prior], posterior=posterior, encoder=MLP, decoder=MLP, **options
    ).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vae


def data(rows: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 2, (rows, *EVENT), generator=generator).double()


def enumerate_terms(vae: VAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log p(x) and the ELBO of each row as sums over all codes."""
    q, p = vae.encode(x), vae.prior_distribution()
    codes = p.enumerate_support(expand=False).reshape(-1, 1, vae.latent_dim)
    flat = codes.reshape(-1, vae.latent_dim)
    joint = p.log_prob(flat)[:, None] + vae.decode(codes.expand(-1, len(x), -1)).log_prob(x)
    log_q = q.log_prob(codes)
    return joint.logsumexp(0), (log_q.exp() * (joint - log_q)).sum(0)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_evidence_by_enumeration_is_that_by_importance_sampling(prior):
    vae, x = made(prior).eval(), data(200)
    exact, bound = enumerate_terms(vae, x)
    with torch.no_grad():
        found = evaluate.log_evidence(vae, x, 4000, diagnostics=True)
    z = (found.log_evidence - exact) / found.standard_error
    assert z.abs().max() < family_limit(200) + 0.5
    assert abs(z_score(z.detach())) < SIGMAS
    elbo = evaluate.elbo(vae, x, 4000).elbo
    assert (elbo - bound).abs().max() < 0.1
    assert abs(z_score((elbo - bound).detach())) < SIGMAS
    assert (exact > bound).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_the_masses_of_the_prior_sum_to_one(prior):
    p = made(prior).prior_distribution()
    codes = p.enumerate_support()
    assert codes.shape == (9, 6)
    assert p.log_prob(codes).exp().sum().item() == pytest.approx(1)
    draws = p.sample((50_000,))
    counts = (draws[:, None] == codes).all(-1).double()
    assert abs(z_score(counts[:, 0], p.log_prob(codes)[0].exp().item())) < SIGMAS
    assert p.expand((4,)).enumerate_support().shape == (9, 4, 6)
    assert p.expand((4,)).enumerate_support(expand=False).shape == (9, 1, 6)


@pytest.mark.parametrize("prior", PRIORS)
def test_trace_enum_elbo_is_the_sum_over_codes(prior):
    vae, x = made(prior), data()
    parameters = list(vae.parameters())
    bound = enumerate_terms(vae, x)[1].sum()
    exact = torch.autograd.grad(bound, parameters)
    objective = DISCRETE_OBJECTIVES["trace_enum"]()
    guide = config_enumerate(vae.guide, "parallel")
    loss = objective.differentiable_loss(vae.model, guide, x)
    torch.testing.assert_close(-loss, bound)
    for ours, theirs in zip(torch.autograd.grad(-loss, parameters), exact, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_score_gradients_agree_with_enumeration():
    vae, x = made(), data(2)
    bias = vae.encoder.layers[-1].bias
    (exact,) = torch.autograd.grad(-enumerate_terms(vae, x)[1].sum(), bias)
    draws = []
    for seed in range(300):
        pyro.set_rng_seed(seed)
        loss = Trace_ELBO(20, vectorize_particles=True).differentiable_loss(vae.model, vae.guide, x)
        draws.append(torch.autograd.grad(loss, bias)[0])
    draws = torch.stack(draws)
    z = (draws.mean(0) - exact) / (draws.std(0) / 300**0.5)
    assert z.abs().max() < family_limit(len(z))


def test_a_baseline_trains_by_svi():
    vae, x = made(), data(20)
    start = enumerate_terms(vae, x)[1].mean().item()
    infer = {"baseline": {"use_decaying_avg_baseline": True}}
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), TraceGraph_ELBO())
    for _ in range(150):
        svi.step(x, infer=infer)
    assert enumerate_terms(vae, x)[1].mean().item() > start + 0.5


@pytest.mark.parametrize(
    ("posterior", "objective", "margin"),
    [
        (posteriors.OneHot, partial(TraceEnum_ELBO, max_plate_nesting=1), 2.0),
        # The variance of the score term is large.
        (posteriors.OneHot, Trace_ELBO, 4.0),
        (posteriors.StraightThrough, objectives.ELBO, 2.0),
        pytest.param(
            posteriors.StraightThrough, partial(objectives.IWAE, 5), 2.0, marks=pytest.mark.long
        ),
    ],
)
def test_training_finds_the_clusters(posterior, objective, margin):
    """Rows of four prototypes: the evidence rises to near that of the true model."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(4, 20, generator=generator).round()
    kinds = torch.randint(0, 4, (400,), generator=generator)
    noise = torch.rand(400, 20, generator=generator) < 0.05
    x = (prototypes[kinds] - noise.float()).abs()
    pyro.set_rng_seed(0)
    vae = VAE((20,), 4, prior=priors.OneHot, posterior=posterior, encoder=MLP, decoder=MLP)
    fit(
        vae, x, objective=objective(), epochs=120, batch_size=40,
        optimizer=lambda p: torch.optim.Adam(p, 1e-2),
    )  # fmt: skip
    p = torch.where(prototypes == 1, 0.95, 0.05)
    likelihood = torch.distributions.Bernoulli(p).log_prob(x[:, None]).sum(-1)
    truth = (likelihood.logsumexp(-1) - torch.tensor(4.0).log()).mean().item()
    own = evaluate.log_evidence(vae, x, 200).mean().item()
    assert own > truth - margin


def test_our_objectives_refuse_draws_without_gradients():
    vae, x = made(), data()
    with pytest.raises(ValueError, match=r"from OneHot, which has no rsample.*TraceEnum_ELBO"):
        objectives.ELBO().differentiable_loss(vae.model, vae.guide, x)
    report = objectives.kl_report(vae.model, vae.guide, x)
    assert report["vae.z"].reason == "closed form for OneHot and OneHot"


def test_straight_through_draws_are_not_summed_by_trace_enum_elbo():
    """Pyro would sum over codes without their probabilities, because draws have gradients."""
    vae, x = made(posterior=posteriors.StraightThrough), data(20)
    bound = enumerate_terms(vae, x)[1].sum().item()
    guide = config_enumerate(vae.guide, "parallel")
    with pytest.warns(UserWarning, match="no sample sites configured for enumeration"):
        losses = torch.tensor([
            float(TraceEnum_ELBO(max_plate_nesting=1).loss(vae.model, guide, x)) for _ in range(200)
        ])  # fmt: skip
    assert abs(z_score(-losses, bound)) < SIGMAS


def test_relaxed_draws_are_refused_by_estimators_that_need_their_value_alone():
    vae, x = relaxed(), data(4).float()
    for objective in (objectives.IWAE(3, estimator="dreg"), objectives.ELBO(estimator="stl")):
        with pytest.raises(ValueError, match="whose density is that of the relaxed sample"):
            objective.differentiable_loss(vae.model, vae.guide, x)


def test_too_many_codes_are_not_enumerated():
    d = priors.OneHot(60, variables=20)()
    with pytest.raises(
        ValueError, match=r"at most 1,048,576 codes to enumerate, got 3 to the power"
    ):
        d.enumerate_support()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.OneHot(7, variables=2), "latent_dim=7 with variables=2"),
        (lambda: posteriors.OneHot(4, variables=4), "latent_dim=4 with variables=4"),
        (lambda: priors.Autoregressive(6, variables=1), "variables to be an integer of at least 2"),
        (lambda: priors.RelaxedOneHot(6, temperature=0.0), "temperature to be positive"),
        (lambda: posteriors.StraightThrough(1), "latent_dim to be an integer of at least 2"),
    ],
)
def test_wrong_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Temperatures


def relaxed(name: str = "vae") -> VAE:
    pyro.set_rng_seed(2)
    return VAE(
        EVENT, 6, prior=partial(priors.RelaxedOneHot, variables=2),
        posterior=posteriors.RelaxedOneHot, encoder=MLP, decoder=MLP, name=name,
    )  # fmt: skip


SCHEDULES = {
    "posterior.temperature": Linear(1.0, 0.4, steps=8),
    "prior.temperature": Linear(0.8, 0.5, steps=6),
}


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_schedule_lowers_the_temperature(compile, tmp_path):
    vae, x = relaxed(), data(20).float()
    result = fit(
        vae, x, epochs=5, batch_size=10, schedules=SCHEDULES, compile=compile, out=tmp_path
    )
    shown = [row["posterior.temperature"] for row in result.history]
    assert shown == pytest.approx([SCHEDULES["posterior.temperature"](s) for s in (1, 3, 5, 7, 9)])
    assert vae.posterior.temperature.item() == pytest.approx(0.4)
    assert vae.prior.temperature.item() == pytest.approx(0.5)
    vae.name = "trained"
    again = load(tmp_path / "model.safetensors")
    assert again.posterior.temperature.item() == pytest.approx(0.4)


def test_weights_of_an_earlier_temperature_are_not_the_best():
    """The bound of an earlier temperature is that of another model."""
    vae, x = relaxed(), data(20).float()
    result = fit(
        vae, x, valid=x, epochs=6, batch_size=10, compile=False,
        schedules={"posterior.temperature": Linear(1.0, 0.01, steps=9)},
        optimizer=lambda p: torch.optim.SGD(p, 1e-9),
    )  # fmt: skip
    bounds = [row["valid_elbo"] for row in result.history]
    assert bounds.index(max(bounds)) < 3
    assert result.best_epoch >= 5
    assert vae.posterior.temperature.item() == pytest.approx(0.01)


def test_a_resumed_training_continues_the_schedule(tmp_path):
    x = data(20).float()
    whole = relaxed("whole")
    fit(whole, x, epochs=5, batch_size=10, schedules=SCHEDULES, compile=False)
    part = relaxed("part")
    options = {"batch_size": 10, "schedules": SCHEDULES, "compile": False, "out": tmp_path}

    class StopError(Exception):
        pass

    class Tracker:
        def log(self, values, step):
            if step == 2:
                raise StopError

    with pytest.raises(StopError):
        fit(part, x, epochs=5, tracker=Tracker(), **options)
    again = relaxed("again")
    del part
    gc.collect()
    again.name = "part"
    fit(again, x, epochs=5, resume=True, **options)
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.long
def test_temperatures_of_several_vaes_follow_their_schedules():
    x = data(20).float()
    vaes = [relaxed("first"), relaxed("second")]
    alone = relaxed("alone")
    fit_many(vaes, x, epochs=5, batch_size=10, schedules=SCHEDULES)
    fit(alone, x, epochs=5, batch_size=10, schedules=SCHEDULES, compile=False)
    for vae in vaes:
        assert vae.posterior.temperature.item() == pytest.approx(0.4)
        for a, b in zip(vae.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"posterior.temperature": Linear(1.0, 0.0, steps=2)}, "positive values of posterior.temp"),
        ({"posterior.scale": Linear(1.0, 0.5, steps=2)},
         "scalars that ELBO has, or 'prior.temperature', 'posterior.temperature', got"),
        ({"posterior.temperature": Linear(1.0, 0.5, steps=99)}, "to end within the training's"),
    ],
)  # fmt: skip
def test_wrong_schedules_of_parts_are_refused(schedules, message):
    with pytest.raises(ValueError, match=message):
        fit(relaxed(), data(20).float(), epochs=2, batch_size=10, schedules=schedules)


@pytest.mark.parametrize("vae", ["vae", None, torch.nn.Linear(2, 2)])
def test_only_a_vae_has_schedules_of_parts(vae):
    with pytest.raises(ValueError, match="Expected vae to be a VAE, got"):
        fit(vae, data(20).float(), epochs=2, schedules=SCHEDULES)
