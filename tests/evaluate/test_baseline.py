"""The mixture baseline against scikit-learn, closed forms and its own laws."""

import itertools

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, stats
from sklearn.mixture import GaussianMixture

from helpers.tables import EVENT, LIKELIHOOD_ROWS, data_for
from pyro_vae import data, distributions, likelihoods
from pyro_vae.evaluate import baseline


@pytest.fixture(scope="module")
def digits():
    return data.digits()


MIXTURES = {name: row.mixture for name, row in LIKELIHOOD_ROWS.items() if row.mixture}


@pytest.mark.parametrize("likelihood", MIXTURES)
def test_one_component_without_smoothing_is_the_maximum_likelihood_fit(likelihood, monkeypatch):
    monkeypatch.setattr(baseline, "SMOOTHING", (1e-9,))
    x = data_for(likelihood, 400)
    part = LIKELIHOOD_ROWS[likelihood].make(EVENT)
    fit = baseline.mixture(part, x, x, x, components=1).log_evidence.mean().item()
    exact = MIXTURES[likelihood].one_component(x.flatten(1).double())
    assert fit == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("likelihood", [name for name in LIKELIHOOD_ROWS if name not in MIXTURES])
def test_a_likelihood_without_an_m_step_has_no_mixture(likelihood):
    x = data_for(likelihood)
    assert baseline.mixture(LIKELIHOOD_ROWS[likelihood].make(EVENT), x, x, x) is None


def test_normal_mixture_agrees_with_scikit_learn(monkeypatch):
    monkeypatch.setattr(baseline, "SMOOTHING", (1e-9,))
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 4)) * 8
    x = np.concatenate([c + generator.normal(size=(300, 4)) for c in centres])
    reference = GaussianMixture(
        3, covariance_type="diag", tol=1e-9, reg_covar=1e-12, random_state=0
    )
    exact = reference.fit(x).score_samples(x).mean()
    rows = torch.tensor(x)
    part = likelihoods.Normal((4,), scale="network")
    found = baseline.mixture(part, rows, rows, rows, components=3, seed=1)
    assert found.log_evidence.mean().item() == pytest.approx(exact, abs=1e-4)


def test_it_is_a_normalized_distribution():
    x = (torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    everything = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    fit = baseline.mixture(likelihoods.Bernoulli((6,)), x, x, everything, components=5)
    assert fit.log_evidence.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_more_components_predict_digits_better(digits):
    part = likelihoods.Bernoulli(digits.event_shape)
    one, many = (
        baseline.mixture(part, *digits.x, components=k).log_evidence.mean() for k in (1, 20)
    )
    assert many > one + 5


def test_the_same_seed_gives_the_same_fit(digits):
    part = likelihoods.Bernoulli(digits.event_shape)
    fits = [baseline.mixture(part, *digits.x, components=5, iterations=5) for _ in range(2)]
    assert torch.equal(fits[0].log_evidence, fits[1].log_evidence)


def test_bad_number_of_components(digits):
    with pytest.raises(ValueError, match="components to be an integer of at least 1, got 0"):
        baseline.mixture(likelihoods.Bernoulli(digits.event_shape), *digits.x, components=0)


ROWS, COMPONENTS = 40, 3


@pytest.mark.parametrize(
    "name", [name for name, mixture in MIXTURES.items() if mixture.pseudo_rows]
)
def test_a_pseudo_count_stands_for_so_many_rows(name):
    part, x = LIKELIHOOD_ROWS[name].make(EVENT), data_for(name, ROWS).flatten(1).double()
    r = torch.rand(ROWS, COMPONENTS).double().softmax(1)
    added = MIXTURES[name].pseudo_rows(x)
    more = torch.cat([r, torch.ones(len(added), COMPONENTS).double()])
    found = part.em_step(r, x, 2.0)
    expected = part.em_step(more, torch.cat([x, added]), 1e-12)
    torch.testing.assert_close(found.mean, expected.mean, atol=1e-6, rtol=1e-6)


def test_the_pseudo_count_of_a_categorical_is_spread_by_the_frequencies_of_all_rows():
    part = likelihoods.Categorical((1,), levels=3)
    x = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0, 1.0]).double().unsqueeze(1)
    r = torch.eye(2).double().repeat_interleave(3, 0)
    logits = part.em_step(r, x, 0.5).logits
    frequencies = torch.tensor([3.0, 2.0, 4.0]).double() / 9
    counts = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]]).double() + 0.5 * frequencies
    expected = (counts / counts.sum(-1, keepdim=True)).log()
    torch.testing.assert_close(logits.log_softmax(-1).squeeze(1), expected)


def normal(offset, scale):
    means = offset + torch.randn(5, 64).double()
    return dist.Normal(means, scale * (0.1 + torch.rand(5, 64).double()))


SCORED = {
    "Bernoulli": lambda: dist.Bernoulli(logits=20 * torch.randn(5, 64).double()),
    "ContinuousBernoulli": lambda: distributions.ContinuousBernoulli(
        20 * torch.randn(5, 64).double()
    ),
    "Normal": lambda: normal(0, 1),
    "Normal, narrow": lambda: normal(0, 1e-3),
    "Normal, far from the rows": lambda: normal(1e6, 1),
    "Normal, one scale": lambda: dist.Normal(torch.randn(5, 64).double(), 0.3),
    "Levels": lambda: distributions.Levels(torch.randn(5, 64, 3).double()),
}


@pytest.mark.parametrize("name", SCORED)
def test_rows_are_scored_as_by_the_density_of_each_component(name):
    torch.manual_seed(0)
    densities = SCORED[name]()
    x = torch.randint(3, (30, 64)).double() / 2
    x = x.round() if name == "Bernoulli" else x
    found = baseline._log_joint(densities, torch.zeros(5).double(), x)
    exact = torch.stack([densities.log_prob(row).sum(-1) for row in x])
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-7)


MIXED = [
    data.Column("a", "real"), data.Column("k", "categorical", ("x", "y", "z")),
    data.Column("p", "positive"), data.Column("n", "count"), data.Column("b", "binary", ("0", "1")),
    data.Column("o", "ordinal", ("l", "m", "h")), data.Column("c", "real"),
]  # fmt: skip


def mixed_rows(n, seed=0, gaps=0.3):
    """Rows of two kinds in all columns, with gaps."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    columns = [
        rng.normal(170 + 20 * kind, 5), rng.integers(0, 3, n) * kind,
        np.exp(rng.normal(9 + kind, 0.5)),
        rng.negative_binomial(3, 0.2 + 0.3 * kind), rng.random(n) < 0.2 + 0.6 * kind,
        np.minimum(2, rng.integers(0, 2, n) + kind), rng.normal(-3 * kind, 1),
    ]  # fmt: skip
    x = torch.tensor(np.stack(columns, 1).astype(float))
    return x.where(torch.tensor(rng.random(x.shape) >= gaps), torch.nan)


def one_column(column, values):
    """The mean log density of a column under the maximum likelihood fit of one component."""
    x = values[~np.isnan(values)]
    if column.levels:
        share = np.bincount(x.astype(int), minlength=len(column.levels)) / len(x)
        return np.log(share[x.astype(int)]).sum()
    if column.kind == "positive":
        y = np.log(x)
        return stats.norm.logpdf(y, y.mean(), y.std()).sum() - y.sum()
    if column.kind == "real":
        return stats.norm.logpdf(x, x.mean(), x.std()).sum()

    def loss(log_theta):
        theta = np.exp(log_theta)
        return -stats.nbinom.logpmf(x, theta, theta / (theta + x.mean())).sum()

    return -optimize.minimize_scalar(loss, bounds=(-7, 14), method="bounded").fun


def test_one_component_of_mixed_columns_with_gaps_is_the_fit_of_each_column(monkeypatch):
    monkeypatch.setattr(baseline, "SMOOTHING", (1e-9,))
    x = mixed_rows(300)
    part = likelihoods.Columns((7,), columns=MIXED)
    fit = baseline.mixture(part, x, x, x, components=1)
    exact = sum(one_column(c, x[:, i].numpy()) for i, c in enumerate(MIXED))
    assert fit.log_evidence.sum().item() == pytest.approx(exact, rel=1e-6)


def test_each_step_of_em_increases_the_likelihood_of_mixed_columns_with_gaps():
    x = mixed_rows(200, seed=1)
    part = likelihoods.Columns((7,), columns=MIXED)
    r = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    scores = []
    for _ in range(40):
        weights = (r.sum(0) / r.sum()).log()
        joint = baseline._log_joint(part.em_step(r, x, 1e-12), weights, x)
        scores.append(joint.logsumexp(1).mean().item())
        r = joint.softmax(1)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(scores))
    assert scores[-1] > scores[0] + 0.1


def test_a_mixture_of_mixed_columns_finds_the_kinds_of_rows():
    x = mixed_rows(600, seed=2)
    part = likelihoods.Columns((7,), columns=MIXED)
    parts = x[:400], x[400:500], x[500:]
    one, two = (baseline.mixture(part, *parts, components=k).log_evidence for k in (1, 2))
    assert (two.mean() - one.mean()).item() > 0.5


def test_families_without_an_m_step_have_no_mixture():
    x = mixed_rows(50)
    for options in ({"real": "student_t"}, {"count": "zero_inflated_negative_binomial"}):
        part = likelihoods.Columns((7,), columns=MIXED, **options)
        assert baseline.mixture(part, x, x, x, components=2) is None


@pytest.mark.parametrize("scale", [0.5, "shared", "element", "network"])
def test_gaps_of_a_normal_are_left_out(scale, monkeypatch):
    """Rows with only gaps change nothing, and neither does the order of gaps."""
    monkeypatch.setattr(baseline, "SMOOTHING", (0.1,))
    x = torch.randn(60, 3).double() * torch.tensor([1.0, 5.0, 0.2])
    x[::4, 1] = torch.nan
    more = torch.cat([x, torch.full((20, 3), torch.nan).double()])
    part = likelihoods.Normal((3,), scale=scale)
    r = torch.rand(60, 2).double().softmax(1)
    extra = torch.cat([r, torch.rand(20, 2).double()])
    one, other = part.em_step(r, x, 0.1), part.em_step(extra, more, 0.1)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.stddev, other.stddev)
