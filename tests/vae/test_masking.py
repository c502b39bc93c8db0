"""Missing values: what a mask hides reaches neither value nor gradient."""

import contextlib
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from helpers.tables import (
    EVENT,
    FEW_LIKELIHOODS,
    FEW_PRIORS,
    LIKELIHOOD_ROWS,
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    data_for,
    given,
)
from pyro_vae import VAE, likelihoods, networks, objectives

FACTORIZED = [n for n, row in LIKELIHOOD_ROWS.items() if row.factorized and not row.given_sum]
MASKABLE = [name for name, row in LIKELIHOOD_ROWS.items() if not row.given_sum]

ROWS = torch.arange(12) % 3 != 1


def made(likelihood="bernoulli", network="mlp", **options) -> VAE:
    encoder, decoder = NETWORKS[network]
    parts = {"likelihood": LIKELIHOODS[likelihood], "encoder": encoder, "decoder": decoder}
    return VAE(EVENT, 3, **{**parts, **options})


def elements() -> torch.Tensor:
    """A mask of elements: one row whole, one row all missing, the others in part."""
    mask = torch.rand(12, *EVENT) > 0.4
    mask[0], mask[1] = True, False
    return mask


def spoiled(x: torch.Tensor, mask: torch.Tensor, value: float = math.nan) -> torch.Tensor:
    """Data with something else where the mask says that it is missing."""
    return torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), x, value)


def bound(vae: VAE, x, z, **kwargs) -> torch.Tensor:
    """One draw of the bound, at a given z."""
    at_z = {f"{vae.name}.z": z}
    model = poutine.trace(poutine.condition(vae.model, at_z)).get_trace(x, **kwargs)
    guide = poutine.trace(poutine.condition(vae.guide, at_z)).get_trace(x, **kwargs)
    return model.log_prob_sum() - guide.log_prob_sum()


def draw(vae: VAE, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    q = vae.encode(x)
    return q.mean + q.stddev * noise


def gradients(value: torch.Tensor, vae: VAE) -> dict[str, torch.Tensor]:
    names, parameters = zip(*vae.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def assert_same(a: torch.Tensor, b: torch.Tensor, vae: VAE) -> None:
    """Compares two values and their gradients."""
    assert torch.isfinite(a)
    torch.testing.assert_close(a, b)
    first, second = gradients(a, vae), gradients(b, vae)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.isfinite(first[name]).all(), name
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -3.0])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_masked_rows_count_as_if_they_were_not_there(likelihood, hidden):
    vae, x = made(likelihood), data_for(likelihood)
    noise = torch.randn(12, 3)
    z = draw(vae, spoiled(x, ROWS, 0.0), noise)
    masked = bound(vae, spoiled(x, ROWS, hidden), z, mask=ROWS)
    assert_same(masked, bound(vae, x[ROWS], draw(vae, x[ROWS], noise[ROWS])), vae)


@pytest.mark.parametrize("prior", FEW_PRIORS)
def test_masked_rows_are_masked_in_the_prior_too(prior):
    vae, x = made(prior=FEW_PRIORS[prior], network="conv"), data_for("bernoulli")
    noise = torch.randn(12, 3)
    z = draw(vae, spoiled(x, ROWS, 0.0), noise)
    masked = bound(vae, spoiled(x, ROWS), z, mask=ROWS, data_size=24)
    dropped = bound(vae, x[ROWS], draw(vae, x[ROWS], noise[ROWS]))
    assert_same(masked, 2 * dropped, vae)


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -3.0])
@pytest.mark.parametrize("likelihood", FACTORIZED)
def test_masked_elements_leave_the_sum_over_those_observed(likelihood, hidden):
    vae, x, mask = made(likelihood), data_for(likelihood), elements()
    inputs, filled = spoiled(x, mask, 0.0), spoiled(x, mask, vae.likelihood.fill_value)
    z = draw(vae, inputs, torch.randn(12, 3))
    base = vae.decode(z).base_dist.log_prob(filled)
    rate = vae.encode(inputs).log_prob(z) - vae.prior_distribution().log_prob(z)
    expected = base[mask].sum() - rate.sum()
    assert_same(bound(vae, spoiled(x, mask, hidden), z, mask=mask), expected, vae)


def test_masked_elements_are_no_part_of_the_optimal_scale():
    vae, x, mask = made("normal_optimal"), data_for("normal_optimal"), elements()
    z = draw(vae, spoiled(x, mask, 0.0), torch.randn(12, 3))
    trace = poutine.trace(poutine.condition(vae.model, {"vae.z": z}))
    trace = trace.get_trace(spoiled(x, mask), mask=mask)
    trace.compute_log_prob()
    error = ((x - vae.decode(z).mean) ** 2)[mask]
    expected = -0.5 * len(error) * (1 + (2 * math.pi * error.mean()).log())
    assert_same(trace.nodes["vae.x"]["log_prob"].sum(), expected, vae)


FIRST = torch.arange(12) < 8
EVEN = torch.arange(12) % 2 == 0

HANDLERS = {
    "rows": ([poutine.mask(mask=FIRST)], None, FIRST),
    "nested": ([poutine.mask(mask=FIRST), poutine.mask(mask=EVEN)], None, FIRST & EVEN),
    "true": ([poutine.mask(mask=True), poutine.mask(mask=FIRST)], None, FIRST),
    "own_rows": ([poutine.mask(mask=FIRST)], EVEN, FIRST & EVEN),
    "own_elements": ([poutine.mask(mask=FIRST)], "elements", FIRST),
    "false": ([poutine.mask(mask=False)], EVEN, FIRST & False),
    "scaled": ([poutine.scale(scale=7.0), poutine.mask(mask=FIRST)], None, FIRST),
    "scaled_rows": ([poutine.scale(scale=torch.arange(12.0) + 1)], None, FIRST | True),
}


@pytest.mark.parametrize("name", HANDLERS)
def test_handlers_that_mask_rows_count_for_the_optimal_scale(name):
    handlers, own, rows = HANDLERS[name]
    own = elements() if isinstance(own, str) else own
    vae, x = made("normal_optimal"), data_for("normal_optimal").clone()
    seen = rows[:, None, None, None].expand(x.shape)
    if own is not None and own.dim() == x.dim():
        seen = seen & own
    x[~seen] = 100.0
    before = vae.likelihood.variance.item()
    with poutine.trace() as tracer, contextlib.ExitStack() as stack:
        for handler in handlers:
            stack.enter_context(handler)
        z = vae.model(x, mask=own)
    tracer.trace.compute_log_prob()
    site = tracer.trace.nodes["vae.x"]
    if not seen.any():
        assert site["log_prob_sum"] == 0
        assert vae.likelihood.variance.item() == pytest.approx(before)
        return
    error = ((x - vae.decode(z).mean) ** 2)[seen]
    expected = -0.5 * len(error) * (1 + (2 * math.pi * error.mean()).log())
    assert_same(site["unscaled_log_prob"][rows].sum(), expected, vae)
    mean = 0.9 * before + 0.1 * error.mean().item()
    assert vae.likelihood.variance.item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("by_handler", [True, False])
def test_masks_around_a_likelihood_in_a_program_with_plates(by_handler):
    vae, x, z = made("normal_optimal"), data_for("normal_optimal").clone(), torch.randn(3, 12, 3)
    x[~FIRST] = 100.0

    def program():
        with pyro.plate("particles", 3, dim=-2), pyro.plate("rows", 12, dim=-1):
            if by_handler:
                with poutine.mask(mask=FIRST):
                    pyro.sample("x", vae.decode(z), obs=x)
            else:
                pyro.sample("x", vae.decode(z).mask(FIRST), obs=x)

    error = ((x - vae.decode(z).mean) ** 2)[:, FIRST].flatten()
    expected = -0.5 * len(error) * (1 + (2 * math.pi * error.mean()).log())
    trace = poutine.trace(program).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_calibration_without_any_observed_value_changes_nothing():
    vae, x = made("normal_optimal"), data_for("normal_optimal")
    before = vae.likelihood.variance.clone()
    vae.calibrate(x, mask=torch.zeros(12, dtype=torch.bool))
    assert torch.equal(vae.likelihood.variance, before)


@pytest.mark.parametrize("likelihood", MASKABLE)
def test_a_mask_that_hides_nothing_changes_nothing(likelihood):
    vae, x = made(likelihood), data_for(likelihood)
    z = draw(vae, x, torch.randn(12, 3))
    plain = bound(vae, x, z)
    for shape in ((12,), (12, *EVENT)):
        mask = torch.ones(shape, dtype=torch.bool)
        torch.testing.assert_close(bound(vae, x, z, mask=mask), plain)


@pytest.mark.parametrize("likelihood", MASKABLE)
def test_a_mask_that_hides_everything_leaves_nothing_of_x(likelihood):
    vae, x = made(likelihood), torch.full((12, *EVENT), math.nan)
    z = torch.randn(12, 3)
    zeros = torch.zeros(12, *EVENT)
    rate = vae.encode(zeros).log_prob(z) - vae.prior_distribution().log_prob(z)
    nothing = torch.zeros(12, *EVENT, dtype=torch.bool)
    value = bound(vae, x, z, mask=nothing)
    torch.testing.assert_close(value, -rate.sum())
    assert all(torch.isfinite(g).all() for g in gradients(value, vae).values())
    assert bound(vae, x, z, mask=nothing[:, 0, 0, 0]) == 0


@pytest.mark.parametrize("kind", ["rows", "elements"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("likelihood", FEW_LIKELIHOODS)
def test_every_objective_has_finite_gradients_behind_a_mask(likelihood, objective, kind):
    if kind == "elements" and likelihood not in MASKABLE:
        kind = "rows"
    vae, x = made(likelihood), data_for(likelihood)
    mask = ROWS if kind == "rows" else elements()
    OBJECTIVES[objective]().loss_and_grads(vae.model, vae.guide, spoiled(x, mask), mask=mask)
    grads = [p.grad for p in vae.parameters() if p.grad is not None]
    assert len(grads) == len(list(vae.parameters()))
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert any(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("analytic", [None, False])
def test_values_of_masked_rows_are_zero(analytic):
    vae, x = made(), data_for("bernoulli")
    loss = objectives.ELBO(analytic=analytic)
    values = loss.values(vae.model, vae.guide, spoiled(x, ROWS), mask=ROWS)
    assert (values.objective[~ROWS] == 0).all()
    assert (values.objective[ROWS] < 0).all()
    iwae = objectives.IWAE(4).values(vae.model, vae.guide, spoiled(x, ROWS), mask=ROWS)
    torch.testing.assert_close(iwae.objective[~ROWS], torch.zeros(4))


def test_masks_under_the_callers_plates():
    vae = made(plate=None)
    x = data_for("bernoulli").reshape(3, 4, *EVENT)
    mask = elements().reshape(3, 4, *EVENT)
    rows = ROWS.reshape(3, 4)

    def nested(side, **kwargs):
        with pyro.plate("a", 3, dim=-2), pyro.plate("b", 4, dim=-1):
            return poutine.trace(side).get_trace(**kwargs)

    for observed in (rows, mask):
        trace = nested(vae.model, x=spoiled(x, observed), mask=observed)
        trace.compute_log_prob()
        z = trace.nodes["vae.z"]["value"]
        base = vae.decode(z).base_dist.log_prob(spoiled(x, observed, 0.0))
        full = observed.reshape(observed.shape + (1,) * (5 - observed.dim())).expand(x.shape)
        expected = torch.where(full, base, 0.0).flatten(2).sum(-1)
        torch.testing.assert_close(trace.nodes["vae.x"]["log_prob"], expected)


def test_masked_rows_with_covariates():
    vae, x = made(covariate_dim=2), data_for("bernoulli")
    covariates, noise = torch.randn(12, 2), torch.randn(12, 3)
    q = vae.encode(spoiled(x, ROWS, 0.0), covariates)
    z = q.mean + q.stddev * noise
    masked = bound(vae, spoiled(x, ROWS), z, mask=ROWS, **given(covariates))
    q = vae.encode(x[ROWS], covariates[ROWS])
    kept = q.mean + q.stddev * noise[ROWS]
    assert_same(masked, bound(vae, x[ROWS], kept, **given(covariates[ROWS])), vae)


class Joint(likelihoods.Normal):
    """A likelihood that does not factorize over its elements."""

    def forward(self, features):
        loc = features.squeeze(-2)
        return dist.MultivariateNormal(loc, torch.eye(loc.shape[-1]))


WRONG = {
    "float": (lambda: torch.ones(12), "mask to be boolean, got torch.float32"),
    "integer": (lambda: torch.ones(12, dtype=torch.long), "mask to be boolean, got torch.int64"),
    "rows": (lambda: torch.ones(11, dtype=torch.bool), r"mask to have the shape of x.*\(11,\)"),
    "elements": (
        lambda: torch.ones(12, 8, 8, dtype=torch.bool),
        r"mask to have the shape of x, \(12, 1, 8, 8\), or of its batch, \(12,\)",
    ),
    "column": (lambda: torch.ones(12, 1, 1, 1, dtype=torch.bool), "mask to have the shape of x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks_are_refused(name):
    make, message = WRONG[name]
    vae, x = made(), data_for("bernoulli")
    for side in (vae.model, vae.guide):
        with pytest.raises(ValueError, match=f"Expected {message}"):
            side(x, mask=make())
    with pytest.raises(ValueError, match="Expected mask"):
        vae.check(x, make())


def test_a_mask_of_rows_yet_to_be_drawn_is_boolean_too():
    with pytest.raises(ValueError, match=r"Expected mask to be boolean, got torch\.float32"):
        made().model(n=3, mask=torch.ones(3))


def test_elements_of_a_joint_likelihood_cannot_be_masked():
    network = partial(networks.MLP, hidden=[4])
    vae = VAE((5,), 2, likelihood=Joint, encoder=network, decoder=network)
    x = torch.randn(3, 5)
    rows = torch.tensor([True, False, True])
    assert torch.isfinite(poutine.trace(vae.model).get_trace(x, mask=rows).log_prob_sum())
    with pytest.raises(ValueError, match="Expected a likelihood of independent elements"):
        vae.model(x, mask=torch.ones(3, 5, dtype=torch.bool))


def test_missing_values_must_be_declared():
    vae, x = made(), data_for("bernoulli")
    x[2, 0, 3, 3] = x[4, 0, 1, 1] = math.nan
    for call in (vae.check, vae.model, vae.guide):
        with pytest.raises(ValueError, match="Expected x to have no NaN, got 2: declare missing"):
            call(x)
    mask = ~torch.isnan(x)
    vae.check(x, mask)
    mask[2] = True
    with pytest.raises(ValueError, match="Expected x to have no NaN, got 1"):
        vae.check(x, mask)
