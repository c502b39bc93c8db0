"""Extreme parameters, changed draws and wrong arguments of the distributions of latents."""

import math

import pytest
import torch

from helpers.truths import family_limit
from pyro_vae import distributions as D
from pyro_vae import posteriors, priors
from pyro_vae.networks.flow import build_flow


@pytest.mark.parametrize(
    ("temperature", "logits"),
    [
        (0.1, (10.0, 0.0, -5.0)),
        (0.1, (20.0, 0.0, -20.0)),
        (0.67, (100.0, 0.0, 0.0)),
        (0.05, (2.0, 0.0, -2.0)),
        (0.01, (2.0, 0.0, -2.0)),
    ],
)
def test_relaxed_draws_that_underflow_keep_their_density(temperature, logits):
    """The divergence from uniform probabilities does not depend on a shared temperature."""
    torch.manual_seed(0)
    q = D.RelaxedOneHot(temperature, torch.tensor([logits]))
    p = D.RelaxedOneHot(temperature, torch.zeros(1, 3))
    z = q.rsample((50_000,))
    ratio = (q.log_prob(z) - p.log_prob(z)).double()
    exact_q = D.RelaxedOneHot(5.0, torch.tensor([logits]).double())
    exact_p = D.RelaxedOneHot(5.0, torch.zeros(1, 3).double())
    z = exact_q.sample((400_000,))
    other = exact_q.log_prob(z) - exact_p.log_prob(z)
    gap = ratio.mean() - other.mean()
    error = (ratio.var() / len(ratio) + other.var() / len(other)).sqrt()
    assert abs(gap) < family_limit(10) * error + 1e-4


def test_relaxed_gradients_are_finite_at_any_scale():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, requires_grad=True)
    q, p = D.RelaxedOneHot(0.1, logits), D.RelaxedOneHot(0.1, torch.zeros(2, 3))
    z = q.rsample((200,))
    (1e6 * (q.log_prob(z) - p.log_prob(z)).sum()).backward()
    assert torch.isfinite(logits.grad).all()


def test_shares_that_underflow_keep_their_density():
    loc = torch.tensor([100.0, -100.0])
    single = D.LogisticNormal(loc, torch.ones(2))
    torch.manual_seed(0)
    z = single.rsample((2000,))
    ratio = single.log_prob(z) - D.Dirichlet(torch.ones(3)).log_prob(z)
    # The shares are 1, exp(-200) and exp(-100) up to the noise.
    expected = 300 - math.log(2 * math.pi) - 1 - math.log(2)
    assert ratio.mean().item() == pytest.approx(expected, abs=0.3)


def test_a_changed_draw_is_scored_by_its_value():
    torch.manual_seed(0)
    flow = build_flow(3, 2)
    q = D.Flow(flow, torch.zeros(3), torch.ones(3), torch.randn(4, 2), generative=True)
    full = D.FullNormal(torch.zeros(4, 3), scale_tril=torch.eye(3))
    with torch.no_grad():
        for d in (q, full):
            z = d.sample()
            torch.testing.assert_close(d.log_prob(z), d.log_prob(z.clone()))
            z.add_(1.0)
            assert torch.equal(d.log_prob(z), d.log_prob(z.clone()))
        for d in (D.RelaxedOneHot(0.5, torch.zeros(4, 1, 3)),
                  D.LogisticNormal(torch.zeros(4, 2), torch.ones(4, 2))):  # fmt: skip
            z = d.sample()
            torch.testing.assert_close(d.log_prob(z), d.log_prob(z.clone()))
            z.copy_(z.flip(-1))
            assert torch.equal(d.log_prob(z), d.log_prob(z.clone()))


def test_a_draw_without_gradient_is_a_constant_whose_density_has_one():
    torch.manual_seed(0)
    loc = torch.zeros(4, 3, requires_grad=True)
    q = D.Flow(build_flow(3, 2), loc, torch.ones(3), torch.randn(4, 2), generative=True)
    for z in (q.sample(), q.rsample().detach()):
        (gradient,) = torch.autograd.grad(q.log_prob(z).sum(), loc)
        step = torch.zeros_like(loc)
        step[0, 0] = 1e-2
        with torch.no_grad():
            moved = [
                D.Flow(q.transform, loc + s * step, torch.ones(3), q.context, generative=True)
                for s in (1, -1)
            ]
            slope = (moved[0].log_prob(z.clone()) - moved[1].log_prob(z.clone())).sum() / 2e-2
        assert gradient[0, 0].item() == pytest.approx(slope.item(), rel=0.02, abs=1e-3)


def test_impossible_categories():
    d = D.OneHot(torch.tensor([[0.0, -math.inf, 1.0]]))
    z = d.sample((100,))
    expected = torch.distributions.OneHotCategorical(logits=torch.tensor([0.0, -1e30, 1.0]))
    torch.testing.assert_close(d.log_prob(z), expected.log_prob(z))
    uniform = D.OneHot(torch.zeros(1, 3))
    kl = torch.distributions.kl_divergence(d, uniform)
    assert kl.item() == pytest.approx(math.log(3) - d.entropy().item(), rel=1e-5)
    logits = torch.tensor([[120.0, 0.0, 0.0]], requires_grad=True)
    D.OneHot(logits).entropy().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("df", [2.5, 10.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_student_t_divergences_stay_precise(df, dtype):
    q = D.StudentT(torch.tensor(df, dtype=dtype), torch.tensor(0.2, dtype=dtype), 0.7)
    p = torch.distributions.Normal(torch.tensor(0.0, dtype=dtype), 1.3)
    exact = D.StudentT(torch.tensor(df).double(), torch.tensor(0.2).double(), 0.7)
    x = torch.sinh(torch.linspace(-30, 30, 400_001).double())
    width = x[1:] - x[:-1]
    values = exact.log_prob(x).exp() * (
        exact.log_prob(x) - torch.distributions.Normal(torch.zeros(()).double(), 1.3).log_prob(x)
    )
    integral = ((values[1:] + values[:-1]) / 2 * width).sum().item()
    kl = torch.distributions.kl_divergence(q, p).item()
    assert kl == pytest.approx(integral, rel=2e-3 if df < 3 else 1e-4, abs=1e-4)


def test_a_student_t_of_few_degrees_has_no_finite_divergence():
    df = torch.tensor([1.5, 2.0, 3.0], requires_grad=True)
    kl = torch.distributions.kl_divergence(
        D.StudentT(df, torch.zeros(3), torch.ones(3)),
        torch.distributions.Normal(torch.zeros(3), torch.ones(3)),
    )
    assert kl[:2].isinf().all()
    kl[2].backward()
    assert torch.isfinite(df.grad).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: D.OneHot(torch.zeros(3)), r"logits of shape \(\*batch, variables, categories\)"),
        (lambda: D.OneHot(torch.zeros(2, 0)), r"got \(2, 0\)"),
        (lambda: D.RelaxedOneHot(0.5, torch.zeros(3)), "logits of shape"),
        (lambda: D.RelaxedOneHot(torch.ones(2), torch.zeros(2, 1, 3)), "temperature to be a scal"),
        (lambda: D.GaussianProcess(torch.eye(3), 0), "features to be an integer of at least 1"),
        (lambda: D.GaussianProcess(torch.ones(3), 1), r"scale_tril of shape \(\*, T, T\)"),
        (lambda: D.LogisticNormal(torch.zeros(0), torch.ones(0)), r"loc of shape \(\*batch, K"),
        (lambda: D.UniformSphere(torch.zeros(1)), "zero of at least 2 dimensions"),
        (lambda: D.PowerSpherical(torch.ones(1), torch.ones(())), "loc of at least 2 dimensions"),
        (lambda: priors.Flow(3, covariate_dim=2)(), "Expected 2 covariates, got None"),
        (lambda: priors.Flow(3, family="real_nvp"), "family to be 'affine' or 'spline'"),
        (lambda: priors.Flow(3, passes=1), "passes to be an integer of at least 2"),
        (lambda: posteriors.StudentT(3, df=2.0), "df"),
        (lambda: posteriors.StudentT(3, df=1e6), "df"),
        (lambda: priors.StudentT(3, df=1.0), "df"),
        (lambda: priors.Dirichlet(1), "latent_dim to be an integer of at least 2"),
        (lambda: priors.UniformSphere(1), "latent_dim to be an integer of at least 2"),
        (lambda: posteriors.LogisticNormal(1), "latent_dim to be an integer of at least 2"),
        (lambda: posteriors.LowRank(3, rank=0), "rank to be an integer of at least 1"),
        (
            lambda: torch.distributions.kl_divergence(
                D.PowerSpherical(torch.tensor([1.0, 0.0]), torch.tensor(2.0)),
                D.UniformSphere(torch.zeros(3)),
            ),
            "distributions of one event shape",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_give_one_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (3, "multiple of the number of positions, 3, got 8: positions are those within one datum"),
        ([0.0, 1.0, 1.0, 2.0], "positions that differ"),
        ([], "number of positions, 0, got 8"),
        (2.5, "positions to be an integer"),
    ],
)
def test_positions_are_those_within_one_datum(positions, message):
    with pytest.raises(ValueError, match=message):
        priors.GaussianProcess(8, positions=positions)


@pytest.mark.parametrize("kernel", ["rbf", "matern12", "matern32", "matern52"])
def test_the_covariance_of_a_process_is_its_kernel(kernel):
    positions = [1.7e9, 1.7e9 + 1.0, 1.7e9 + 2.5]
    prior = priors.GaussianProcess(
        6, positions=positions, kernel=kernel, length_scale=1.5, noise=0.02
    ).double()
    covariance = prior().covariance_matrix.reshape(3, 2, 3, 2)
    r = (
        torch.tensor([0.0, 1.0, 2.5]).double()[:, None] - torch.tensor([0.0, 1.0, 2.5])
    ).abs() / 1.5
    a, b = math.sqrt(3) * r, math.sqrt(5) * r
    expected = {
        "rbf": torch.exp(-(r**2) / 2),
        "matern12": torch.exp(-r),
        "matern32": (1 + a) * torch.exp(-a),
        "matern52": (1 + b + b**2 / 3) * torch.exp(-b),
    }[kernel]
    expected = 0.98 * expected + 0.02 * torch.eye(3)
    torch.testing.assert_close(covariance[:, 0, :, 0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(covariance[:, 1, :, 1], expected, rtol=1e-5, atol=1e-6)
    assert (covariance[:, 0, :, 1].abs() < 1e-12).all()


def test_extreme_settings_of_priors_are_finite():
    for prior in (
        priors.GaussianProcess(8, length_scale=1e3),
        priors.Dirichlet(3, concentration=1e3, learned=True),
    ):
        d = prior()
        assert torch.isfinite(d.log_prob(d.sample())).all()
