"""Every divergence that PyTorch's and Pyro's registry offers, against quadrature."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions.kl import _KL_REGISTRY, kl_divergence

from pyro_vae.kl import closed_form

D = torch.distributions

STEPS, NODES = 4.5, 4001
"""Where the double exponential substitution ends, and its number of nodes."""

SERIES = 3000
"""How many values of a discrete distribution are summed over."""


def bounds(support):
    """Returns the ends of a distribution's support, infinite where it has none."""
    low = getattr(support, "lower_bound", -math.inf)
    return low, getattr(support, "upper_bound", math.inf)


def nodes(low, high, steps: float):
    """Returns nodes of the double exponential rule over an interval, and their weights."""
    t = torch.linspace(-steps, steps, NODES, dtype=torch.float64)
    h = 2 * steps / (NODES - 1)
    s = math.pi / 2 * torch.sinh(t)
    ds = math.pi / 2 * torch.cosh(t) * h
    ends = [math.isinf(float(torch.as_tensor(end).detach())) for end in (low, high)]
    if all(ends):
        return torch.sinh(s), torch.cosh(s) * ds
    if ends[1]:
        return low + s.exp(), s.exp() * ds
    if ends[0]:
        return high - s.exp(), s.exp() * ds
    # Written so that neither end is rounded to.
    near = (high - low) * torch.sigmoid(2 * s)
    weights = 2 * (high - low) * torch.sigmoid(2 * s) * torch.sigmoid(-2 * s) * ds
    return low + near, weights


def grid(q, p, steps: float):
    """Returns points of the support of q and their weights, split where a density has a kink."""
    if q.support.is_discrete:
        return torch.arange(SERIES, dtype=torch.float64), torch.ones(SERIES)
    kinks = sorted({float(d.loc.detach()) for d in (q, p) if isinstance(d, D.Laplace)})
    low, high = bounds(q.support)
    kinks = [kink for kink in kinks if float(torch.as_tensor(low).detach()) < kink]
    parts = [nodes(a, b, steps) for a, b in itertools.pairwise([low, *kinks, high])]
    x, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    inside = (x > low) & (x < high)
    return x[inside], weights[inside]


def expectation(q, p, steps: float) -> torch.Tensor:
    """Returns the mean of log q - log p under q over the substitution's range."""
    x, weights = grid(q, p, steps)
    log_q = torch.where(q.support.check(x.detach()), q.log_prob(x), -math.inf)
    some = log_q > -600
    x, weights, log_q = x[some], weights[some], log_q[some]
    log_p = torch.where(p.support.check(x.detach()), p.log_prob(x), -math.inf)
    return (weights * log_q.exp() * (log_q - log_p)).sum()


def divergence(q, p) -> torch.Tensor:
    """Returns KL(q, p) of two distributions of one number; infinite where the integral grows."""
    value = expectation(q, p, STEPS)
    shorter = expectation(q, p, 0.9 * STEPS)
    if not bool((value - shorter).abs() <= 1e-5 * (1 + value.abs())):
        return value.new_tensor(math.inf)
    return value


UNIVARIATE = {
    "Bernoulli": (dist.Bernoulli, [(0.3,), (0.8,)]),
    "Beta": (dist.Beta, [(2.0, 3.0), (0.6, 0.7), (1.0, 1.0), (30.0, 50.0)]),
    "Binomial": (lambda p, **kw: dist.Binomial(7, p, **kw), [(0.3,), (0.8,)]),
    "Cauchy": (dist.Cauchy, [(0.3, 0.7), (-1.0, 2.0)]),
    "Chi2": (dist.Chi2, [(3.0,), (1.5,)]),
    "ContinuousBernoulli": (dist.ContinuousBernoulli, [(0.3,), (0.5,), (0.4995,), (1e-3,)]),
    "Exponential": (dist.Exponential, [(0.7,), (2.0,)]),
    "Gamma": (dist.Gamma, [(2.0, 1.5), (0.6, 2.0), (1.0, 1.0)]),
    "Geometric": (dist.Geometric, [(0.3,), (0.8,), (1.0,)]),
    "Gumbel": (dist.Gumbel, [(0.3, 0.7), (-0.5, 1.5)]),
    "HalfNormal": (dist.HalfNormal, [(0.7,), (2.0,)]),
    "InverseGamma": (dist.InverseGamma, [(3.0, 1.5), (4.0, 2.0)]),
    "Laplace": (dist.Laplace, [(0.3, 0.7), (-1.0, 2.0)]),
    "LogNormal": (dist.LogNormal, [(0.3, 0.7), (-1.0, 1.2)]),
    "Normal": (dist.Normal, [(0.3, 0.7), (-1.0, 2.0)]),
    "Pareto": (dist.Pareto, [(0.5, 3.0), (1.2, 0.9), (0.4, 1.7)]),
    "Poisson": (dist.Poisson, [(1.5,), (4.0,), (0.0,)]),
    "Uniform": (dist.Uniform, [(0.0, 1.0), (0.2, 0.7), (-1.0, 2.0), (0.5, 1.0), (0.6, 3.0)]),
    "AffineBeta": (dist.AffineBeta, [(2.0, 3.0, 0.1, 2.0), (1.5, 1.2, 0.1, 2.0)]),
    "Kumaraswamy": (dist.Kumaraswamy, [(1.2, 2.0), (1.2, 3.0)]),
    "Weibull": (dist.Weibull, [(0.7, 1.5), (1.2, 1.5), (1.2, 2.0)]),
}
"""Constructors, with parameters that are generic, equal, and at the edges of supports."""

ELSEWHERE = {
    "Categorical", "Delta", "Dirichlet", "Distribution", "ExponentialFamily", "FullNormal",
    "GaussianProcess", "Independent", "LowRankMultivariateNormal", "LowRankNormal",
    "MaskedDistribution", "MultivariateNormal", "OneHot", "OneHotCategorical", "PowerSpherical",
    "StudentT", "TransformedDistribution", "UniformSphere",
}  # fmt: skip
"""Classes of the registry that other tests cover, here or in ``test_kl.py``."""

PAIRS = sorted({(a.__name__, b.__name__) for a, b in _KL_REGISTRY} | {
    (name, name) for name in UNIVARIATE
})  # fmt: skip


def tensors(values, grad: bool = False) -> list[torch.Tensor]:
    return [torch.tensor(v, dtype=torch.float64, requires_grad=grad) for v in values]


def made(name: str, values):
    return UNIVARIATE[name][0](*values, validate_args=False)


ROWS = [pair for pair in PAIRS if set(pair) <= set(UNIVARIATE)]


def test_no_pair_of_the_registry_is_left_out():
    known = set(UNIVARIATE) | ELSEWHERE
    assert [pair for pair in PAIRS if not set(pair) <= known] == []


@pytest.mark.parametrize(("first", "second"), ROWS)
def test_every_pair_of_the_registry(first, second):
    for q_values, p_values in itertools.product(UNIVARIATE[first][1], UNIVARIATE[second][1]):
        q, p = made(first, tensors(q_values)), made(second, tensors(p_values))
        kl, reason = closed_form(q, p)
        if kl is None:
            assert "PyTorch's formula" in reason or "not bijective" in reason or "known" in reason
            continue
        exact = divergence(q, p)
        torch.testing.assert_close(kl, exact, rtol=1e-6, atol=1e-7, msg=f"{q_values} {p_values}")
        wide = [d.expand([3]).to_event(1) for d in (q, p)]
        torch.testing.assert_close(closed_form(*wide)[0], 3 * exact, rtol=1e-6, atol=1e-6)


def between(first: str, second: str, values, size: int):
    return closed_form(made(first, values[:size]), made(second, values[size:]))[0]


@pytest.mark.parametrize(("first", "second"), ROWS)
def test_every_gradient_is_the_slope_of_its_divergence(first, second):
    for q_values, p_values in itertools.product(UNIVARIATE[first][1], UNIVARIATE[second][1]):
        values, size = tensors((*q_values, *p_values), grad=True), len(q_values)
        kl = between(first, second, values, size)
        if kl is None or not bool(kl.isfinite()) or not kl.requires_grad:
            # A divergence without a gradient is that of equal constants, or infinite.
            assert kl is None or bool(kl.isinf())
            continue
        gradient = torch.autograd.grad(kl, values, materialize_grads=True)
        for i, slope in enumerate(gradient):
            assert slope.isfinite(), f"{q_values} {p_values} by {i}"
            if first == "Poisson" and values[i] == 0:
                # The end of the parameter's range, with a slope from one side at most.
                continue
            steps = [[v.detach() + (h if j == i else 0) for j, v in enumerate(values)]
                     for h in (1e-6, -1e-6)]  # fmt: skip
            ends = [between(first, second, step, size) for step in steps]
            if not all(bool(torch.isfinite(end)) for end in ends):
                continue
            rise = (ends[0] - ends[1]) / 2e-6
            case = f"{q_values} {p_values} by {i}: {slope}, {rise}"
            torch.testing.assert_close(slope, rise, rtol=1e-4, atol=1e-4, msg=case)


BROADCAST = [
    ("Beta", "Uniform", [(2.0, 3.0)], [(0.0, 1.0), (0.2, 0.7)]),
    ("Pareto", "Exponential", [(0.5, 3.0), (1.2, 0.9)], [(0.7,)]),
    ("Pareto", "Normal", [(0.5, 3.0), (0.4, 1.7)], [(0.3, 0.7)]),
    ("Uniform", "Exponential", [(0.2, 0.7), (-1.0, 2.0)], [(0.7,)]),
    ("Normal", "Gamma", [(0.3, 0.7)], [(2.0, 1.5), (1.0, 1.0)]),
    ("Poisson", "Poisson", [(0.0,), (1.5,)], [(4.0,)]),
    ("Bernoulli", "Bernoulli", [(0.0,), (0.3,)], [(0.8,)]),
]


@pytest.mark.parametrize(("first", "second", "q_values", "p_values"), BROADCAST)
@pytest.mark.parametrize("swap", [True, False])
def test_batch_shapes_are_broadcast(first, second, q_values, p_values, swap):
    # Two rows and columns, so that an index over the wrong dimension does not fail.
    q_values, p_values = (v * 2 if len(v) == 1 else v for v in (q_values, p_values))
    a, b = (torch.tensor(values).unbind(-1) for values in (q_values, p_values))
    q = made(first, [t if swap else t[:, None] for t in a])
    p = made(second, [t[:, None] if swap else t for t in b])
    kl, _ = closed_form(q, p)
    assert kl.shape == (2, 2)
    for i, j in itertools.product(range(2), range(2)):
        a, b = (q_values[j], p_values[i]) if swap else (q_values[i], p_values[j])
        one, _ = closed_form(made(first, tensors(a)), made(second, tensors(b)))
        torch.testing.assert_close(kl[i, j].double(), one.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [dist.Normal, dist.Laplace, dist.StudentT])
def test_batch_shapes_that_do_not_broadcast_have_no_divergence(kind):
    p = kind(torch.ones(3, 2), 1.0)
    kl, reason = closed_form(dist.Normal(torch.zeros(3), 1.0), p)
    assert kl is None
    assert reason == "batch shapes do not broadcast, (3,) and (3, 2)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discrete_divergences_stay_finite_where_probabilities_round(dtype):
    far = torch.tensor([40.0, 800.0, -800.0], dtype=dtype)
    half = torch.zeros(3, dtype=dtype, requires_grad=True)
    expected = 0.5 * far.abs() - math.log(2) + torch.nn.functional.softplus(-far.abs())
    kl, _ = closed_form(dist.Bernoulli(logits=half), dist.Bernoulli(logits=far))
    torch.testing.assert_close(kl, expected)
    (gradient,) = torch.autograd.grad(kl.sum(), half)
    torch.testing.assert_close(gradient, -far / 4)
    for kind in (dist.Categorical, dist.OneHotCategorical, dist.OneHotCategoricalStraightThrough):
        q = kind(logits=torch.stack([half, torch.zeros_like(half)], -1))
        p = kind(logits=torch.stack([far, torch.zeros_like(far)], -1))
        kl, _ = closed_form(q, p)
        torch.testing.assert_close(kl, expected)
        back, _ = closed_form(p, q)
        assert back.isfinite().all()
        mask = torch.tensor([True, False, True])
        event = [d.mask(mask).expand([2, 3]).to_event(1) for d in (q, p)]
        assert closed_form(*event)[0] is None
        event = [d.expand([2, 3]).to_event(1) for d in (q, p)]
        torch.testing.assert_close(closed_form(*event)[0], expected.sum().expand(2))
        masked = [d.mask(mask) for d in (q, p)]
        if masked[0]._mask is masked[1]._mask:
            torch.testing.assert_close(closed_form(*masked)[0], torch.where(mask, expected, 0.0))


def test_what_has_probability_zero_by_itself_is_infinitely_far():
    q, p = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    for kind in (dist.Categorical, dist.OneHotCategorical):
        assert closed_form(kind(probs=q), kind(probs=p))[0].isinf()
        torch.testing.assert_close(
            closed_form(kind(probs=p), kind(probs=q))[0], torch.tensor(math.log(2))
        )
    assert closed_form(dist.Bernoulli(0.5), dist.Bernoulli(1.0))[0].isinf()


WRONG = {
    "ends": (("Uniform", [0.0, 1.0]), ("ContinuousBernoulli", [0.3])),
    "starts": (("ContinuousBernoulli", [0.3]), ("Uniform", [0.0, 1.0])),
    "geometric": (("Geometric", [1.0]), ("Geometric", [1.0])),
    "poisson": (("Poisson", [0.0]), ("Bernoulli", [0.3])),
    "binomial": (("Binomial", [1.0]), ("Binomial", [1.0])),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_is_wrong_in_the_registry(name):
    q, p = (made(kind, tensors(values)) for kind, values in WRONG[name])
    exact = divergence(q, p)
    assert exact.isfinite()
    assert not torch.isclose(kl_divergence(q, p), exact)
    assert closed_form(q, p)[0] is None


def test_a_formula_without_a_gradient_is_refused():
    scale = torch.eye(2, dtype=torch.float64, requires_grad=True)
    df = torch.tensor(4.0, dtype=torch.float64)
    q, p = D.Wishart(df, scale), D.Wishart(df + 1, 2 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(kl_divergence(q, p), scale)
    kl, reason = closed_form(q, p)
    assert kl is None
    assert "no gradient by the first" in reason


def test_a_rate_of_zero_has_a_divergence():
    assert kl_divergence(dist.Bernoulli(0.0), dist.Poisson(0.0)).isnan()
    assert kl_divergence(dist.Poisson(0.0), dist.Poisson(0.0)).isnan()
    zero = torch.zeros((), requires_grad=True)
    kl, _ = closed_form(dist.Poisson(0.0), dist.Poisson(zero))
    assert kl == 0
    assert torch.autograd.grad(kl, zero)[0] == 1
    assert closed_form(dist.Poisson(1.0), dist.Poisson(0.0))[0].isinf()
    assert closed_form(dist.Bernoulli(0.0), dist.Poisson(0.0))[0] is None


@pytest.mark.parametrize("log_density", [0.0, 1.5])
def test_a_point_mass_is_refused(log_density):
    q = dist.Delta(torch.zeros(2), torch.full((), log_density), event_dim=1)
    for p in (
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    ):
        kl, reason = closed_form(q, p)
        assert kl is None
        assert "a point mass" in reason


def affine(loc, scale=1.0):
    return dist.transforms.AffineTransform(loc, scale)


CHAINS = {
    "affine": lambda w: [affine(w)],
    "scale": lambda w: [affine(0.0, w)],
    "power": lambda w: [dist.transforms.PowerTransform(w)],
    "composed": lambda w: [dist.transforms.ComposeTransform([affine(w), affine(1.0)])],
    "inverse": lambda w: [affine(w).inv],
    "second": lambda w: [dist.transforms.ExpTransform(), affine(w)],
    "cached": lambda w: [dist.transforms.AffineTransform(w, 1.0, cache_size=1)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_transforms_of_equal_values_are_trusted_only_without_a_gradient(name):
    def kl(w, v, base=dist.LogNormal):
        loc = torch.zeros((), requires_grad=True)
        a = dist.TransformedDistribution(base(loc, 1.0), CHAINS[name](w))
        b = dist.TransformedDistribution(base(torch.ones(()), 1.0), CHAINS[name](v))
        a.rsample()
        return closed_form(a, b)

    w = torch.tensor(1.5)
    value, reason = kl(w, torch.tensor(1.5))
    torch.testing.assert_close(value, torch.tensor(0.5), msg=reason)
    trained = torch.tensor(1.5, requires_grad=True)
    for pair in ((trained, w), (w, trained), (trained, w.clone()), (1.0 * trained, w)):
        value, reason = kl(*pair)
        assert value is None
        assert "is trained, and not the same object for both" in reason


def test_the_same_trained_transform_leaves_the_divergence_of_the_bases():
    w, loc = torch.tensor(1.5, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    chain = [affine(w)]
    q = dist.TransformedDistribution(dist.Normal(loc, 1.0), chain)
    kl, _ = closed_form(q, dist.TransformedDistribution(dist.Normal(0.0, 1.0), chain))
    torch.testing.assert_close(kl, torch.tensor(0.045))
    by_w, by_loc = torch.autograd.grad(kl, (w, loc), materialize_grads=True)
    assert by_w == 0
    torch.testing.assert_close(by_loc, loc.detach())


def test_the_gradient_that_the_registry_drops_is_that_of_the_densities():
    # Both maps have the same value, and only that of q is trained.
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    q = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [affine(w)])
    p = dist.TransformedDistribution(dist.Normal(1.0, 1.0), [affine(w.detach().clone())])
    exact = divergence(q, p)
    (slope,) = torch.autograd.grad(exact, w)
    torch.testing.assert_close(slope, torch.tensor(-1.0, dtype=torch.float64), atol=1e-6, rtol=0)
    assert not kl_divergence(q, p).requires_grad
    assert closed_form(q, p)[0] is None
