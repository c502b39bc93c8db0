"""Evaluation against closed forms."""

import itertools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from helpers.designs import keep
from helpers.tables import (
    EVENT,
    FEW_POSTERIORS,
    FEW_PRIORS,
    LIKELIHOODS,
    POSTERIOR_ROWS,
    PRIOR_ROWS,
    data_for,
)
from pyro_vae import VAE, evaluate, fit, likelihoods, networks, posteriors, priors
from pyro_vae.evaluate.evidence import evidence_by_particles


class Line(torch.nn.Module):
    """A decoder z -> w z, of one number."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([1.5]))
        self.out_shape = out_shape

    def forward(self, z):
        return (z * self.w).unflatten(-1, self.out_shape)


class Exact(torch.nn.Module):
    """An encoder that gives the exact posterior's mean, and a scale wider by a factor."""

    def __init__(self, widen=1.0):
        super().__init__()
        variance = 1 / (1 + 1.5**2)
        self.gain = torch.nn.Parameter(torch.tensor(1.5 * variance))
        scale = widen * math.sqrt(variance) - 1e-4
        self.raw = torch.nn.Parameter(torch.tensor(math.log(math.expm1(scale))))

    def forward(self, x):
        return torch.stack([self.gain * x, self.raw.expand_as(x)], -2)


def line_vae(widen=1.0):
    """Returns x = 1.5 z + eps, whose evidence is N(0, 1 + 1.5^2)."""
    return VAE(
        1, 1, likelihood=likelihoods.Normal((1,), scale=1.0), decoder=Line, encoder=Exact(widen)
    ).double()


def line_data():
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).unsqueeze(1)
    return x, dist.Normal(0.0, math.sqrt(1 + 1.5**2)).log_prob(x).squeeze(1)


@pytest.mark.parametrize("num_particles", [1, 3, 250])
def test_exact_posterior_gives_the_evidence_without_error(num_particles):
    x, exact = line_data()
    found = evaluate.log_evidence(line_vae(), x, num_particles)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(
        evaluate.elbo(line_vae(), x, num_particles=100_000).elbo, exact, atol=0.02, rtol=0
    )


@pytest.mark.parametrize("proposal", ["posterior", "prior"])
def test_estimate_lies_within_its_own_error(proposal):
    x, exact = line_data()
    vae = line_vae(widen=1.4)
    found = evaluate.log_evidence(vae, x, 40_001, proposal=proposal, diagnostics=True)
    z = (found.log_evidence - exact) / found.standard_error
    assert z.abs().max() < 4.5
    assert found.standard_error.max() < 0.05
    assert (found.effective_sample_size <= 40_001).all()


def test_estimates_by_particles_share_their_samples():
    x, exact = line_data()
    counts = [1, 3, 10, 1000]
    found = evidence_by_particles(line_vae(), x, counts, proposal="posterior", mask=None)
    torch.testing.assert_close(found, exact.expand(4, 7))
    # From the prior, two calls of one seed differ only where they use other samples.
    vae, estimates = line_vae(widen=1.4), []
    for last in (1000, 3000):
        torch.manual_seed(1)
        counts[-1] = last
        estimates.append(evidence_by_particles(vae, x, counts, proposal="prior", mask=None))
    assert torch.equal(estimates[0][:3], estimates[1][:3])
    assert not torch.equal(estimates[0][3], estimates[1][3])
    assert (estimates[1][3] - exact).abs().max() < 0.3
    # The sums of weights by fewer samples are part of those by more.
    sums = [e + math.log(k) for e, k in zip(estimates[0], [1, 3, 10, 1000], strict=True)]
    assert all((a <= b).all() for a, b in itertools.pairwise(sums))


def test_standard_error_is_the_spread_over_repetitions():
    x, _ = line_data()
    vae, x = line_vae(widen=1.4), x[:1].expand(4000, 1)
    found = evaluate.log_evidence(vae, x, 200, diagnostics=True)
    ratio = found.log_evidence.std() / found.standard_error.mean()
    assert abs(ratio - 1) < 0.06


@pytest.mark.parametrize("num_particles", keep([7], [1, 7, 5000]))
def test_exponential_of_the_estimate_is_unbiased(num_particles):
    x, exact = line_data()
    copies = 40_000 if num_particles < 100 else 500
    rows = x.repeat_interleave(copies, 0)
    found = evaluate.log_evidence(line_vae(widen=1.4), rows, num_particles)
    ratio = (found.view(7, copies) - exact.unsqueeze(1)).exp()
    z = (ratio.mean(1) - 1) / (ratio.std(1) / math.sqrt(copies))
    assert z.abs().max() < 4


def test_every_number_of_particles_is_used_whatever_the_memory():
    x, _ = line_data()
    calls = []
    vae = line_vae(widen=1.4)
    decode = vae.decode
    object.__setattr__(vae, "decode", lambda z, c: calls.append(z.shape) or decode(z, c))
    evaluate.log_evidence(vae, x, 250, max_elements=100)
    assert sum(shape[0] * shape[1] for shape in calls) == 250 * 7
    assert max(shape[0] * shape[1] for shape in calls) <= 100


def test_encodes_once():
    x, _ = line_data()
    vae = line_vae()
    calls = []
    vae.encoder.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    evaluate.log_evidence(vae, x, 1000, max_elements=100)
    assert sum(calls) == 7


def test_rate_and_distortion():
    x, _ = line_data()
    vae = line_vae(widen=1.4)
    bound = evaluate.elbo(vae, x, num_particles=200_000)
    q = vae.encode(x)
    mean, variance = q.mean.squeeze(1), q.variance.squeeze(1)
    rate = 0.5 * (variance + mean**2 - 1 - variance.log())
    error = (x.squeeze(1) - 1.5 * mean) ** 2 + 1.5**2 * variance
    distortion = 0.5 * (error + math.log(2 * math.pi))
    assert bound.closed_form
    torch.testing.assert_close(bound.rate, rate.detach())
    torch.testing.assert_close(bound.distortion, distortion.detach(), atol=0.03, rtol=0)
    torch.testing.assert_close(bound.elbo, -bound.rate - bound.distortion)


def test_mask_gives_the_evidence_of_what_is_observed():
    vae = VAE(
        3, 2, posterior=posteriors.Full, likelihood=likelihoods.Normal((3,), scale=0.7),
        encoder=networks.MLP((3,), (5,), hidden=[]), decoder=networks.MLP((2,), (1, 3), hidden=[]),
    ).double()  # fmt: skip
    x = torch.randn(6, 3, dtype=torch.float64)
    mask = torch.rand(6, 3) > 0.4
    mask[0] = False
    w, b = vae.decoder.layers[0].weight, vae.decoder.layers[0].bias
    exact = []
    for row, seen in zip(x, mask, strict=True):
        cov = (w @ w.T + 0.49 * torch.eye(3))[seen][:, seen]
        exact.append(
            dist.MultivariateNormal(b[seen], cov).log_prob(row[seen]).item() if seen.any() else 0.0
        )
    found = evaluate.log_evidence(
        vae, x.masked_fill(~mask, math.nan), 200_000, mask=mask, proposal="prior", diagnostics=True
    )
    error = found.standard_error.clamp(min=1e-3)
    assert ((found.log_evidence - torch.tensor(exact)) / error).abs().max() < 4.5


def test_active_units_are_those_that_follow_the_data():
    vae = VAE(2, 3, encoder=networks.MLP((2,), (2, 3), hidden=[]), likelihood=likelihoods.Normal)
    with torch.no_grad():
        vae.encoder.layers[0].weight.zero_()
        vae.encoder.layers[0].weight[1] = 1.0
    x = torch.randn(100, 2)
    assert evaluate.active_units(vae, x).tolist() == [False, True, False]
    # Burda et al. (2015) count a variance above 0.01.
    x /= x.var(0).sqrt()
    for variance, active in ((0.0099, False), (0.0101, True)):
        with torch.no_grad():
            vae.encoder.layers[0].weight[1] = torch.tensor([variance**0.5, 0.0])
        assert evaluate.active_units(vae, x)[1] == active


@pytest.mark.parametrize("posterior", FEW_POSTERIORS)
@pytest.mark.parametrize("prior", FEW_PRIORS)
def test_kl_per_dimension_sums_to_the_rate_where_both_factorize_in_closed_form(prior, posterior):
    vae = VAE(EVENT, 3, prior=FEW_PRIORS[prior], posterior=FEW_POSTERIORS[posterior])
    x = data_for("bernoulli", 500)
    kl = evaluate.kl_per_dimension(vae, x, num_particles=100)
    assert kl.shape == (3,)
    assert torch.isfinite(kl).all()
    q, p = POSTERIOR_ROWS[posterior], PRIOR_ROWS[prior]
    if q.factorized and p.factorized and q.normal and p.normal:
        torch.testing.assert_close(kl.sum(), evaluate.elbo(vae, x).rate.mean())


def test_kl_per_dimension_of_a_mixture_in_one_dimension_is_the_rate():
    vae = VAE(EVENT, 1, prior=priors.Mixture)
    x = data_for("bernoulli", 2000)
    rate = evaluate.elbo(vae, x, num_particles=200).rate
    kl = evaluate.kl_per_dimension(vae, x, num_particles=200)
    assert abs(kl.item() - rate.mean().item()) < 0.01


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_evaluation_changes_nothing(likelihood):
    vae = VAE(
        EVENT, 2, prior=priors.Vamp, likelihood=LIKELIHOODS[likelihood],
        encoder=lambda in_shape, out_shape: networks.MLP(in_shape, out_shape, batch_norm=True),
    )  # fmt: skip
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    x = data_for(likelihood)
    assert evaluate.log_evidence(vae, x, 7).shape == (12,)
    evaluate.elbo(vae, x)
    evaluate.active_units(vae, x)
    assert vae.training
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_particles": 0}, "num_particles to be an integer of at least 1, got 0"),
        ({"proposal": "guide"}, "proposal to be 'posterior' or 'prior', got 'guide'"),
        ({"tolerance": 0}, "tolerance to be positive, got 0"),
        ({"tolerance": math.nan}, "tolerance to be positive, got nan"),
        ({"tolerance": "auto"}, "tolerance to be positive, got 'auto'"),
    ],
)
def test_bad_arguments(arguments, message):
    x, _ = line_data()
    with pytest.raises(ValueError, match=message):
        evaluate.log_evidence(line_vae(), x, **arguments)


def test_bad_data():
    x, _ = line_data()
    with pytest.raises(ValueError, match=r"Expected x of shape \(N, 1\), got \(7,\)"):
        evaluate.elbo(line_vae(), x.squeeze(1))
    x[3] = math.nan
    with pytest.raises(ValueError, match="no NaN, got 1"):
        evaluate.elbo(line_vae(), x)


def test_covariates_reach_every_part_of_the_data():
    vae = VAE(EVENT, 2, covariate_dim=3, prior=lambda latent_dim, covariate_dim: priors.Normal(
        latent_dim, learned=True, covariate_dim=covariate_dim))  # fmt: skip
    x, covariates = data_for("bernoulli", 250), torch.randn(250, 3)
    torch.manual_seed(0)
    at_once = evaluate.log_evidence(vae, x, 4000, covariates=covariates)
    in_parts = evaluate.log_evidence(vae, x, 4000, covariates=covariates, max_elements=64 * 4000)
    assert (at_once - in_parts).abs().max() < 1.0
    assert evaluate.elbo(vae, x, covariates=covariates, max_elements=6400).elbo.shape == (250,)
    assert evaluate.active_units(vae, x, covariates=covariates).shape == (2,)
    assert evaluate.kl_per_dimension(vae, x, covariates=covariates).shape == (2,)


def test_a_row_that_is_taken_out_counts_for_nothing():
    vae = VAE(EVENT, 2)
    x, rows = data_for("bernoulli", 20), torch.arange(20) % 2 == 0
    spoilt = torch.where(rows[:, None, None, None], x, torch.nan)
    torch.manual_seed(0)
    bound = evaluate.elbo(vae, spoilt, mask=rows)
    for value in (bound.rate, bound.distortion, evaluate.log_evidence(vae, spoilt, 5, mask=rows)):
        assert torch.equal(value[~rows], torch.zeros(10))
        assert (value[rows] != 0).all()
    kl = evaluate.kl_per_dimension(vae, spoilt, mask=rows)
    torch.testing.assert_close(kl, evaluate.kl_per_dimension(vae, x[rows]))


def test_marginals_of_a_mixture_of_others_are_not_taken_for_normals():
    class Laplaces(torch.nn.Module):
        latent_dim = 2

        def forward(self, covariates=None, *, encode=None):
            parts = dist.Laplace(torch.zeros(3, 2), 1.0).to_event(1)
            return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(3)), parts)

    with pytest.raises(ValueError, match="whose marginals are known"):
        evaluate.kl_per_dimension(VAE(EVENT, 2, prior=Laplaces()), data_for("bernoulli"))


ALL_OUT = torch.zeros(7, dtype=torch.bool)
ONE_IN = torch.arange(7) == 3


@pytest.mark.parametrize("mask", [None, ALL_OUT, ONE_IN], ids=["one_row", "no_row", "one_left"])
def test_active_units_need_two_rows(mask):
    x, _ = line_data()
    x = x[:1] if mask is None else x
    left = 1 if mask is None else int(mask.sum())
    with pytest.raises(ValueError, match=f"two rows or more that the mask leaves in, got {left}:"):
        evaluate.active_units(line_vae(), x, mask=mask)
    assert evaluate.active_units(line_vae(), line_data()[0]).tolist() == [True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae, x: evaluate.kl_per_dimension(vae, x, mask=ALL_OUT), "a row in, got none of 7"),
        (
            lambda vae, x: evaluate.kl_per_dimension(vae, x, num_particles=0),
            "num_particles to be an integer of at least 1, got 0",
        ),
        (lambda vae, x: evaluate.active_units(vae, x, threshold=math.nan), "threshold"),
        (lambda vae, x: evaluate.active_units(vae, x, threshold=-0.1), "threshold"),
        (lambda vae, x: evaluate.elbo(vae, x, max_elements=0), "max_elements"),
        (lambda vae, x: evaluate.log_evidence(vae, x, 2, max_elements=-1), "max_elements"),
        *[
            (call, "x to have rows, got a tensor of shape")
            for call in (
                lambda vae, x: evaluate.log_evidence(vae, x[:0]),
                lambda vae, x: evaluate.elbo(vae, x[:0]),
                lambda vae, x: evaluate.posterior_means(vae, x[:0]),
                lambda vae, x: evaluate.active_units(vae, x[:0]),
                lambda vae, x: evaluate.kl_per_dimension(vae, x[:0]),
            )
        ],
    ],
)  # fmt: skip
def test_what_has_no_value_is_refused(call, message):
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        call(line_vae(), line_data()[0])


def test_rows_that_are_all_taken_out_have_no_evidence():
    x, _ = line_data()
    found = evaluate.log_evidence(line_vae(), x, 9, mask=ALL_OUT, diagnostics=True)
    assert found.log_evidence.tolist() == [0.0] * 7
    assert found.standard_error.tolist() == [0.0] * 7
    torch.testing.assert_close(found.effective_sample_size, torch.full((7,), 9.0).double())
    bound = evaluate.elbo(line_vae(), x, mask=ALL_OUT)
    assert (bound.elbo == 0).all()


def test_one_draw_of_many_may_be_all_that_counts():
    vae = VAE(2, 1, likelihood=partial(likelihoods.Normal, scale=1e-4))
    evidence = evaluate.log_evidence(vae, torch.ones(3, 2), 50, proposal="prior", diagnostics=True)
    assert (evidence.effective_sample_size < 1.01).all()


def test_a_single_particle_has_no_standard_error():
    found = evaluate.log_evidence(line_vae(1.4), line_data()[0], 1, diagnostics=True)
    assert found.standard_error.isnan().all()
    assert found.effective_sample_size.tolist() == [1.0] * 7


def test_equal_weights_are_worth_their_number_however_small_they_are():
    vae = VAE(
        2000, 1, likelihood=partial(likelihoods.Normal, scale=0.02),
        encoder=partial(networks.MLP, hidden=[2]), decoder=partial(networks.MLP, hidden=[2]),
    )  # fmt: skip
    for value in (*vae.encoder.parameters(), *vae.decoder.parameters()):
        torch.nn.init.zeros_(value)
    x = torch.linspace(0.9, 1.1, 20).unsqueeze(1).expand(20, 2000)
    found = evaluate.log_evidence(
        vae, x, 330, proposal="prior", diagnostics=True, max_elements=2**26
    )
    exact = dist.Normal(0.0, 0.02).log_prob(x).sum(1)
    assert (exact < -1e6).all()
    torch.testing.assert_close(found.log_evidence, exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.effective_sample_size, torch.full((20,), 330.0))
    assert (found.standard_error < 1e-4).all()


class Between(likelihoods.Normal):
    """A likelihood of bounded support, U(z - 1, z + 1)."""

    def forward(self, features):
        loc = features.select(-2, 0)
        return dist.Uniform(loc - 1, loc + 1, validate_args=False).to_event(1)


def test_draws_of_density_zero_are_legal_as_long_as_others_are_not():
    vae = VAE(1, 1, likelihood=Between, decoder=Line, encoder=Exact(2.0)).double()
    x, _ = line_data()
    found = evaluate.log_evidence(vae, x, 4000, diagnostics=True)
    z = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    inside = (x - 1.5 * z).abs() < 1
    exact = (dist.Normal(0.0, 1.0).log_prob(z).exp() * 0.5 * inside).sum(1) * 16 / 400_000
    off = (found.log_evidence - exact.log()) / found.standard_error
    assert off.abs().max() < 4.5
    assert (found.effective_sample_size < 4000).all()


def test_rows_in_which_every_draw_has_density_zero_are_named():
    vae = VAE(1, 1, likelihood=Between, decoder=Line, encoder=Exact()).double()
    x = torch.tensor([[0.0], [400.0], [500.0]], dtype=torch.float64)
    vae.encoder.gain.data.zero_()
    with pytest.raises(FloatingPointError) as error:
        evaluate.log_evidence(vae, x, 5, proposal="prior")
    assert "log evidence is not finite for 2 of 3 rows, the first of them row 1" in str(error.value)
    assert "log p(x given z) is not finite for 2 of them" in str(error.value)
    assert "log q" not in str(error.value)
    with pytest.raises(FloatingPointError, match="The ELBO is not finite for 2 of 3 rows"):
        evaluate.elbo(vae, x)
    with pytest.raises(FloatingPointError, match="row 0"):
        evaluate.log_evidence(vae, x.flip(0), 5, mask=torch.tensor([True, True, False]))
    rows = torch.tensor([True, False, False])
    assert evaluate.log_evidence(vae, x, 5, mask=rows).isfinite().all()


@pytest.mark.parametrize(
    "call",
    [
        lambda vae, x: evaluate.log_evidence(vae, x, 5),
        evaluate.elbo,
        evaluate.active_units,
        evaluate.kl_per_dimension,
        evaluate.posterior_means,
    ],
)
def test_weights_and_features_that_are_not_finite_are_named(call):
    x, _ = line_data()
    vae = line_vae()
    vae.encoder.gain.data.fill_(math.inf)
    with pytest.raises(FloatingPointError, match=r"weights .* not finite in encoder\.gain: train"):
        call(vae, x)
    vae.encoder.gain.data.fill_(1.0)
    vae.encoder.register_forward_hook(lambda module, inputs, features: features * math.nan)
    with pytest.raises(FloatingPointError, match=r"parameters of q\(z given x\) or p\(z\) are not"):
        call(vae, x)


def test_means_that_are_not_finite_are_named_without_validation():
    x, _ = line_data()
    vae = line_vae()
    vae.encoder.register_forward_hook(lambda module, inputs, features: features * math.nan)
    with pyro.validation_enabled(False):
        for call in (evaluate.posterior_means, evaluate.active_units):
            with pytest.raises(FloatingPointError, match="The posterior mean is not finite for 7"):
                call(vae, x)


def test_a_rate_that_overflows_is_named():
    vae = line_vae()
    vae.encoder.gain.data.fill_(1e200)
    with pytest.raises(FloatingPointError, match=r"6 of 7 rows, .* row 0: KL\(q.* for 6 of them"):
        evaluate.elbo(vae, line_data()[0])
    with pytest.raises(FloatingPointError, match="The KL by dimension is not finite for 6 of 7"):
        evaluate.kl_per_dimension(vae, line_data()[0])


@pytest.mark.parametrize(
    ("covariates", "message"),
    [
        (torch.zeros(6, 3), r"Expected covariates of shape \(12, 3\), got"),
        (torch.zeros(3), r"Expected covariates of shape \(12, 3\), got"),
        (torch.full((12, 3), math.nan), "Expected covariates to be finite"),
        (None, "Expected covariates of shape"),
    ],
)
def test_covariates_that_do_not_fit_the_rows_are_refused(covariates, message):
    vae = VAE(EVENT, 2, covariate_dim=3)
    for call in (evaluate.elbo, evaluate.log_evidence, evaluate.kl_per_dimension):
        with pytest.raises(ValueError, match=message):
            call(vae, data_for("bernoulli", 12), covariates=covariates)


def test_the_full_posterior_scores_its_draws_in_hundreds_of_dimensions():
    size = 300
    vae = VAE(
        4, size, likelihood=likelihoods.Normal, posterior=posteriors.Full,
        encoder=partial(networks.MLP, hidden=[16]), decoder=partial(networks.MLP, hidden=[16]),
    )  # fmt: skip
    x = torch.randn(50, 4)
    fit(vae, x, epochs=1, batch_size=25, compile=False)
    with torch.no_grad():
        q = vae.encode(x)
        z = q.sample()
        # Solving in double precision for the noise of draws in single precision.
        error = (z - q.mean).double().unsqueeze(-1)
        noise = torch.linalg.solve_triangular(q.scale_tril.double(), error, upper=False)
        log_det = q.scale_tril.double().diagonal(dim1=-2, dim2=-1).log().sum(-1)
        exact = -0.5 * (noise.square().sum((-1, -2)) + size * math.log(2 * math.pi)) - log_det
        torch.testing.assert_close(q.log_prob(z).double(), exact, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(q.log_prob(z).double(), exact, rtol=1e-4, atol=1e-2)
    assert evaluate.log_evidence(vae, x, 20).isfinite().all()


@pytest.mark.parametrize("at_once", [1, 3, 64, 200, 5000])
@pytest.mark.parametrize("proposal", ["posterior", "prior", "elbo"])
def test_no_more_elements_are_decoded_at_once_than_allowed(at_once, proposal):
    net = partial(networks.MLP, hidden=[4])
    vae = VAE(5, 2, likelihood=likelihoods.Normal, encoder=net, decoder=net)
    x, decoded = torch.randn(7, 5), []
    vae.decoder.register_forward_hook(lambda module, given, out: decoded.append(out.numel()))
    size = vae.likelihood.feature_shape.numel()
    if proposal == "elbo":
        evaluate.elbo(vae, x, num_particles=4, max_elements=at_once)
        least = 4 * size
    else:
        evaluate.log_evidence(vae, x, 30, proposal=proposal, max_elements=at_once)
        least = size
    assert max(decoded) <= max(at_once, least)
    # The last chunk repeats a row where it would be smaller than the others.
    rows = sum(decoded) / (size * (4 if proposal == "elbo" else 30))
    assert rows == (9 if (at_once, proposal) == (64, "elbo") else 7)


CALLS = {
    "log_evidence": partial(evaluate.log_evidence, num_particles=2),
    "elbo": evaluate.elbo,
    "posterior_means": evaluate.posterior_means,
    "active_units": evaluate.active_units,
    "kl_per_dimension": evaluate.kl_per_dimension,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("x", [None, [[1.0]], np.ones((3, 1))], ids=["none", "list", "array"])
def test_x_that_is_no_tensor_is_refused(call, x):
    with pytest.raises(ValueError, match=r"Expected x to be a torch\.Tensor, got "):
        call(line_vae(), x)


class Together(likelihoods.Normal):
    """A likelihood whose elements are dependent."""

    def forward(self, features):
        loc = super().forward(features).mean
        return dist.MultivariateNormal(loc, torch.eye(2).double() + 0.5)


def test_a_mask_of_elements_needs_elements_that_are_independent():
    vae = VAE((2,), 1, likelihood=Together((2,), scale=1.0)).double()
    x = torch.randn(5, 2, dtype=torch.float64)
    seen = torch.tensor([[True, False]]).expand(5, 2)
    for call in (partial(evaluate.log_evidence, num_particles=2), evaluate.elbo):
        with pytest.raises(ValueError, match="likelihood of independent elements with a mask of"):
            call(vae, x, mask=seen)
        torch.manual_seed(0)
        by_rows = call(vae, x, mask=torch.arange(5) < 2)
        value = by_rows.elbo if isinstance(by_rows, evaluate.Bound) else by_rows
        assert (value[:2] < 0).all()
        assert (value[2:] == 0).all()


@pytest.mark.parametrize("proposal", ["posterior", "prior"])
def test_a_row_of_any_number_of_particles_takes_16_mib_by_default(proposal):
    net = partial(networks.MLP, hidden=[4])
    vae = VAE(784, 2, encoder=net, decoder=net)
    decoded = []
    vae.decoder.register_forward_hook(lambda module, given, out: decoded.append(out.numel()))
    evaluate.log_evidence(vae, torch.zeros(2, 784), 6000, proposal=proposal)
    assert sum(decoded) == 2 * 6000 * 784
    assert max(decoded) * 4 <= 16 * 2**20


@pytest.mark.parametrize("covariates", [[[1.0]] * 7, np.ones((7, 2), np.float32), 1.0])
def test_covariates_that_are_no_tensor_are_refused(covariates):
    vae = VAE((1,), 2, covariate_dim=2)
    for call in CALLS.values():
        with pytest.raises(ValueError, match=r"Expected covariates to be a torch\.Tensor, got "):
            call(vae, torch.zeros(7, 1), covariates=covariates)


def test_a_scalar_is_refused():
    for call in CALLS.values():
        with pytest.raises(ValueError, match=r"Expected x of shape \(N, 1\), got \(\)"):
            call(line_vae(), torch.tensor(1.0))


def many_lines(rows):
    """Returns rows of the line and their mean log evidence."""
    torch.manual_seed(0)
    x = math.sqrt(1 + 1.5**2) * torch.randn(rows, 1).double()
    return x, dist.Normal(0.0, math.sqrt(1 + 1.5**2)).log_prob(x).squeeze(1).mean()


def test_a_tolerance_bounds_bias_and_error_of_the_mean():
    x, exact = many_lines(400)
    vae, errors, counts = line_vae(), [], set()
    for seed in range(20):
        torch.manual_seed(seed)
        found = evaluate.log_evidence(
            vae, x, 50_000, tolerance=0.004, proposal="prior", diagnostics=True
        )
        errors.append(found.log_evidence.mean() - exact)
        counts.add(found.num_particles)
    # Of 250 samples the bias alone is larger.
    few = evaluate.log_evidence(vae, x, 250, proposal="prior").mean() - exact
    assert few < -0.012
    assert 500 < min(counts) <= max(counts) < 10_000
    assert abs(torch.stack(errors).mean()) < 0.005
    assert torch.stack(errors).square().mean().sqrt() < 0.008


def test_a_tolerance_is_also_a_tenth_of_the_standard_error_over_rows():
    x, _ = many_lines(400)
    vae, counts = line_vae(widen=1.4), []
    for rows in (x, x / 100):
        torch.manual_seed(1)
        counts.append(
            evaluate.log_evidence(vae, rows, 30_000, tolerance=0.02, diagnostics=True).num_particles
        )
    assert counts[0] < counts[1]


def test_samples_are_drawn_until_the_tolerance_and_no_more():
    x, exact = line_data()
    calls, vae = [], line_vae()
    decode = vae.decode
    object.__setattr__(vae, "decode", lambda z, c: calls.append(z.shape) or decode(z, c))
    found = evaluate.log_evidence(vae, x, 20_000, tolerance=1e-6, diagnostics=True)
    torch.testing.assert_close(found.log_evidence, exact)
    assert found.num_particles <= 1000
    assert sum(shape[0] for shape in calls) == found.num_particles
    wide = line_vae(widen=1.4)
    all_drawn = evaluate.log_evidence(wide, x, 1001, tolerance=1e-9, diagnostics=True)
    fixed = evaluate.log_evidence(wide, x, 1001, diagnostics=True)
    assert all_drawn.num_particles == fixed.num_particles == 1001
    single = evaluate.log_evidence(wide, x[:1], 50_000, tolerance=0.01, diagnostics=True)
    assert single.num_particles < 50_000
    assert single.standard_error < 0.01


def test_rows_that_are_all_excluded_need_no_more_samples():
    x, _ = many_lines(50)
    excluded = torch.zeros(50, dtype=torch.bool)
    found = evaluate.log_evidence(
        line_vae(widen=1.4), x, 20_000, tolerance=0.01, mask=excluded, diagnostics=True
    )
    assert found.num_particles <= 320
    assert (found.log_evidence == 0).all()


def test_rows_that_do_not_fill_a_chunk_are_evaluated_like_the_others():
    torch.manual_seed(0)
    vae, x = VAE((1, 4, 4), 2), torch.rand(359, 1, 4, 4).round()
    rate = evaluate.elbo(vae, x, max_elements=16 * 50).rate
    assert rate.shape == (359,)
    torch.testing.assert_close(rate, evaluate.elbo(vae, x, max_elements=16 * 400).rate)
    torch.testing.assert_close(rate[-1:], evaluate.elbo(vae, x[-1:]).rate)
    exact = line_data()[1]
    found = evaluate.log_evidence(line_vae(), line_data()[0], 20, max_elements=60)
    torch.testing.assert_close(found, exact)
