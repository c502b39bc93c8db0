"""Gradients of draws: by finite differences, by quadrature, and by a documented bias."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import normalize

from helpers.tables import POSTERIOR_ROWS, Box, Sphere
from helpers.truths import family_limit
from pyro_vae.distributions import OneHot, PowerSpherical, StraightThroughOneHot, StudentT
from pyro_vae.networks.flow import build_flow
from pyro_vae.vae.build import build_part

SMOOTH = [
    name for name in POSTERIOR_ROWS
    if name not in ("student_t", "power_spherical")
    and not name.startswith(("one_hot", "straight_through"))
]  # fmt: skip
"""Posteriors whose draws are smooth functions of features and of noise of a fixed distribution."""


@pytest.mark.parametrize("name", SMOOTH)
def test_pathwise_gradients_are_those_of_finite_differences(name):
    torch.manual_seed(0)
    part = build_part(POSTERIOR_ROWS[name].make, "posterior", latent_dim=6).double()
    features = torch.randn(4, *part.feature_shape).double().requires_grad_()
    direction = torch.randn_like(features)
    weights = torch.randn(4, 6).double()

    def draw(features):
        torch.manual_seed(1)
        return (weights * part(features).rsample().sin()).sum()

    (gradient,) = torch.autograd.grad(draw(features), features)
    step = 1e-6
    with torch.no_grad():
        slope = (draw(features + step * direction) - draw(features - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-7)


def compare(estimates: torch.Tensor, exact: torch.Tensor) -> None:
    """Checks the mean of independent estimates, ``(count, size)``."""
    error = (estimates.std(0) / math.sqrt(len(estimates))).clamp(min=1e-12)
    z = (estimates.mean(0) - exact).abs() / error
    assert (z < family_limit(20 * z.numel())).all(), z


@pytest.mark.parametrize("concentration", [0.9, 4.0, 60.0, 2000.0])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("on_axis", [False, True])
def test_power_spherical_gradients_are_those_of_quadrature(size, concentration, on_axis):
    torch.manual_seed(2)
    weights = torch.randn(size).double()
    # A sampler that reflects an axis to the mean has no gradient where both are the same.
    raw = torch.eye(size)[0].double() if on_axis else torch.randn(size).double()
    raw.requires_grad_()
    kappa = torch.tensor(concentration).double().requires_grad_()

    def make():
        return PowerSpherical(normalize(raw, dim=-1), kappa)

    points, areas = Sphere(1500).grid(size)
    expectation = (areas * make().log_prob(points).exp() * (points @ weights).exp()).sum()
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(expectation, [raw, kappa])])
    estimates = []
    for _ in range(40):
        value = (make().rsample((5000,)) @ weights).exp().mean()
        gradient = torch.autograd.grad(value, [raw, kappa])
        estimates.append(torch.cat([g.reshape(-1) for g in gradient]))
    compare(torch.stack(estimates), exact)


@pytest.mark.parametrize("df", [2.5, 5.0, 40.0])
def test_student_t_gradients_are_those_of_quadrature(df):
    loc, scale = (torch.tensor(v).double().requires_grad_() for v in (0.3, 0.7))

    def make():
        return StudentT(torch.tensor(df).double(), loc, scale)

    x, weights = Box(-14.0, 14.0, 20, panels=400, substitute=lambda u: (u.sinh(), u.cosh())).grid(1)
    x = x[:, 0]
    expectation = (weights * make().log_prob(x).exp() * x.sin()).sum()
    exact = torch.stack(torch.autograd.grad(expectation, [loc, scale]))
    estimates = []
    for seed in range(40):
        torch.manual_seed(seed)
        estimates.append(
            torch.stack(torch.autograd.grad(make().rsample((5000,)).sin().mean(), [loc, scale]))
        )
    compare(torch.stack(estimates), exact)


def codes(variables: int, categories: int) -> torch.Tensor:
    eye = torch.eye(categories).double()
    index = list(itertools.product(range(categories), repeat=variables))
    return eye[torch.tensor(index)].flatten(1)


def estimate_straight_through(logits, function, draws: int = 200_000):
    z = StraightThroughOneHot(logits).rsample((draws,))
    per_draw = torch.autograd.grad(function(z).sum(), z, retain_graph=True)[0]
    jacobian = torch.autograd.functional.jacobian(
        lambda h: StraightThroughOneHot(h).mean, logits
    ).flatten(1)
    return per_draw @ jacobian


def test_straight_through_gradients_of_linear_functions_are_exact():
    torch.manual_seed(0)
    logits = torch.randn(2, 3).double().requires_grad_()
    weights = torch.randn(6).double()
    z = codes(2, 3)
    expectation = (OneHot(logits).log_prob(z).exp() * (z @ weights)).sum()
    (exact,) = torch.autograd.grad(expectation, logits)
    estimates = estimate_straight_through(logits, lambda z: z @ weights)
    torch.testing.assert_close(estimates.mean(0), exact.flatten())


def test_straight_through_gradients_have_the_documented_bias():
    """The estimate is E of the derivative at the code, times the derivative of probabilities."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3).double().requires_grad_()
    matrix = torch.randn(6, 6).double()

    def function(z):
        return ((z @ matrix) * z).sum(-1) + (z.sum(-1) - 1).square()

    z = codes(2, 3).requires_grad_()
    probs = OneHot(logits).log_prob(z.detach()).exp()
    (slopes,) = torch.autograd.grad(function(z).sum(), z)
    (documented,) = torch.autograd.grad(
        ((probs.detach() @ slopes) * OneHot(logits).mean).sum(), logits
    )
    (exact,) = torch.autograd.grad((probs * function(z.detach())).sum(), logits)
    estimates = estimate_straight_through(logits, function)
    compare(estimates, documented.flatten())
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - exact.flatten()).abs() / error).max() > 10


@pytest.mark.parametrize("passes", [None, 2])
@pytest.mark.parametrize("family", ["affine", "spline"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_density_of_a_flow_is_that_of_its_jacobian(dim, family, passes):
    torch.manual_seed(0)
    flow = build_flow(dim, 3, family=family, passes=passes, hidden=[16]).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    context = torch.randn(3).double()
    for value in torch.randn(10, dim).double() * 2:
        transform = flow(context)
        jacobian = torch.autograd.functional.jacobian(transform, value)
        log_det = transform.call_and_ladj(value)[1]
        assert log_det.item() == pytest.approx(jacobian.det().abs().log().item(), abs=1e-9)
        numeric = torch.stack(
            [(transform(value + 1e-6 * e) - transform(value - 1e-6 * e)) / 2e-6
             for e in torch.eye(dim).double()], 1)  # fmt: skip
        torch.testing.assert_close(numeric, jacobian, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(transform.inv(transform(value)), value)
