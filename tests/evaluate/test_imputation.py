"""Imputation: closed forms of a linear-Gaussian model, and coverage of multiple imputation."""

import math
from functools import partial

import pytest
import torch
from scipy import stats
from torch import nn

from pyro_vae import VAE, evaluate, likelihoods

W = torch.tensor([[1.0, 0.5], [-0.7, 1.2], [0.4, -0.9], [1.5, 0.3]], dtype=torch.float64)
B = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
SCALE = 0.6


class Linear(nn.Module):
    """A decoder with given weights; covariates are added to the last column."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, z, covariates=None):
        x = z @ self.w.T + self.b
        if covariates is not None:
            shift = torch.zeros(*x.shape[:-1], x.shape[-1] - 1, dtype=x.dtype)
            x = x + torch.cat([shift, covariates.expand(*x.shape[:-1], 1)], -1)
        return x.unsqueeze(-2)


class Wide(nn.Module):
    """An encoder whose posterior is wider than the prior, whatever the data."""

    def __init__(self, latent_dim):
        super().__init__()
        self.raw = nn.Parameter(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
        self.latent_dim = latent_dim

    def forward(self, x, covariates=None):
        return self.raw.expand(2, self.latent_dim).expand(*x.shape[:-1], 2, self.latent_dim)


def linear_gaussian(w=W, b=B, scale=SCALE, covariate_dim=0):
    return VAE(
        (len(w),), w.shape[1], likelihood=partial(likelihoods.Normal, scale=scale),
        encoder=Wide(w.shape[1]), decoder=Linear(w.clone(), b.clone()),
        covariate_dim=covariate_dim,
    ).double()  # fmt: skip


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x = z @ W.T + B + SCALE * torch.randn(n, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(n, 4, generator=generator) > 0.4
    return x, mask


def conditional(x, mask):
    """The mean and covariance of the missing values of one row, given the observed ones."""
    covariance = W @ W.T + SCALE**2 * torch.eye(4, dtype=torch.float64)
    o, m = mask, ~mask
    gain = torch.linalg.solve(covariance[o][:, o], covariance[o][:, m]).T
    mean = B[m] + gain @ (x[o] - B[o])
    return mean, covariance[m][:, m] - gain @ covariance[o][:, m]


@pytest.mark.parametrize("proposal", ["posterior", "prior"])
def test_single_imputations_are_the_conditional_means(proposal):
    torch.manual_seed(0)
    x, mask = draw(40)
    mask[0] = False
    result = evaluate.impute(
        linear_gaussian(), x, mask, num_particles=40_000, proposal=proposal, max_elements=200_000
    )
    assert torch.equal(result.x[mask], x[mask])
    assert result.draws.shape == (0, 40, 4)
    assert (result.effective_sample_size > 100).all()
    for row in range(40):
        mean, covariance = conditional(x[row], mask[row])
        # Each estimate has about this error, by the delta method with a margin for the weights.
        error = 2 * covariance.diagonal().sqrt() / result.effective_sample_size[row].sqrt()
        assert ((result.x[row][~mask[row]] - mean).abs() < 5 * error).all()


def test_draws_have_the_conditional_mean_and_covariance():
    torch.manual_seed(1)
    x, mask = draw(5, seed=3)
    draws = 20_000
    result = evaluate.impute(
        linear_gaussian(), x, mask, num_particles=20_000, draws=draws, max_elements=100_000
    )
    assert torch.equal(result.draws[:, mask], x[mask].expand(draws, -1))
    for row in range(5):
        mean, covariance = conditional(x[row], mask[row])
        own = result.draws[:, row][:, ~mask[row]]
        size = min(draws, result.effective_sample_size[row].item())
        scale = covariance.diagonal().sqrt()
        assert ((own.mean(0) - mean).abs() < 6 * scale / math.sqrt(size)).all()
        product = scale[:, None] * scale
        assert ((own.T.cov() - covariance).abs() < 6 * product * math.sqrt(2 / size)).all()


def test_a_missing_row_is_imputed_from_the_marginal():
    torch.manual_seed(2)
    x, rows = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([False])
    result = evaluate.impute(linear_gaussian(), x, rows, num_particles=20_000, draws=20_000)
    marginal = W @ W.T + SCALE**2 * torch.eye(4, dtype=torch.float64)
    assert torch.allclose(result.draws[:, 0].T.cov(), marginal, atol=0.15)
    assert torch.allclose(result.x[0], B, atol=0.1)


def test_draws_do_not_depend_on_the_size_of_chunks():
    """Samples that come in pieces are drawn by the weights of all."""
    x, mask = draw(1, seed=5)
    mask[0] = torch.tensor([True, True, False, False])
    means = []
    for max_elements in (40, 4_000_000):
        torch.manual_seed(3)
        result = evaluate.impute(
            linear_gaussian(), x, mask, num_particles=3000, draws=3000, max_elements=max_elements
        )
        means.append(result.draws[:, 0, 2:].mean(0))
    _, covariance = conditional(x[0], mask[0])
    error = covariance.diagonal().sqrt() * math.sqrt(2 / 1000)
    assert ((means[0] - means[1]).abs() < 5 * error).all()


REPLICATES, ROWS, IMPUTATIONS = 500, 40, 8


@pytest.mark.long
def test_multiple_imputation_has_nominal_coverage_by_rubins_rules():
    """The mean of a column with gaps, whose intercept is drawn anew for each imputation."""
    torch.manual_seed(4)
    w = torch.tensor([[1.0], [0.8]], dtype=torch.float64)
    vae = linear_gaussian(w, torch.zeros(2, dtype=torch.float64), covariate_dim=1)
    z = torch.randn(REPLICATES, ROWS, 1, dtype=torch.float64)
    x = z @ w.T + SCALE * torch.randn(REPLICATES, ROWS, 2, dtype=torch.float64)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[..., 1] = torch.rand(REPLICATES, ROWS) > 0.4
    # The second column given the first is a regression with a known slope and residual.
    slope = 0.8 / (1 + SCALE**2)
    residual = 0.64 + SCALE**2 - slope * 0.8
    counts = mask[..., 1].sum(1, keepdim=True)
    rest = torch.where(mask[..., 1], x[..., 1] - slope * x[..., 0], 0.0)
    intercept = rest.sum(1, keepdim=True) / counts
    estimates, variances = [], []
    for _ in range(IMPUTATIONS):
        drawn = intercept + (residual / counts).sqrt() * torch.randn_like(intercept)
        shift = drawn.expand(REPLICATES, ROWS).reshape(-1, 1)
        result = evaluate.impute(
            vae, x.flatten(0, 1), mask.flatten(0, 1), 60, draws=1, covariates=shift
        )
        column = result.draws[0].unflatten(0, (REPLICATES, ROWS))[..., 1]
        estimates.append(column.mean(1))
        variances.append(column.var(1) / ROWS)
    q, u = torch.stack(estimates), torch.stack(variances).mean(0)
    b = q.var(0)
    total = u + (1 + 1 / IMPUTATIONS) * b
    share = (1 + 1 / IMPUTATIONS) * b / total
    # Barnard and Rubin's degrees of freedom for small samples.
    old = (IMPUTATIONS - 1) / share**2
    observed = ROWS / (ROWS + 2) * (ROWS - 1) * (1 - share)
    df = old * observed / (old + observed)
    limit = torch.as_tensor(stats.t.ppf(0.975, df.numpy())) * total.sqrt()
    coverage = (q.mean(0).abs() < limit).double().mean().item()
    assert abs(coverage - 0.95) < 3 * math.sqrt(0.95 * 0.05 / REPLICATES)


def test_wrong_arguments_are_named():
    vae = linear_gaussian()
    x, mask = draw(3)
    for options, message in (
        ({"num_particles": 0}, "num_particles to be an integer of at least 1"),
        ({"draws": -1}, "draws to be an integer of at least 0"),
        ({"proposal": "q"}, "proposal to be 'posterior' or 'prior'"),
        ({"max_elements": 0}, "max_elements to be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"Expected {message}"):
            evaluate.impute(vae, x, mask, **options)
    with pytest.raises(ValueError, match="Expected mask to be boolean"):
        evaluate.impute(vae, x, mask.double())
    with pytest.raises(ValueError, match="Expected mask to have the shape of x"):
        evaluate.impute(vae, x, mask[:, :2])
    with pytest.raises(ValueError, match="Expected x of shape"):
        evaluate.impute(vae, x[0], mask[0])
