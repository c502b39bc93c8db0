"""The VAE as a part of larger programs: stock objectives, prediction, plates, enumeration."""

import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)

from helpers.designs import cover
from helpers.tables import EVENT, FEW_NETWORKS, FEW_PRIORS, LIKELIHOODS, NETWORKS, data_for, given
from helpers.truths import SIGMAS, z_score
from pyro_vae import VAE, networks, objectives

X = data_for("bernoulli")

MLP = partial(networks.MLP, hidden=[8])


def made(network: str = "mlp", **options) -> VAE:
    encoder, decoder = NETWORKS[network]
    return VAE(EVENT, 2, **{"encoder": encoder, "decoder": decoder, **options})


def log_evidence(vae: VAE, x: torch.Tensor, draws: int = 20_000, covariates=None) -> torch.Tensor:
    """log p(x), a value a row, by importance sampling from the posterior; error about 0.01."""
    with torch.no_grad():
        q = vae.encode(x, covariates)
        z = q.sample((draws,))
        p = vae.prior_distribution(covariates)
        weights = vae.decode(z, covariates).log_prob(x) + p.log_prob(z) - q.log_prob(z)
        return weights.logsumexp(0) - math.log(draws)


def estimates(loss, vae: VAE, runs: int, x: torch.Tensor = X) -> torch.Tensor:
    return sides(loss, partial(vae.model, x), partial(vae.guide, x), runs)


def test_renyi_bound_is_the_importance_weighted_one():
    vae = made()
    renyi = estimates(RenyiELBO(alpha=0, num_particles=8, vectorize_particles=True), vae, 300)
    ours = estimates(objectives.IWAE(8), vae, 300)
    assert abs(z_score(renyi - ours)) < SIGMAS
    evidence = log_evidence(vae, X).sum().item()
    assert z_score(-renyi, evidence) < SIGMAS
    loss = RenyiELBO(alpha=0, num_particles=2)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    before = [p.detach().clone() for p in vae.parameters()]
    svi.step(X)
    assert not any(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize("rows", [12, 5])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_the_jit_gives_the_loss_and_gradient_of_the_plain_objective(network, rows):
    vae = made(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jit = JitTrace_ELBO(ignore_jit_warnings=True)
        jit.loss_and_grads(vae.model, vae.guide, X)
        found = [loss_and_gradient(loss, vae, X[:rows]) for loss in (jit, jit, Trace_ELBO())]
    for loss, gradient in found[:2]:
        assert loss == pytest.approx(found[2][0], rel=1e-5)
        torch.testing.assert_close(gradient, found[2][1], rtol=1e-4, atol=1e-4)


def loss_and_gradient(loss, vae: VAE, x: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    vae.zero_grad()
    pyro.set_rng_seed(3)
    value = loss.loss_and_grads(vae.model, vae.guide, x)
    return value, [p.grad.clone() for p in vae.parameters()]


@pytest.mark.parametrize(("parallel", "network"), cover([False, True], [*FEW_NETWORKS, "gru"]))
def test_predictive_draws_from_the_guide(parallel, network):
    vae = made(network).eval()
    kwargs = {"guide": vae.guide, "num_samples": 400, "parallel": parallel}
    draws = Predictive(vae.model, return_sites=["vae.z", "vae.x"], **kwargs)(X)
    assert draws["vae.z"].shape == (400, 12, 2)
    assert torch.equal(draws["vae.x"], X.expand(400, 12, *EVENT))
    q = vae.encode(X)
    error = (draws["vae.z"].mean(0) - q.mean) / (q.stddev / 20)
    assert error.abs().max() < SIGMAS + 1
    free = Predictive(poutine.uncondition(vae.model), return_sites=["vae.x"], **kwargs)(X)["vae.x"]
    assert free.shape == (400, 12, *EVENT)
    assert set(free.unique().tolist()) == {0.0, 1.0}
    with torch.no_grad():
        mean = vae.decode(q.sample((2000,))).mean.mean(0)
    error = (free.mean(0) - mean) / (mean * (1 - mean) / 400).sqrt()
    assert error.abs().max() < SIGMAS + 1.5


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_from_the_prior(parallel):
    vae = made(prior=FEW_PRIORS["mixture"])
    draws = Predictive(vae.model, num_samples=300, parallel=parallel)(n=7)
    assert draws["vae.z"].shape == (300, 7, 2)
    assert draws["vae.x"].shape == (300, 7, *EVENT)
    z = draws["vae.z"].flatten(0, 1)
    p = vae.prior_distribution()
    error = (z.mean(0) - p.mean) / (p.stddev / math.sqrt(len(z)))
    assert error.abs().max() < SIGMAS


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_with_covariates(parallel):
    vae = made(covariate_dim=3)
    covariates = torch.randn(12, 3)
    predict = Predictive(vae.model, guide=vae.guide, num_samples=5, parallel=parallel)
    assert predict(X, **given(covariates))["vae.z"].shape == (5, 12, 2)
    prior = Predictive(vae.model, num_samples=5, parallel=parallel)
    assert prior(**given(covariates))["vae.x"].shape == (5, 12, *EVENT)


STOCK = {
    "trace": Trace_ELBO,
    "mean_field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "ours": objectives.ELBO,
}


@pytest.mark.parametrize(
    ("loss", "network"),
    [
        *((loss, "mlp") for loss in STOCK),
        ("ours", "conv_batch_norm"),
        *(
            pytest.param(loss, "conv_batch_norm", marks=pytest.mark.long)
            for loss in STOCK
            if loss != "ours"
        ),
    ],
)
def test_particles_have_one_expectation_vectorized_or_not(loss, network):
    vae = made(network).eval()
    found = {}
    for vectorize in (False, True):
        found[vectorize] = estimates(
            STOCK[loss](num_particles=4, vectorize_particles=vectorize), vae, 150
        )
    assert abs(z_score(found[True] - found[False])) < SIGMAS
    assert abs(z_score(found[True] - estimates(Trace_ELBO(), vae, 150))) < SIGMAS
    assert found[True].std().item() == pytest.approx(found[False].std().item(), rel=0.4)


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, objectives.ELBO])
def test_covariates_pass_through_every_way_to_train(objective):
    vae = made(covariate_dim=3)
    covariates = torch.randn(12, 3)
    found = []
    for train in (
        lambda: SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 0.0}), objective()).step(
            X, **given(covariates)
        ),
        lambda: objective()(vae.model, vae.guide)(X, **given(covariates)).item(),
        lambda: objective().loss(vae.model, vae.guide, X, **given(covariates)),
    ):
        pyro.set_rng_seed(3)
        found.append(float(train()))
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)
    pyro.set_rng_seed(3)
    assert objective().loss(vae.model, vae.guide, X, **given(covariates + 1)) != found[0]


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_covariates_change_encoder_and_decoder_row_by_row(network):
    vae = made(network, covariate_dim=3)
    covariates, z = torch.randn(12, 3), torch.randn(12, 2)
    other = covariates.clone()
    other[4] += 1
    for read in (lambda c: vae.encode(X, c).mean, lambda c: vae.decode(z, c).mean):
        differ = (read(covariates) != read(other)).flatten(1).any(1)
        assert differ.tolist() == [row == 4 for row in range(12)]
    trace = poutine.trace(vae.model).get_trace(X, **given(covariates))
    value = trace.nodes["vae.z"]["value"]
    trace.compute_log_prob()
    torch.testing.assert_close(
        trace.nodes["vae.x"]["log_prob"], vae.decode(value, covariates).log_prob(X)
    )
    drawn = poutine.trace(vae.model).get_trace(**given(covariates))
    assert drawn.nodes["vae.x"]["value"].shape == (12, *EVENT)


@pytest.mark.parametrize(
    ("network", "dims"), cover(NETWORKS, [(-1, -2, -3), (-3, -2, -1), (-3, -4, -6)])
)
def test_under_three_plates_of_the_callers(network, dims):
    vae = made(network, plate=None, prior=FEW_PRIORS["vamp"]).eval()
    shape = [1] * max(-d for d in dims)
    for dim, size in zip(dims, (2, 3, 2), strict=True):
        shape[dim] = size
    x = X.reshape(*shape, *EVENT)

    def inside(side):
        def run():
            with (
                pyro.plate("a", 2, dim=dims[0]),
                pyro.plate("b", 3, dim=dims[1]),
                pyro.plate("c", 2, dim=dims[2]),
            ):
                return side(x)

        return run

    trace = poutine.trace(inside(vae.guide)).get_trace()
    model = poutine.trace(poutine.replay(inside(vae.model), trace=trace)).get_trace()
    for t in (trace, model):
        t.compute_log_prob()
    z = trace.nodes["vae.z"]["value"]
    assert z.shape == (*shape, 2)
    flat = z.reshape(12, 2)
    expected = vae.decode(flat).log_prob(X) + vae.prior_distribution().log_prob(flat)
    expected = expected.sum() - vae.encode(X).log_prob(flat).sum()
    torch.testing.assert_close(model.log_prob_sum() - trace.log_prob_sum(), expected)
    for loss in (Trace_ELBO(2, vectorize_particles=True), objectives.ELBO(2), objectives.IWAE(2)):
        nested = sides(loss, inside(vae.model), inside(vae.guide))
        assert abs(z_score(nested - sides(type(loss)(2), *outer(vae, X)))) < SIGMAS + 1


def sides(loss, model, guide, runs: int = 25) -> torch.Tensor:
    """Losses of some runs."""
    with torch.no_grad():
        return torch.tensor([loss.loss(model, guide) for _ in range(runs)]).double()


def outer(vae: VAE, x: torch.Tensor):
    """A VAE without a plate in a plate over rows, as model and guide."""

    def run(side):
        with pyro.plate("rows", len(x)):
            side(x)

    return partial(run, vae.model), partial(run, vae.guide)


def test_a_plate_that_subsamples():
    vae = made(plate=None)

    def run(side):
        with pyro.plate("rows", 12, subsample_size=4) as rows:
            side(X[rows])

    model, guide = partial(run, vae.model), partial(run, vae.guide)
    part = sides(Trace_ELBO(), model, guide, 400)
    assert abs(z_score(part - sides(Trace_ELBO(), *outer(vae, X), 400))) < SIGMAS


def mixture(vae: VAE, x: torch.Tensor, classifier: torch.nn.Module | None):
    """A class y for each row, of which the VAE knows; enumerated in the guide, or in the model."""
    weights = torch.tensor([0.2, 0.3, 0.5])

    def model():
        with pyro.plate("rows", len(x)):
            infer = {"enumerate": "parallel"}
            y = pyro.sample("y", dist.OneHotCategorical(weights), infer=infer)
            vae.model(x, **given(y))

    def guide():
        with pyro.plate("rows", len(x)):
            if classifier is None:
                covariates = x.new_zeros(len(x), 3)
            else:
                logits = classifier(x.flatten(1))
                covariates = pyro.sample("y", dist.OneHotCategorical(logits=logits))
            vae.guide(x, **given(covariates))

    return model, config_enumerate(guide) if classifier is not None else guide


@pytest.mark.parametrize(("where", "network"), cover(["guide", "model"], [*FEW_NETWORKS, "gru"]))
def test_a_class_is_enumerated_exactly(where, network):
    vae = made(network, plate=None, covariate_dim=3).eval()
    classifier = torch.nn.Linear(64, 3) if where == "guide" else None
    model, guide = mixture(vae, X, classifier)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    found = torch.stack([loss.differentiable_loss(model, guide) for _ in range(150)])
    manual = torch.stack([by_hand(vae, classifier) for _ in range(150)])
    assert abs(z_score((found - manual).detach().double())) < SIGMAS
    found.mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.parameters())


def by_hand(vae: VAE, classifier: torch.nn.Module | None) -> torch.Tensor:
    """The same loss with the sum over classes written out."""
    prior = torch.tensor([0.2, 0.3, 0.5]).log()
    terms = []
    z = None if classifier else vae.encode(X, X.new_zeros(12, 3)).rsample()
    rate = None if classifier else vae.encode(X, X.new_zeros(12, 3)).log_prob(z)
    for k in range(3):
        y = torch.eye(3)[k].expand(12, 3)
        if classifier is None:
            p = vae.decode(z, y).log_prob(X) + vae.prior_distribution(y).log_prob(z)
            terms.append(prior[k] + p)
            continue
        q = vae.encode(X, y)
        z = q.rsample()
        p = vae.decode(z, y).log_prob(X) + vae.prior_distribution(y).log_prob(z)
        log_q = classifier(X.flatten(1)).log_softmax(-1)[:, k]
        terms.append(log_q.exp() * (p - q.log_prob(z) + prior[k] - log_q))
    stacked = torch.stack(terms)
    return -(stacked.sum(0) if classifier else stacked.logsumexp(0) - rate).sum()


def test_a_latent_feeds_a_larger_program():
    vae = made(plate=None)
    target = torch.randn(12)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            z = vae.model(x)
            pyro.sample("y", dist.Normal(z @ w, 1.0), obs=target)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("w", dist.Normal(loc, 0.1).to_event(1))
        with pyro.plate("rows", len(x)):
            vae.guide(x)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    before = [p.detach().clone() for p in vae.parameters()]
    svi.step(X)
    assert not any(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    assert pyro.param("loc").any()
    assert set(pyro.get_param_store().keys()) == {
        "loc",
        *(f"vae$$${name}" for name, _ in vae.named_parameters()),
    }


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_conditioning_and_replaying(likelihood):
    vae = VAE(EVENT, 2, likelihood=LIKELIHOODS[likelihood], encoder=MLP, decoder=MLP).eval()
    x, z = data_for(likelihood), torch.randn(12, 2)
    data = poutine.condition(vae.model, {"vae.x": x})
    trace = poutine.trace(poutine.condition(data, {"vae.z": z})).get_trace(n=12)
    expected = vae.decode(z).log_prob(x).sum() + vae.prior_distribution().log_prob(z).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)
