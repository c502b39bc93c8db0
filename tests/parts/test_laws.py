"""Laws of priors, posteriors and likelihoods: one table each, one test a law."""

import copy
import inspect
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from helpers.tables import (
    EVENT,
    LIKELIHOOD_ROWS,
    LIKELIHOODS,
    POSTERIOR_ROWS,
    POSTERIORS,
    PRIOR_ROWS,
    PRIORS,
    TABLE_LIKELIHOODS,
    data_for,
)
from helpers.truths import SIGMAS
from pyro_vae import likelihoods, networks, posteriors, priors
from pyro_vae.conditional import Likelihood, Posterior, Prior
from pyro_vae.distributions.blocks import are_equal_supports, repeat_support
from pyro_vae.networks import MLP
from pyro_vae.vae.build import build_part

ROWS = [
    *(("prior", name) for name in PRIORS),
    *(("posterior", name) for name in POSTERIORS),
    *(("likelihood", name) for name in LIKELIHOODS),
]

TABLES = {"prior": PRIORS, "posterior": POSTERIORS, "likelihood": LIKELIHOODS}


def dim_of(role: str, name: str) -> int:
    rows = {"prior": PRIOR_ROWS, "posterior": POSTERIOR_ROWS}.get(role, {})
    return rows[name].dim if name in rows else 3


class Made(nn.Module):
    """A part off its starting values, and what its ``forward`` is called with."""

    def __init__(self, role: str, name: str, latent_dim: int | None = None, event=EVENT) -> None:
        super().__init__()
        latent_dim = dim_of(role, name) if latent_dim is None else latent_dim
        sizes = {"latent_dim": latent_dim, "event_shape": event, "covariate_dim": 0}
        self.role, self.part = role, build_part(TABLES[role][name], role, **sizes)
        if role == "prior":
            self.posterior = posteriors.Normal(latent_dim, min_scale=0.2)
            self.encoder = MLP(event, self.posterior.feature_shape, hidden=[7])
        else:
            self.features = nn.Parameter(torch.randn(5, *self.part.feature_shape))
        with torch.no_grad():
            for parameter in self.part.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))

    def encode(self, x, covariates=None):
        return self.posterior(networks.apply_network(self.encoder, x, len(EVENT)))

    def forward(self):
        if self.role == "prior":
            return self.part(encode=self.encode if self.part.uses_encoder else None)
        return self.part(self.features)


def value_of(d: dist.TorchDistribution, role: str, name: str) -> torch.Tensor:
    """A value in the support."""
    if role == "likelihood":
        return data_for(name, 5).to(d.mean.dtype)
    return d.sample()


def z_scores(draws: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return (draws.mean(0) - mean) / (draws.std(0) / math.sqrt(len(draws))).clamp(min=1e-12)


@pytest.mark.parametrize("role", TABLES)
def test_every_part_has_a_row(role):
    module, base = {
        "prior": (priors, Prior),
        "posterior": (posteriors, Posterior),
        "likelihood": (likelihoods, Likelihood),
    }[role]
    made = {type(Made(role, name).part).__name__ for name in TABLES[role]}
    elsewhere = {part.func.__name__ for part in TABLE_LIKELIHOODS.values()}
    assert made == set(module.__all__) - elsewhere
    for name in module.__all__:
        assert issubclass(getattr(module, name), base)
        assert inspect.getdoc(getattr(module, name))


@pytest.mark.parametrize(("role", "name"), ROWS)
def test_shapes_of_draws_and_densities(role, name):
    made = Made(role, name)
    d = made()
    assert isinstance(d, TorchDistributionMixin)
    assert d.event_shape == (EVENT if role == "likelihood" else (dim_of(role, name),))
    assert d.batch_shape == (() if role == "prior" else (5,))
    for shape in ((), (2,), (4, 2)):
        value = d.sample(torch.Size(shape))
        assert value.shape == (*shape, *d.batch_shape, *d.event_shape)
        assert d.log_prob(value).shape == (*shape, *d.batch_shape)
    assert d.mean.shape == d.batch_shape + d.event_shape


@pytest.mark.parametrize(("role", "name"), ROWS)
def test_expand_keeps_the_density(role, name):
    d = Made(role, name)()
    value = value_of(d, role, name)
    wide = d.expand(torch.Size([4, *d.batch_shape]))
    assert wide.batch_shape == (4, *d.batch_shape)
    torch.testing.assert_close(
        wide.log_prob(value.expand(wide.shape())), d.log_prob(value).expand(wide.batch_shape)
    )
    assert wide.sample().shape == wide.shape()


@pytest.mark.parametrize(("role", "name"), ROWS)
def test_the_gradient_reaches_every_parameter(role, name):
    made = Made(role, name)
    d = made()
    loss = d.log_prob(value_of(d, role, name)).sum()
    if any(p.requires_grad for p in made.part.parameters()) or role != "prior":
        loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.part.parameters())
    assert torch.isfinite(loss)
    if role != "prior":
        assert torch.isfinite(made.features.grad).all()
        assert (made.features.grad != 0).any(0).all()


@pytest.mark.parametrize(("role", "name"), ROWS)
def test_double_precision_throughout(role, name):
    made = Made(role, name)
    single = made()
    value = value_of(single, role, name)
    # A flow refers to the networks of its part, whose precision changes.
    single_log_prob = single.log_prob(value).double()
    exact = made.double()()
    assert exact.sample().dtype == torch.float64
    value = value.double()
    if exact.support is dist.constraints.sphere:
        value = value / value.norm(dim=-1, keepdim=True)
    log_prob = exact.log_prob(value)
    assert log_prob.dtype == torch.float64
    torch.testing.assert_close(log_prob, single_log_prob, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("role", "name"), ROWS)
def test_the_state_dict_holds_all(role, name):
    made, other = Made(role, name).eval(), Made(role, name).eval()
    for buffer in made.part.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    value = value_of(made(), role, name)
    before = other().log_prob(value)
    other.load_state_dict(made.state_dict())
    torch.testing.assert_close(other().log_prob(value), made().log_prob(value), rtol=0, atol=0)
    if len(made.part.state_dict()) > 0:
        assert not torch.allclose(other().log_prob(value), before)
    assert torch.equal(copy.deepcopy(made)().log_prob(value), made().log_prob(value))


@pytest.mark.parametrize(("role", "name"), ROWS)
def test_repr_shows_class_and_sizes(role, name):
    part = Made(role, name).part
    size = f"event_shape={EVENT}" if role == "likelihood" else f"latent_dim={dim_of(role, name)}"
    assert repr(part).startswith(f"{type(part).__name__}(")
    assert size in repr(part)


QUADRATURES = [
    (role, name, size)
    for role, rows in (("prior", PRIOR_ROWS), ("posterior", POSTERIOR_ROWS))
    for name, row in rows.items()
    for size in row.sizes
]


@pytest.mark.parametrize(("role", "name", "size"), QUADRATURES)
def test_priors_and_posteriors_integrate_to_one(role, name, size):
    torch.manual_seed(3)
    made = Made(role, name, size).double()
    row = (PRIOR_ROWS if role == "prior" else POSTERIOR_ROWS)[name]
    if role == "posterior":
        made.features.data = row.unit * made.features.data[:2]
    d = made()
    points, weights = row.support.grid(size)
    for _ in d.batch_shape:
        points, weights = points.unsqueeze(1), weights.unsqueeze(1)
    mass = weights * d.log_prob(points).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones_like(mass[0]), rtol=0, atol=row.error)
    mean = (mass.unsqueeze(-1) * points).sum(0)
    variance = (mass.unsqueeze(-1) * points**2).sum(0) - mean**2
    torch.testing.assert_close(d.mean, mean, rtol=row.mean_error, atol=row.mean_error)
    loose = 4 * row.mean_error
    torch.testing.assert_close(d.variance, variance, rtol=loose, atol=loose)


@pytest.mark.parametrize(("role", "name"), [r for r in ROWS if r[0] != "likelihood"])
def test_the_support_of_a_part_is_that_of_its_distribution(role, name):
    part, d = Made(role, name).part, Made(role, name)()
    if part.support is None:
        return
    support = repeat_support(part.support, part.variables)
    assert are_equal_supports(support, d.support)
    assert d.support.check(d.sample(torch.Size([500]))).all()


def at_fixed_size(d, size=7.0):
    """The distribution at a size factor that does not depend on the row."""
    return d.at_size(d.log_prob(torch.zeros(d.event_shape).double()) * 0 + size)


@pytest.mark.parametrize("name", [n for n, row in LIKELIHOOD_ROWS.items() if n != "multinomial"])
def test_likelihoods_of_one_element_integrate_to_one(name):
    made = Made("likelihood", name, event=(1,)).double().eval()
    d = made()
    if LIKELIHOOD_ROWS[name].given_sum:
        d = at_fixed_size(d)
    points, weights = LIKELIHOOD_ROWS[name].support.grid(1)
    mass = weights[:, None] * d.log_prob(points[:, None]).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(5).double(), rtol=0, atol=1e-7)
    mean = (mass[:, :, None] * points[:, None]).sum(0)
    torch.testing.assert_close(mean, d.mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_declare_the_measure_of_their_support(name):
    row = LIKELIHOOD_ROWS[name]
    assert Made("likelihood", name).part.measure == row.support.measure


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_grey_scale_says_whether_values_outside_of_the_support_are_scored(name):
    made, row = Made("likelihood", name), LIKELIHOOD_ROWS[name]
    points, _ = row.support.grid(1)
    outside = [v for v in data_for(name, 50).unique() if not (points - v).abs().min() < 1e-3]
    if row.support.measure == "mass":
        assert made.part.grey_scale == bool(outside)
    else:
        assert not made.part.grey_scale


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_are_products_over_elements(name):
    made = Made("likelihood", name).eval()
    d = made()
    value = data_for(name, 5)
    # A density given the row's sum is a product only at a fixed size.
    if not LIKELIHOOD_ROWS[name].given_sum:
        assert isinstance(d, dist.Independent)
        scores = d.base_dist.log_prob(value).flatten(1).sum(-1)
        torch.testing.assert_close(d.log_prob(value), scores)
    torch.testing.assert_close(made.part(made.features[None, 2:3]).mean[0, 0], d.mean[2])


@pytest.mark.parametrize(("role", "name"), ROWS)
def test_draws_have_the_moments_of_the_density(role, name):
    made = Made(role, name).double().eval()
    d = made()
    draws = d.sample(torch.Size((20_000,)))
    # A mean that is an estimate itself differs by its error.
    row = {"prior": PRIOR_ROWS, "posterior": POSTERIOR_ROWS}.get(role, {}).get(name)
    slack = row.mean_error * math.sqrt(20_000) if row is not None else 0.0
    assert z_scores(draws, d.mean).abs().max() < SIGMAS + 1 + slack
    if role == "likelihood" and LIKELIHOOD_ROWS[name].heavy:
        return
    variance = d.variance
    centred = (draws - d.mean) ** 2
    assert z_scores(centred, variance).abs().max() < SIGMAS + 1 + slack


@pytest.mark.parametrize("name", POSTERIORS)
def test_extreme_features_give_proper_posteriors(name):
    part = Made("posterior", name).part
    for size in (-1e4, -200.0, 200.0):
        features = torch.full((5, *part.feature_shape), size, requires_grad=True)
        d = part(features)
        z = d.rsample() if d.has_rsample else d.sample()
        (gradient,) = torch.autograd.grad(d.log_prob(z).sum(), features)
        assert torch.isfinite(z).all()
        assert torch.isfinite(gradient).all()


def test_full_posterior_reads_each_cell_from_a_feature_of_its_own():
    part = posteriors.Full(4)
    features = torch.randn(5, *part.feature_shape, requires_grad=True)
    tril = part(features).scale_tril
    assert torch.equal(tril, tril.tril())
    assert (tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    owners = set()
    for row, column in torch.tril_indices(4, 4).T.tolist():
        (gradient,) = torch.autograd.grad(tril[0, row, column], features, retain_graph=True)
        owner = set(gradient[0].nonzero().flatten().tolist())
        # The scale of the row is the unit of what is below the diagonal.
        assert len(owner) == 1 + (column < row)
        owners |= owner - {4 + row} if column < row else owner
    assert owners == set(range(4, 14))
    assert part.feature_shape == (14,)


def test_full_posterior_is_the_documented_factor():
    part, d = posteriors.Full(4, min_scale=0.01), 4
    features = torch.randn(5, *part.feature_shape)
    scale = torch.nn.functional.softplus(features[:, d : 2 * d]) + 0.01
    below = torch.zeros(5, d, d)
    rows, columns = torch.tril_indices(d, d, -1)
    below[:, rows, columns] = features[:, 2 * d :]
    q = part(features)
    torch.testing.assert_close(q.mean, features[:, :d])
    expected = scale.diag_embed() @ (torch.eye(d) + below / math.sqrt(d))
    torch.testing.assert_close(q.scale_tril, expected)
    # Weights of earlier versions say nothing of their meaning, and keep it when saved again.
    part.load_state_dict({})
    torch.testing.assert_close(part(features).scale_tril, scale.diag_embed() + below)
    again = posteriors.Full(4, min_scale=0.01)
    again.load_state_dict(part.state_dict())
    torch.testing.assert_close(again(features).scale_tril, part(features).scale_tril)


@pytest.mark.parametrize("size", [1, 2, 100, 300])
def test_full_posterior_is_well_conditioned_in_many_dimensions(size):
    part = posteriors.Full(size)
    features = torch.randn(3, *part.feature_shape)
    features[0, size : 2 * size] = -20.0
    q, noise = part(features), torch.randn(3, size)
    z = q.mean + (q.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    log_det = q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    exact = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1) - log_det
    torch.testing.assert_close(q.log_prob(z)[1:], exact[1:], rtol=1e-3, atol=0.05)
    # A value near 1 is rounded to a thousandth of the least scale.
    torch.testing.assert_close(q.log_prob(z)[0], exact[0], rtol=0.05, atol=0.05)


def test_full_posterior_without_correlation_is_the_diagonal_one():
    torch.manual_seed(0)
    full, diagonal = posteriors.Full(3), posteriors.Normal(3)
    loc, raw = torch.randn(5, 3), torch.randn(5, 3)
    z = torch.randn(5, 3)
    a = full(torch.cat([loc, raw, torch.zeros(5, 3)], -1)).log_prob(z)
    torch.testing.assert_close(a, diagonal(torch.stack([loc, raw], -2)).log_prob(z))


@pytest.mark.parametrize("kind", [posteriors.Normal, posteriors.Full])
def test_posteriors_refuse_bad_sizes(kind):
    with pytest.raises(ValueError, match="Expected latent_dim to be an integer of at least 1"):
        kind(0)
    with pytest.raises(ValueError, match=r"Expected min_scale to be positive, got -1.0"):
        kind(2, min_scale=-1.0)
