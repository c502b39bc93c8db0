"""The mixture baseline against scikit-learn, closed forms and its own laws."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
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
