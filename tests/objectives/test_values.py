"""Objectives datum by datum, how training calls them, and that a step never waits for a value."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.tables import FEW_PRIORS
from helpers.truths import SIGMAS, exact_vae, linear_data, z_score
from pyro_vae import VAE, posteriors
from pyro_vae.objectives import ELBO, IWAE

X = torch.linspace(-1.0, 2.0, 6).reshape(2, 3)
ZERO = torch.zeros(())
OBJECTIVES = {
    "elbo": partial(ELBO, analytic=False),
    "closed": partial(ELBO, analytic=None),
    "half": partial(ELBO, beta=0.5),
    "iwae": IWAE,
}
PARTICLES = {"one": (1, True), "at_once": (4, True), "one_by_one": (4, False)}


def in_plates(vae, call):
    """Calls the VAE's model or guide in two plates of the caller's."""

    def run(x):
        with pyro.plate("groups", 2, dim=-2), pyro.plate("data", 3, dim=-1):
            return call(x)

    return run


def same_noise(*calls):
    """The results of calls from one random state."""
    out = []
    for call in calls:
        pyro.set_rng_seed(1)
        out.append(call())
    return out


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_of_a_vae(name, particles, binary):
    (number, at_once), vae = PARTICLES[particles], VAE((1, 8, 8), 3)
    objective = OBJECTIVES[name](number, vectorize_particles=at_once)
    for scale, options in ((1, {}), (5, {"data_size": 60})):
        args = (vae.model, vae.guide, binary)
        values, loss = same_noise(
            partial(objective.values, *args, **options),
            partial(objective.differentiable_loss, *args, **options),
        )
        assert values.objective.shape == (12,)
        assert values.rate.keys() == {"vae.z"}
        assert values.log_likelihood.keys() == {"vae.x"}
        assert values.rate["vae.z"].shape == values.log_likelihood["vae.x"].shape == (12,)
        torch.testing.assert_close(-scale * values.objective.sum(), loss)


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_values_have_the_shape_of_the_callers_plates(name, particles, binary):
    (number, at_once), vae = PARTICLES[particles], VAE((1, 8, 8), 3, plate=None)
    objective = OBJECTIVES[name](number, vectorize_particles=at_once)
    args = (in_plates(vae, vae.model), in_plates(vae, vae.guide), binary[:6].reshape(2, 3, 1, 8, 8))
    values, loss = same_noise(
        partial(objective.values, *args), partial(objective.differentiable_loss, *args)
    )
    assert values.objective.shape == (2, 3)
    assert values.rate["vae.z"].shape == values.log_likelihood["vae.x"].shape == (2, 3)
    torch.testing.assert_close(-values.objective.sum(), loss)
    if name == "iwae":
        assert values.log_weights.shape == (number, 2, 3)
    else:
        assert values.log_weights is None


def test_values_are_what_they_say():
    truth, x = linear_data(50)
    vae = exact_vae(truth, shift=0.15, inflate=1.5)
    q, number = vae.encode(x), 200
    known = (
        -truth.distortion(x, q.mean, q.covariance_matrix),
        torch.distributions.kl_divergence(q, vae.prior_distribution().expand(q.batch_shape)),
    )
    for objective in (ELBO(number, analytic=False), ELBO(number, analytic=True), IWAE(number)):
        runs = [objective.values(vae.model, vae.guide, x) for _ in range(20)]
        for expected, found in zip(
            known,
            ([v.log_likelihood["vae.x"] for v in runs], [v.rate["vae.z"] for v in runs]),
            strict=True,
        ):
            sums = torch.stack(found).sum(1).detach()
            if sums.std() < 1e-8:
                torch.testing.assert_close(sums[0], expected.sum().detach())
            else:
                assert abs(z_score(sums, expected.sum().item())) < SIGMAS


@pytest.mark.parametrize("at_once", [True, False])
def test_log_weights_make_the_bound(at_once, binary):
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS["mixture"])
    values = IWAE(7, vectorize_particles=at_once).values(vae.model, vae.guide, binary)
    assert values.log_weights.shape == (7, 12)
    bound = values.log_weights.logsumexp(0) - math.log(7)
    torch.testing.assert_close(values.objective, bound)
    elbo = values.log_likelihood["vae.x"] - values.rate["vae.z"]
    torch.testing.assert_close(values.log_weights.mean(0), elbo)


def grouped(observe):
    """A latent variable for each group, one for each datum in it, and pixels in that."""
    with pyro.plate("groups", 2, dim=-2):
        u = pyro.sample("u", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(u, 1.0))
            with pyro.plate("pixels", 4, dim=-3):
                if observe:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=X.expand(4, 2, 3))


def test_values_stop_at_the_plates_that_all_sites_share():
    args = (partial(grouped, True), partial(grouped, False))
    for objective in (ELBO(), ELBO(4), ELBO(4, vectorize_particles=False)):
        values, loss = same_noise(
            partial(objective.values, *args), partial(objective.differentiable_loss, *args)
        )
        assert values.objective.shape == (2,)
        assert {name: v.shape for name, v in values.rate.items()} == {"u": (2,), "z": (2,)}
        assert values.log_likelihood["x"].shape == (2,)
        torch.testing.assert_close(-values.objective.sum(), loss)


def test_values_of_what_is_shared_by_all_data():
    def run(observe):
        w = pyro.sample("w", dist.Normal(ZERO, 1.0))
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0), obs=X.flatten())

    args = (partial(run, True), partial(run, False))
    values, loss = same_noise(
        partial(ELBO(4).values, *args), partial(ELBO(4).differentiable_loss, *args)
    )
    assert values.objective is None
    assert {name: v.shape for name, v in values.rate.items()} == {"w": (), "z": (6,)}
    total = sum(v.sum() for v in values.rate.values()) - values.log_likelihood["x"].sum()
    torch.testing.assert_close(total, loss)


def test_values_of_a_row_that_is_masked_out_are_zero(binary):
    vae, mask = VAE((1, 8, 8), 3), torch.arange(12) > 3
    for objective in (ELBO(), IWAE(3)):
        values = objective.values(vae.model, vae.guide, binary, mask=mask)
        assert torch.equal(values.objective != 0, mask)


class NoReading(TorchDispatchMode):
    """Raises where the host would wait for what a tensor holds."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if function is torch.ops.aten.index.Tensor:
            # Whole numbers as indices say beforehand how large the result is.
            reads = set() if all(i is None or i.dtype == torch.long for i in args[1]) else reads
        if reads & set(function.tags):
            raise AssertionError(f"{function} reads a tensor")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("posterior", [posteriors.Normal, posteriors.Full])
@pytest.mark.parametrize("prior", FEW_PRIORS)
def test_a_step_reads_no_tensor(prior, posterior, binary):
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS[prior], posterior=posterior)
    mask, beta = torch.arange(12) > 3, torch.tensor(0.5)
    made = [ELBO(beta=beta), ELBO(3, beta=beta), ELBO(3, vectorize_particles=False), IWAE(3)]
    with pyro.validation_enabled(False), NoReading():
        for objective in made:
            for options in ({"data_size": 100}, {"mask": mask}):
                objective.differentiable_loss(vae.model, vae.guide, binary, **options).backward()
                objective.values(vae.model, vae.guide, binary, **options)
    assert all(p.grad is not None for p in vae.parameters())


def test_a_step_of_pyros_own_reads_one(binary):
    vae = VAE((1, 8, 8), 3)
    with pyro.validation_enabled(False), NoReading(), pytest.raises(AssertionError, match="reads"):
        Trace_ELBO().loss_and_grads(vae.model, vae.guide, binary)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_svi_and_torch_train_every_parameter_alike(name, binary):
    vae = VAE((1, 8, 8), 3, prior=FEW_PRIORS["normal_learned"])
    start = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": 1e-3}), OBJECTIVES[name](2))
    pyro.set_rng_seed(1)
    loss = svi.step(binary)
    by_svi = [p.detach().clone() for p in vae.parameters()]
    with torch.no_grad():
        for parameter, value in zip(vae.parameters(), start, strict=True):
            parameter.copy_(value)
    module = OBJECTIVES[name](2)(vae.model, vae.guide)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    optimizer.zero_grad()
    pyro.set_rng_seed(1)
    other = module(binary)
    other.backward()
    optimizer.step()
    assert loss == pytest.approx(other.item(), rel=1e-6)
    for ours, theirs, before in zip(vae.parameters(), by_svi, start, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, before)


def test_weights_for_each_datum_scale_each_datum():
    vae, x = VAE((1, 8, 8), 2), torch.ones(5, 1, 8, 8)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    model, guide = poutine.scale(vae.model, weight), poutine.scale(vae.guide, weight)
    losses = []
    for objective in (ELBO(analytic=False), Trace_ELBO()):
        torch.manual_seed(0)
        losses.append(float(objective.loss_and_grads(model, guide, x)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
