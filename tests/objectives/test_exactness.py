"""Objectives and estimates against a model whose evidence and posterior are known."""

import re
from functools import partial
from itertools import pairwise
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

from helpers.designs import keep
from helpers.paths import ROOT
from helpers.truths import (
    SIGMAS,
    exact_vae,
    linear_data,
    linear_vae,
    maximum,
    rate,
    read_off,
    unsoftplus,
    z_score,
)
from pyro_vae import evaluate, posteriors
from pyro_vae.distributions import FullNormal
from pyro_vae.objectives import ELBO, IWAE, MIWAE, kl_report

ROWS, BATCH, K = 1000, 100, 3

TRAINED = {
    "trace": Trace_ELBO,
    "trace_mean_field": TraceMeanField_ELBO,
    "elbo_closed": partial(ELBO, analytic=True),
    "elbo_sampled": partial(ELBO, analytic=False),
    "elbo_3": partial(ELBO, 3),
    "iwae_5": partial(IWAE, 5),
}


@pytest.fixture
def known():
    return linear_data(ROWS, k=K)


@pytest.fixture
def spoilt(known):
    """A VAE whose posterior is off by about a standard deviation, and half as wide again.

    The weights then have four moments, so that a standard error can be trusted.
    """
    return exact_vae(known[0], shift=0.15, inflate=1.5)


class GivenNoise(posteriors.Full):
    """A posterior that draws with the noise it is told, ``(particles, rows, latent_dim)``."""

    noise: ClassVar[torch.Tensor]

    def forward(self, features):
        noise = self.noise

        class Given(FullNormal):
            def rsample(self, sample_shape=()):
                # The run that tells the depth of plates has no particles.
                drawn = noise if self.loc.dim() == 3 else noise[0]
                return self.loc + (self.scale_tril @ drawn.unsqueeze(-1)).squeeze(-1)

        q = super().forward(features)
        return Given(q.loc, scale_tril=q.scale_tril)


def over_batches(call, x):
    """The mean over the disjoint batches of x of what is called with each."""
    return torch.stack(
        [torch.as_tensor(call(rows), dtype=x.dtype) for rows in x.split(BATCH)]
    ).mean()


@pytest.mark.parametrize("name", keep(["elbo_closed"], TRAINED))
def test_training_reaches_the_best_evidence(name, known):
    _, x = known
    objective, vae = TRAINED[name](), linear_vae(k=K)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        (objective.differentiable_loss(vae.model, vae.guide, x) / ROWS).backward()
        optimizer.step()
        schedule.step()
    best, reached = maximum(x, K), read_off(vae)
    with torch.no_grad():
        q = vae.encode(x)
        bound = reached.elbo(x, q.mean, q.covariance_matrix).mean()
    losses = [objective.loss(vae.model, vae.guide, x) / ROWS for _ in range(200)]
    assert 0 <= best - reached.evidence(x).mean() < 0.02
    assert 0 <= best - bound < 0.02
    assert abs(best + torch.tensor(losses).mean()) < 0.02


def test_the_best_evidence_is_that_of_principal_components(known):
    _, x = known
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    variance = values[:-K].mean()
    best = known[0]._replace(
        weight=vectors[:, -K:] * (values[-K:] - variance).sqrt(), loc=x.mean(0), scale=variance**0.5
    )
    assert best.evidence(x).mean().item() == pytest.approx(maximum(x, K), abs=1e-10)
    assert known[0].evidence(x).mean() < maximum(x, K)


@pytest.mark.parametrize("name", TRAINED)
def test_with_the_exact_posterior_the_bound_is_the_evidence(name, known):
    truth, x = known
    vae = exact_vae(truth)
    losses = [TRAINED[name]().loss(vae.model, vae.guide, x) for _ in range(50)]
    evidence = truth.evidence(x).sum().item()
    if name in ("trace", "elbo_sampled", "iwae_5"):
        assert torch.tensor(losses) == pytest.approx(-evidence, abs=1e-8)
    else:
        assert abs(z_score(torch.tensor(losses), -evidence)) < SIGMAS


@torch.no_grad()
def mean_field_vae(truth):
    """A linear VAE that is this model, q the best one of independent dimensions."""
    vae = linear_vae(*truth.weight.shape, posterior=posteriors.Normal)
    (decoder,), (encoder,) = vae.decoder.layers, vae.encoder.layers
    decoder.weight.copy_(truth.weight)
    decoder.bias.copy_(truth.loc)
    vae.likelihood.raw_scale.copy_(unsoftplus(truth.scale - vae.likelihood.min_scale))
    offset, covariance = truth.posterior(torch.zeros(1, len(truth.loc), dtype=torch.float64))
    slope = truth.posterior(torch.eye(len(truth.loc), dtype=torch.float64))[0] - offset
    # The mean of the posterior, and the inverse of the diagonal of its precision.
    scale = torch.linalg.inv(covariance).diagonal().rsqrt()
    encoder.weight.zero_()
    encoder.weight[:K] = slope.T
    encoder.bias[:K] = offset[0]
    encoder.bias[K:] = unsoftplus(scale - vae.posterior.min_scale)
    return vae


@pytest.mark.parametrize(
    "objective",
    [ELBO(50, analytic=False), ELBO(50, estimator="stl"), MIWAE(50, groups=50), ELBO(50)],
    ids=["sampled", "stl", "miwae", "closed"],
)
def test_independent_dimensions_are_exact_at_the_principal_axes_alone(objective, known):
    """Lucas et al. (2019): a rotation of the latent space leaves the evidence, but not the ELBO."""
    _, x = known
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    variance = values[:-K].mean()
    weight = vectors[:, -K:] * (values[-K:] - variance).sqrt()
    rotation = torch.linalg.qr(torch.randn(K, K, dtype=x.dtype))[0]
    best = known[0]._replace(weight=weight, loc=x.mean(0), scale=variance**0.5)
    rotated = best._replace(weight=weight @ rotation)
    torch.testing.assert_close(rotated.evidence(x), best.evidence(x))
    evidence = best.evidence(x).sum().item()
    bounds = {}
    for name, truth in (("best", best), ("rotated", rotated)):
        vae = mean_field_vae(truth)
        with torch.no_grad():
            q = vae.encode(x)
            exact = truth.elbo(x, q.mean, torch.diag_embed(q.variance)).sum().item()
        bounds[name] = exact
        losses = -torch.tensor(
            [objective.loss(vae.model, vae.guide, x) for _ in range(20)], dtype=x.dtype
        )
        if losses.std() < 1e-8:
            assert losses.mean().item() == pytest.approx(exact, abs=1e-6)
        else:
            assert abs(z_score(losses, exact)) < SIGMAS
    assert bounds["best"] == pytest.approx(evidence, abs=1e-6)
    assert bounds["rotated"] < evidence - 10


def by_iwae(vae, x, num_particles):
    """The importance-weighted bound, as training sees it."""
    values = IWAE(num_particles).values
    with torch.no_grad():
        return torch.cat([values(vae.model, vae.guide, rows).objective for rows in x.split(100)])


@pytest.mark.parametrize("num_particles", [1, 7, 5000])
@pytest.mark.parametrize("estimator", [by_iwae, evaluate.log_evidence])
def test_mean_weight_is_the_evidence(estimator, num_particles, known, spoilt):
    truth, x = known
    estimate = estimator(spoilt, x, num_particles)
    assert estimate.shape == (ROWS,)
    assert abs(z_score((estimate - truth.evidence(x)).exp(), 1.0)) < SIGMAS


def test_iwae_rises_with_particles_to_the_evidence(known, spoilt):
    truth, x = known
    with torch.no_grad():
        gaps = [
            truth.evidence(x) - IWAE(k).values(spoilt.model, spoilt.guide, x).objective
            for k in (1, 5, 25, 500)
        ]
    for looser, tighter in pairwise(gaps[:3]):
        assert z_score(looser - tighter) > SIGMAS
    assert z_score(gaps[-1]) > -SIGMAS
    assert gaps[-1].mean() < 0.01


@pytest.mark.parametrize(
    "objective",
    [
        IWAE(5, max_plate_nesting=1),
        ELBO(5, beta=0.0, max_plate_nesting=1),
        ELBO(5, beta=0.5, max_plate_nesting=1),
        ELBO(5, max_plate_nesting=1),
    ],
    ids=["iwae", "beta_0", "beta_half", "elbo"],
)
def test_batches_of_a_subsampled_plate_average_to_the_full_data(objective, known):
    truth, x = known
    vae = exact_vae(truth, shift=0.15, inflate=1.5, posterior=GivenNoise)
    noise = torch.randn(5, ROWS, K, dtype=x.dtype)
    vae.posterior.noise = noise
    full = objective.loss(vae.model, vae.guide, x)
    losses = []
    for rows, part in zip(x.split(BATCH), noise.split(BATCH, 1), strict=True):
        vae.posterior.noise = part
        losses.append(objective.loss(vae.model, vae.guide, rows, data_size=ROWS))
    assert len(losses) == 10
    assert sum(losses) / 10 == pytest.approx(full, rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_subsampled_elbo_is_right_for_each_beta(beta, known, spoilt):
    truth, x = known
    q = spoilt.encode(x)
    distortion = truth.distortion(x, q.mean, q.covariance_matrix).sum()
    expected = distortion + beta * rate(q.mean, q.covariance_matrix).sum()
    for analytic in (True, False):
        loss = partial(
            ELBO(beta=beta, analytic=analytic).loss, spoilt.model, spoilt.guide, data_size=ROWS
        )
        losses = torch.stack([over_batches(loss, x) for _ in range(30)])
        assert abs(z_score(losses, expected.item())) < SIGMAS


def test_subsampled_rate_is_in_closed_form(known, spoilt):
    _, x = known
    q = spoilt.encode(x)

    def paid(rows):
        losses = []
        for beta in (0.0, 1.0):
            pyro.set_rng_seed(1)
            loss = ELBO(beta=beta, analytic=True).loss
            losses.append(loss(spoilt.model, spoilt.guide, rows, data_size=ROWS))
        return losses[1] - losses[0]

    torch.testing.assert_close(over_batches(paid, x), rate(q.mean, q.covariance_matrix).sum())


@pytest.mark.parametrize("objective", [IWAE(5), ELBO(5)], ids=["iwae", "elbo"])
def test_subsampled_bound_stays_below_the_evidence(objective, known, spoilt):
    truth, x = known
    evidence = truth.evidence(x).sum().item()
    loss = partial(objective.loss, spoilt.model, spoilt.guide, data_size=ROWS)
    bounds = -torch.stack([over_batches(loss, x) for _ in range(30)])
    assert z_score(bounds, evidence) < SIGMAS
    exact = exact_vae(truth)
    at_best = -over_batches(partial(IWAE(5).loss, exact.model, exact.guide, data_size=ROWS), x)
    assert at_best.item() == pytest.approx(evidence, abs=1e-8)


def test_stock_renyi_exceeds_the_evidence_where_iwae_does_not(known, spoilt):
    truth, x = known
    evidence = truth.evidence(x).sum().item()
    stock = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    scores = []
    for objective in (stock, IWAE(5)):
        loss = partial(objective.loss, spoilt.model, spoilt.guide, data_size=ROWS)
        bounds = -torch.stack([over_batches(loss, x) for _ in range(10)])
        scores.append(z_score(bounds, evidence))
    assert scores[0] > 10 * SIGMAS
    assert scores[1] < -SIGMAS


def test_the_page_on_renyi_prints_what_it_says(capsys):
    page = (ROOT / "docs" / "renyi.md").read_text()
    code, printed = (
        re.search(f"```{kind}\n(.*?)```", page, re.S)[1] for kind in ("python", "text")
    )
    exec(compile(code, "renyi.md", "exec"), {})
    figures = []
    for text in (capsys.readouterr().out, printed):
        rows = [line.replace("+-", " ").split() for line in text.strip().splitlines()]
        figures.append({name: [float(number) for number in numbers] for name, *numbers in rows})
    assert figures[0].keys() == figures[1].keys() == {"evidence", "IWAE", "RenyiELBO"}
    for name, (value, *_) in figures[0].items():
        assert abs(value - figures[1][name][0]) < 0.01
    assert figures[0]["IWAE"][0] < figures[0]["evidence"][0] < figures[0]["RenyiELBO"][0] - 0.3


def two_layers(x, q2, q1):
    """A top-down model and a bottom-up guide, whose z1 descends from its z2."""

    def model():
        z1 = pyro.sample("z1", dist.Normal(torch.zeros(()), 1.0))
        z2 = pyro.sample("z2", dist.Normal(1.5 * z1, 0.5))
        pyro.sample("x", dist.Normal(z2, 0.7), obs=x)

    def guide():
        z2 = pyro.sample("z2", dist.Normal(*q2))
        pyro.sample("z1", dist.Normal(q1[0] * z2, q1[1]))

    return model, guide


def test_site_order_forbids_a_closed_form_that_would_be_wrong():
    x, prior, noise = torch.tensor(2.0), 1.5**2 + 0.5**2, 0.7**2
    slope = prior / (prior + noise)
    q2 = (slope * x, torch.tensor(slope * noise) ** 0.5)
    q1 = (1.5 / prior, torch.tensor(1 - 1.5**2 / prior) ** 0.5)
    evidence = dist.Normal(0.0, (prior + noise) ** 0.5).log_prob(x).item()
    model, guide = two_layers(x, q2, q1)
    report = kl_report(model, guide)
    assert not report["z2"].closed_form
    assert "'z1'" in report["z2"].reason
    assert report["z1"].closed_form
    ours = torch.tensor([ELBO(1000).loss(model, guide) for _ in range(50)])
    assert abs(z_score(ours, -evidence)) < SIGMAS
    stock = TraceMeanField_ELBO(1000, vectorize_particles=True, max_plate_nesting=0)
    with pytest.warns(UserWarning, match="mean field"):
        theirs = torch.tensor([stock.loss(model, guide) for _ in range(50)])
    assert abs(z_score(theirs, -evidence)) > 10 * SIGMAS


@pytest.mark.parametrize("kind", ["scale", "mask"])
def test_a_scale_or_mask_in_the_model_only_is_not_the_guides(kind):
    rows = torch.tensor([True, False, True])
    handler = poutine.scale(scale=0.1) if kind == "scale" else poutine.mask(mask=rows)

    def model():
        with pyro.plate("data", 3), handler:
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.tensor([1.0, 2.0, 3.0]), 2.0))

    q = dist.Normal(torch.tensor([1.0, 2.0, 3.0]), 2.0)
    cross = 0.5 * (torch.log(torch.tensor(2 * torch.pi)) + q.variance + q.mean**2)
    weight = torch.full((3,), 0.1) if kind == "scale" else rows.float()
    expected = (weight * cross - q.entropy()).sum().item()
    assert kind in kl_report(model, guide)["z"].reason
    losses = torch.tensor([ELBO(1000).loss(model, guide) for _ in range(50)])
    assert abs(z_score(losses, expected)) < SIGMAS
    with pytest.raises(ValueError, match=r"closed-form KL at every latent site, got 'z'"):
        ELBO(analytic=True).loss(model, guide)


def test_rate_and_distortion_trade_at_the_slope_of_beta():
    """Alemi et al. (2018): dD / dR = -beta along the optima, and D + R is at least the entropy.

    Samples at plus and minus sqrt(k) along each axis have the mean and covariance of the noise,
    so that the objective of a linear decoder, a mean of squares, is exact.
    """
    rows, size = 200, 2
    _, x = linear_data(rows, d=5, k=size)
    axes = size**0.5 * torch.eye(size, dtype=x.dtype)
    points = torch.cat([axes, -axes])[:, None].expand(-1, rows, -1)
    betas, optima = [0.8, 1.0, 1.25], []
    vae = linear_vae(5, size, posterior=GivenNoise)
    vae.posterior.noise = points
    for beta in betas:
        objective = ELBO(2 * size, beta=beta, analytic=False, max_plate_nesting=1)
        optimizer = torch.optim.LBFGS(
            vae.parameters(),
            max_iter=500,
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure(objective=objective, optimizer=optimizer):
            optimizer.zero_grad()
            loss = objective.differentiable_loss(vae.model, vae.guide, x) / rows
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            values = objective.values(vae.model, vae.guide, x)
        optima.append(
            (values.rate["vae.z"].mean().item(), -values.log_likelihood["vae.x"].mean().item())
        )
    for (beta, (r, d)), (other, (r2, d2)) in pairwise(zip(betas, optima, strict=True)):
        assert r2 < r
        assert d2 > d
        assert (d2 - d) / (r2 - r) == pytest.approx(-(beta + other) / 2, rel=2e-2)
    entropy = -maximum(x, size)
    assert all(r + d > entropy - 1e-6 for r, d in optima)
    assert sum(optima[1]) == pytest.approx(entropy, abs=1e-4)
