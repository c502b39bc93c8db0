"""What is special to a prior: covariates, the VampPrior's mixture, starting values."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch

from helpers.tables import EVENT, NETWORKS, data_for
from helpers.truths import SIGMAS
from pyro_vae import VAE, networks, priors


def vamp(components: int = 3, **options) -> VAE:
    return VAE(EVENT, 2, prior=partial(priors.Vamp, components=components), **options)


def z_scores(draws: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return (draws.mean(0) - mean) / (draws.std(0) / math.sqrt(len(draws)))


@pytest.mark.parametrize("learned", [False, True])
def test_normal_starts_standard(learned):
    d = priors.Normal(3, learned=learned)()
    z = torch.randn(5, 3)
    torch.testing.assert_close(d.log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_learned_normal_is_linear_in_covariates():
    prior = priors.Normal(2, learned=True, covariate_dim=3)
    covariates = torch.randn(4, 5, 3)
    assert prior(covariates).batch_shape == (4, 5)
    torch.testing.assert_close(prior(covariates).mean, torch.zeros(4, 5, 2))
    torch.nn.init.normal_(prior.shift.weight)
    torch.testing.assert_close(
        prior(covariates).mean - prior(torch.zeros(3)).mean, covariates @ prior.shift.weight[:2].T
    )
    raw = prior.raw_scale + covariates @ prior.shift.weight[2:].T
    torch.testing.assert_close(
        prior(covariates).stddev, torch.nn.functional.softplus(raw) + priors.location_scale.FLOOR
    )
    assert prior(None).batch_shape == ()


def test_learned_normal_with_hidden_layers_starts_standard_and_bends():
    prior = priors.Normal(2, learned=True, covariate_dim=3, hidden=[16])
    covariates = torch.randn(4, 5, 3)
    start = prior(covariates)
    assert start.batch_shape == (4, 5)
    torch.testing.assert_close(start.mean, torch.zeros(4, 5, 2))
    torch.testing.assert_close(start.stddev, torch.ones(4, 5, 2))
    torch.nn.init.normal_(prior.shift.layers[-1].weight)
    other = covariates.clone()
    other[2, 3] += 1
    differ = (prior(covariates).mean != prior(other).mean).any(-1)
    assert differ.nonzero().tolist() == [[2, 3]]
    bend = prior(covariates).mean + prior(-covariates).mean - 2 * prior(torch.zeros(3)).mean
    assert bend.abs().amax() > 0.1
    prior(covariates).log_prob(torch.randn(4, 5, 2)).sum().backward()
    assert all(p.grad is not None for p in prior.parameters())


@pytest.mark.parametrize("options", [{"learned": False, "covariate_dim": 3}, {"learned": True}])
def test_hidden_layers_without_covariates_are_refused(options):
    with pytest.raises(ValueError, match=r"Expected hidden only with learned=True and covariates"):
        priors.Normal(2, hidden=[16], **options)


def test_mixture_is_the_sum_of_its_components():
    prior = priors.Mixture(2, components=3)
    torch.nn.init.normal_(prior.logits)
    z = torch.randn(7, 2)
    scale = torch.nn.functional.softplus(prior.raw_scale) + 1e-3
    parts = dist.Normal(prior.loc, scale).log_prob(z[:, None]).sum(-1)
    expected = (parts + prior.logits.log_softmax(0)).logsumexp(-1)
    torch.testing.assert_close(prior().log_prob(z), expected)
    assert priors.Mixture(2, components=400, spread=5.0).loc.std().item() == pytest.approx(5, 0.1)


def test_vamp_is_the_mixture_of_posteriors_at_its_inputs():
    vae = vamp(3)
    z = torch.randn(7, 2)
    q = vae.encode(vae.prior.pseudo_inputs)
    expected = q.log_prob(z[:, None]).logsumexp(-1) - math.log(3)
    torch.testing.assert_close(vae.prior_distribution().log_prob(z), expected)


def test_vamp_draws_components_at_random():
    vae = vamp(4)
    torch.nn.init.normal_(vae.encoder.layers[-1].weight, std=3.0)
    with torch.no_grad():
        vae.encoder.layers[-1].weight[2:] = 0
        vae.encoder.layers[-1].bias[2:] = -4.0
        torch.nn.init.normal_(vae.prior.pseudo_inputs)
        p = vae.prior_distribution()
        q = vae.encode(vae.prior.pseudo_inputs)
        gap = torch.pdist(q.mean).min()
        assert gap > 20 * q.stddev.max()
        draws = p.sample((20_000,))
    component = q.log_prob(draws[:, None]).argmax(-1)
    counts = torch.nn.functional.one_hot(component, 4).double()
    assert z_scores(counts, torch.full((4,), 0.25)).abs().max() < SIGMAS
    follows = (component[1:] == component[:-1]).double()
    assert z_scores(follows[:, None], torch.tensor([0.25])).abs() < SIGMAS
    mean = q.mean.mean(0)
    torch.testing.assert_close(p.mean, mean)
    assert z_scores(draws, mean).abs().max() < SIGMAS
    variance = (q.variance + (q.mean - mean) ** 2).mean(0)
    torch.testing.assert_close(p.variance, variance)
    assert z_scores((draws - mean) ** 2, variance).abs().max() < SIGMAS


def test_vamp_with_covariates_has_a_mixture_a_row():
    vae = vamp(3, covariate_dim=2)
    covariates = torch.randn(5, 2)
    p = vae.prior_distribution(covariates)
    assert p.batch_shape == (5,)
    z = torch.randn(5, 2)
    q = vae.encode(vae.prior.pseudo_inputs, covariates[3])
    expected = q.log_prob(z[3]).logsumexp(-1) - math.log(3)
    torch.testing.assert_close(p.log_prob(z)[3], expected)
    assert vae.prior_distribution(torch.randn(4, 1, 2)).batch_shape == (4, 1)


@pytest.mark.parametrize("network", ["mlp_batch_norm", "conv_batch_norm"])
def test_vamp_leaves_the_running_statistics_alone(network):
    encoder, decoder = NETWORKS[network]
    vae = vamp(encoder=encoder, decoder=decoder)
    before = {name: value.clone() for name, value in vae.encoder.named_buffers()}
    assert before
    training = vae.prior_distribution()
    assert all(torch.equal(before[name], value) for name, value in vae.encoder.named_buffers())
    assert all(module.training for module in vae.modules())
    z = torch.randn(5, 2)
    log_prob = training.log_prob(z)
    assert torch.equal(vae.eval().prior_distribution().log_prob(z), log_prob)
    vae.train()
    x = data_for("bernoulli")
    vae.encode(x)
    assert not all(torch.equal(before[name], v) for name, v in vae.encoder.named_buffers())


def test_vamp_gradient_is_that_of_the_statistics_it_was_computed_with():
    # Batch norm reads its running statistics again on the way back: an encoder that meets data
    # between the prior's forward and its backward must not change the prior's gradient.
    encoder = partial(networks.MLP, hidden=[8], batch_norm=True)
    vae = vamp(encoder=encoder)
    z = torch.randn(5, 2)
    alone = vae.prior_distribution().log_prob(z).sum()
    (expected,) = torch.autograd.grad(alone, vae.prior.pseudo_inputs)
    loss = vae.prior_distribution().log_prob(z).sum()
    vae.encode(100 * torch.randn(12, *EVENT))
    (gradient,) = torch.autograd.grad(loss, vae.prior.pseudo_inputs)
    torch.testing.assert_close(gradient, expected)


def test_vamp_starts_from_rows_of_the_data_once():
    vae, x = vamp(5), data_for("bernoulli")
    vae.initialize(x)
    inputs = vae.prior.pseudo_inputs.detach().clone()
    matches = [(x == row).flatten(1).all(1).nonzero().flatten().tolist() for row in inputs]
    assert all(len(match) == 1 for match in matches)
    assert len({match[0] for match in matches}) == 5
    vae.initialize(1 - x)
    assert torch.equal(vae.prior.pseudo_inputs, inputs)
    other = vamp(5)
    other.load_state_dict(vae.state_dict())
    other.initialize(1 - x)
    assert torch.equal(other.prior.pseudo_inputs, inputs)


def test_vamp_starts_from_fewer_rows_than_components():
    vae, x = vamp(10), data_for("bernoulli")[:4]
    vae.initialize(x)
    inputs = vae.prior.pseudo_inputs.detach()
    distance = (inputs[:, None] - x).flatten(2).abs().amax(-1)
    assert (distance.amin(1) < 0.1).all()
    assert sorted(distance.argmin(1).bincount(minlength=4).tolist()) == [2, 2, 3, 3]
    assert len(inputs.unique(dim=0)) == 10


def test_vamp_starts_missing_values_from_zero():
    vae, x = vamp(5), data_for("bernoulli")
    x[:, 0, 2, 3] = math.nan
    vae.initialize(x)
    assert (vae.prior.pseudo_inputs[:, 0, 2, 3] == 0).all()
    assert torch.isfinite(vae.prior.pseudo_inputs).all()


@pytest.mark.parametrize("shape", [(12, 9, 9), (12, 64), (0, *EVENT), EVENT])
def test_vamp_refuses_to_start_from_other_data(shape):
    vae = vamp(5)
    with pytest.raises(ValueError, match=r"Expected x to be rows of shape \(1, 8, 8\), got"):
        vae.prior.initialize(torch.rand(shape))
    assert not vae.prior.started


@pytest.mark.parametrize(
    "x", [torch.full((12, *EVENT), torch.inf), torch.ones(12, *EVENT, dtype=torch.complex64)]
)
def test_vamp_refuses_to_start_from_values_that_are_no_finite_numbers(x):
    vae = vamp(5)
    with pytest.raises(ValueError, match="finite real numbers, or NaN where one is missing"):
        vae.prior.initialize(x)
    with pytest.raises(ValueError, match="Expected x to be rows of shape"):
        vae.prior.initialize(torch.tensor(1.0))
    assert not vae.prior.started


def test_vamp_needs_an_encoder():
    with pytest.raises(ValueError, match="Expected encode, a callable"):
        priors.Vamp(2, EVENT)()


@pytest.mark.parametrize("make", [priors.Mixture, partial(priors.Vamp, event_shape=EVENT)])
@pytest.mark.parametrize("components", [0, -3, 2.5])
def test_components_must_be_positive(make, components):
    with pytest.raises(ValueError, match=f"Expected components to be .* got {components}"):
        make(2, components=components)
