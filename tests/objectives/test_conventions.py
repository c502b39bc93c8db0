"""Objectives in Pyro's place: numbers, warnings, arguments, models that cannot be vectorized."""

import contextlib
import copy
import inspect
import math
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_vae
from pyro_vae import objectives
from pyro_vae.objectives import ELBO, GECO, IWAE, FreeBits, Objective, Renyi

MAKERS = {
    "elbo": ELBO,
    "stl": lambda *args, **kwargs: ELBO(*args, estimator="stl", **kwargs),
    "iwae": IWAE,
    "dreg": lambda *args, **kwargs: IWAE(*args, estimator="dreg", **kwargs),
    "renyi": Renyi,
    "free_bits": FreeBits,
    "geco": lambda *args, **kwargs: GECO(*args, target=1.0, **kwargs),
}
X = torch.tensor([0.5, -1.0, 2.0, 0.3])
FAILS = r"fail with all 5 particles at once.*vectorize_particles=False"


def model():
    """A matrix product whose left factor has no dimension for particles."""
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.t()[0], 1.0), obs=X)


def guide():
    loc = pyro.param("loc", torch.full((4, 2), 0.3))
    with pyro.plate("data", 4):
        pyro.sample("z", dist.Normal(loc, 0.8).to_event(1))


def gradient(objective, *pair):
    """The loss and the gradient of the guide's parameter, under one seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    loss = objective.loss_and_grads(*pair)
    return loss, pyro.get_param_store()._params["loc"].grad


@pytest.mark.parametrize("name", MAKERS)
def test_losses_are_numbers_and_the_differentiable_one_a_tensor(name):
    def plain():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def plain_guide():
        loc = pyro.param("loc", torch.zeros(4))
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(loc, 1.0))

    losses = []
    for method in ("loss", "loss_and_grads", "differentiable_loss"):
        pyro.set_rng_seed(0)
        losses.append(getattr(MAKERS[name](3), method)(plain, plain_guide))
    assert [type(loss) for loss in losses] == [float, float, torch.Tensor]
    assert losses[2].requires_grad
    assert losses[:2] == pytest.approx([losses[2].item()] * 2)


@pytest.mark.parametrize("method", ["loss", "loss_and_grads"])
@pytest.mark.parametrize("objective", [ELBO(), IWAE(3)], ids=["elbo", "iwae"])
def test_a_loss_of_nan_is_warned_of_as_in_pyro(objective, method):
    def broken():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("f", z * math.nan)

    def fine():
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))

    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="Encountered NaN: loss"):
        assert math.isnan(getattr(objective, method)(broken, fine))


def test_the_graph_is_retained_if_asked_for():
    loc = torch.zeros((), requires_grad=True)
    shared = loc.exp()

    def site():
        pyro.sample("z", dist.Normal(shared, 1.0))

    def prior():
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))

    for _ in range(2):
        ELBO(retain_graph=True).loss_and_grads(prior, site)
    ELBO().loss_and_grads(prior, site)
    with pytest.raises(RuntimeError, match="second time"):
        ELBO().loss_and_grads(prior, site)


def concrete(kind):
    return isinstance(kind, type) and issubclass(kind, Objective) and not inspect.isabstract(kind)


@pytest.mark.parametrize(
    "name", [name for name in objectives.__all__ if concrete(getattr(objectives, name))]
)
def test_arguments_of_pyros_objectives_without_a_meaning_here_are_accepted(name):
    kind = getattr(objectives, name)
    needed = {"GECO": {"target": 1.0}}.get(name, {})
    made = kind(4, strict_enumeration_warning=False, ignore_jit_warnings=True, **needed)
    assert made.num_particles == 4


@pytest.mark.parametrize("name", MAKERS)
def test_a_model_that_fails_at_once_is_run_once_per_particle_with_one_warning(name):
    expected = gradient(MAKERS[name](5, vectorize_particles=False), model, guide)
    objective = MAKERS[name](5)
    with pytest.warns(UserWarning, match=FAILS) as caught:
        found = [gradient(objective, model, guide)]
    assert len(caught) == 1
    assert "RuntimeError" in str(caught[0].message)
    assert f"{__file__}:" in str(caught[0].message)
    # A warning would be an error from here on.
    objective.values(model, guide)
    if name != "geco":
        found.append(gradient(objective, model, guide))
    for loss, grad in found:
        assert loss == expected[0]
        assert torch.equal(grad, expected[1])


def test_a_model_that_runs_at_once_stays_vectorized_beside_one_that_does_not():
    def simple():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=X)
        shapes.append(z.shape)

    objective, shapes = ELBO(5), []
    with pytest.warns(UserWarning, match=FAILS):
        objective.loss(model, guide)
    objective.loss(simple, guide)
    assert shapes[-1] == (5, 4, 2)


def test_a_failure_of_the_loop_is_raised_as_it_is():
    class OfTheUserError(Exception):
        pass

    def hopeless():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        calls.append(1)
        if len(calls) > 1:
            raise OfTheUserError

    calls = []
    with pytest.raises(OfTheUserError):
        ELBO(5).loss(hopeless, guide)


def test_a_failed_run_leaves_no_trace():
    norm = nn.BatchNorm1d(2, dtype=torch.float64)

    def spoiling():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            norm(z.double().reshape(-1, 2))
            noise.append((torch.rand(()).item(), random.random(), np.random.rand()))
            pyro.param(f"of_shape_{z.dim()}", torch.zeros(()))
            pyro.sample("x", dist.Normal(z.t()[0], 1.0), obs=X)

    noise = []
    states = []
    for vectorize in (False, True):
        pyro.clear_param_store()
        norm.reset_running_stats()
        pyro.set_rng_seed(0)
        noise.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ELBO(5, vectorize_particles=vectorize).loss(spoiling, guide)
        states.append((noise[-5:], norm.running_mean.clone(), norm.num_batches_tracked.item()))
        assert set(pyro.get_param_store()) == {"loc", "of_shape_2"}
    assert torch.equal(states[0][1], states[1][1])
    assert states[0][2] == states[1][2] == 5
    assert [n[0] for n in states[0][0]] == [n[0] for n in states[1][0]]


def test_particles_that_spread_over_data_are_noticed_without_validation():
    def spreading():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        # With particles its batch shape is (5,), to the right of them, and is broadcast to (5, 5).
        pyro.sample("x", dist.Normal(z[..., 0], 1.0).to_event(1), obs=X)

    with pyro.validation_enabled(False):
        expected = gradient(ELBO(5, vectorize_particles=False), spreading, guide)
        with pytest.warns(UserWarning, match="'x' has a log density of shape"):
            found = gradient(ELBO(5), spreading, guide)
    assert found[0] == expected[0]


@pytest.mark.parametrize("objective", [ELBO(5), IWAE(5)], ids=["elbo", "iwae"])
def test_a_discrete_site_is_refused_before_the_model_fails(objective):
    def discrete():
        with pyro.plate("data", 4):
            torch.eye(3)[pyro.sample("k", dist.Categorical(torch.ones(3)).mask(True))].t()

    with pytest.raises(ValueError, match=r"Expected reparameterized sites.*'k' from Categorical"):
        objective.loss(discrete, discrete)


@pytest.mark.parametrize("objective", [ELBO(4), IWAE(4)], ids=["elbo", "iwae"])
def test_a_missing_plate_is_refused_and_not_run_in_a_loop(objective):
    def bare():
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
        return torch.ones(3, 4) @ z

    with pytest.raises(ValueError, match="invalid log_prob shape"):
        objective.loss(bare, bare)


@pytest.mark.parametrize("objective", [ELBO(4), IWAE(4)], ids=["elbo", "iwae"])
def test_a_failure_later_on_is_caught_too(objective):
    def sometimes(wide):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z.t()[0] if wide else z[..., 0]
            pyro.sample("x", dist.Normal(mean, 1.0), obs=X)

    def either(wide):
        guide()

    objective.loss(sometimes, either, False)
    with pytest.warns(UserWarning, match="fail with all 4 particles at once"):
        objective.loss(sometimes, either, True)


@pytest.mark.parametrize("objective", [ELBO(), ELBO(analytic=False)])
def test_sites_of_other_shapes_in_model_and_guide_are_refused(objective):
    def calm():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=X)

    def other_shape():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"Model and guide shapes disagree at site 'z'"):
        objective.loss(calm, other_shape)


def test_no_hook_is_left_behind():
    from torch.nn.modules.module import _global_forward_pre_hooks

    with pytest.warns(UserWarning, match="fail with all 4 particles at once"):
        ELBO(4).loss(model, guide)
    ELBO().loss(model, guide)
    assert not _global_forward_pre_hooks


@pytest.mark.parametrize("method", ["loss", "differentiable_loss", "values"])
def test_the_warning_of_the_loop_points_at_the_caller(method):
    def narrow():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.t()[0], 1.0), obs=X)

    with pytest.warns(UserWarning, match="fail with all 4 particles at once") as caught:
        getattr(ELBO(4), method)(narrow, guide)
    assert caught[0].filename == __file__


def test_a_model_that_asserts_particles_runs_if_the_depth_of_plates_is_given():
    def asserting():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            assert z.shape == (5, 4, 2)
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=X)

    for make in (ELBO, IWAE):
        assert math.isfinite(make(5, max_plate_nesting=1).loss(asserting, guide))
        with pytest.raises(AssertionError):
            make(5).loss(asserting, guide)


def test_a_depth_of_plates_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"max_plate_nesting to be at least 1.*got 0"):
        ELBO(5, max_plate_nesting=0).loss(model, guide)


def test_a_step_of_svi_gives_the_number():
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO())
    assert type(svi.step()) is float
    assert type(svi.evaluate_loss()) is float


@pytest.mark.long
def test_a_compiled_step_holds_the_loop():
    def given(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.t()[0], 1.0), obs=x)

    def given_guide(x):
        guide()

    objective = IWAE(5)
    step = pyro_vae.compile(objective, given, given_guide, strict=True)
    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match=FAILS):
        losses = [step(X).item() for _ in range(3)]
    assert step.engine.startswith("compiled")
    pyro.set_rng_seed(0)
    eager = IWAE(5, vectorize_particles=False)
    assert losses == pytest.approx([eager.loss(given, given_guide, X) for _ in range(3)], rel=1e-5)


@pytest.mark.parametrize("objective", [ELBO(), IWAE(1)], ids=["elbo", "iwae"])
def test_shapes_are_checked_in_each_call_while_validation_is_enabled(objective):
    def sometimes(bare):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with contextlib.nullcontext() if bare else pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    def guide_of(bare):
        pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))

    fresh = copy.deepcopy(objective)
    assert math.isfinite(fresh.loss(lambda: sometimes(False), lambda: guide_of(False)))
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        fresh.loss(lambda: sometimes(True), lambda: guide_of(True))


def fine():
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=X)


class Counted:
    """A function that counts its calls, equal to all others of its kind, and without a hash."""

    def __init__(self, function):
        self.function, self.runs = function, 0

    def __call__(self):
        self.runs += 1
        return self.function()

    def __eq__(self, other):
        return isinstance(other, Counted)


@pytest.mark.parametrize("kind", [MemoryError, torch.OutOfMemoryError])
def test_a_full_memory_is_no_reason_for_a_loop(kind):
    full = False

    def filling():
        if full:
            raise kind("no memory left")
        fine()

    objective, counted = ELBO(4), Counted(guide)
    objective.loss(filling, counted)
    full = True
    with pytest.raises(kind):
        objective.loss(filling, counted)
    full, counted.runs = False, 0
    objective.loss(filling, counted)
    assert counted.runs == 1


def test_a_guide_that_fails_leaves_another_at_once():
    def failing():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            assert z.shape == (4, 2)

    objective, counted = ELBO(4), Counted(guide)
    with pytest.warns(UserWarning, match="fail with all 4 particles at once"):
        objective.loss(fine, failing)
    objective.loss(fine, counted)
    counted.runs = 0
    objective.loss(fine, counted)
    assert counted.runs == 1


def test_models_without_a_hash_are_looked_at_once():
    objective, one, other = ELBO(4), Counted(fine), Counted(model)
    objective.loss(one, guide)
    with pytest.warns(UserWarning, match="fail with all 4 particles at once"):
        objective.loss(other, guide)
    one.runs = other.runs = 0
    objective.loss(one, guide)
    objective.loss(other, guide)
    assert (one.runs, other.runs) == (1, 4)
