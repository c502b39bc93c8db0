"""Objectives against Pyro's own, on VAEs and on programs written by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger

from helpers.tables import FEW_POSTERIORS, FEW_PRIORS, NETWORKS, POSTERIOR_ROWS, PRIOR_ROWS
from pyro_vae import VAE
from pyro_vae.objectives import ELBO, IWAE, Renyi

X = torch.linspace(-1.0, 2.0, 6)
ROWS = torch.tensor([True, False, True, True, False, True])


def weight(name, start=0.3):
    """A parameter of the program."""
    return pyro.param(name, torch.tensor(start))


def positive(name, start=0.7):
    return pyro.param(name, torch.tensor(start), constraint=dist.constraints.positive)


class Program:
    """A model and a guide, and which of Pyro's objectives are right for them."""

    nesting = 1
    mean_field = True
    renyi = True

    def model(self):
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(weight("loc"), 1.0))
            pyro.sample("x", dist.Normal(weight("w") * z, positive("s")), obs=X)

    def guide(self):
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(weight("a") * X, positive("t")))


class Several(Program):
    def model(self):
        with pyro.plate("data", 6):
            z1 = pyro.sample("z1", dist.Normal(weight("loc"), 1.0))
            loc = weight("w") * torch.stack([z1, z1], -1)
            z2 = pyro.sample("z2", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1 + z2.sum(-1), positive("s")), obs=X)
            pyro.sample("y", dist.Bernoulli(logits=z1), obs=(X > 0).float())

    def guide(self):
        with pyro.plate("data", 6):
            z1 = pyro.sample("z1", dist.Normal(weight("a") * X, positive("t")))
            loc = weight("b") * torch.stack([z1, X.expand_as(z1)], -1)
            pyro.sample("z2", dist.Normal(loc, positive("u")).to_event(1))


class Nested(Program):
    nesting = 2
    renyi = False

    def model(self):
        with pyro.plate("groups", 2, dim=-2):
            u = pyro.sample("u", dist.Normal(weight("loc"), 1.0))
            with pyro.plate("data", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(u, 1.0))
                pyro.sample("x", dist.Normal(z, positive("s")), obs=X.reshape(2, 3))

    def guide(self):
        with pyro.plate("groups", 2, dim=-2):
            pyro.sample("u", dist.Normal(weight("a"), positive("t")))
            with pyro.plate("data", 3, dim=-1):
                pyro.sample("z", dist.Normal(weight("b") * X.reshape(2, 3), positive("v")))


class Pixels(Program):
    nesting = 2

    def model(self):
        with pyro.plate("data", 6, dim=-2):
            z = pyro.sample("z", dist.Normal(weight("loc"), 1.0))
            with pyro.plate("pixels", 4, dim=-1):
                pyro.sample("x", dist.Normal(z, positive("s")), obs=X[:, None].expand(6, 4))

    def guide(self):
        with pyro.plate("data", 6, dim=-2):
            pyro.sample("z", dist.Normal(weight("a") * X[:, None], positive("t")))


class Scaled(Program):
    renyi = False

    def model(self):
        with pyro.plate("data", 6):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(weight("loc"), 1.0))
            pyro.sample("x", dist.Normal(z, positive("s")), obs=X)

    def guide(self):
        with poutine.scale(scale=0.3):
            super().guide()


class Masked(Program):
    def model(self):
        with poutine.mask(mask=ROWS):
            super().model()

    def guide(self):
        with poutine.mask(mask=ROWS):
            super().guide()


class Deterministic(Program):
    renyi = False

    def model(self):
        pyro.deterministic("half", weight("w") / 2)
        super().model()


class Factor(Program):
    def model(self):
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(weight("loc"), 1.0))
            pyro.factor("f", -((weight("v") * z - X) ** 2))


class GuideFactor(Program):
    # TraceMeanField_ELBO leaves it out.
    mean_field = False

    def guide(self):
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(weight("a") * X, positive("t")))
            pyro.factor("g", weight("b") * z**2, has_rsample=True)


class Auxiliary(Program):
    # TraceMeanField_ELBO drops the log_density of a point mass.
    mean_field = False

    def guide(self):
        with pyro.plate("data", 6):
            u = pyro.sample("u", dist.Normal(weight("a"), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u * X, log_density=-X.abs().log().expand_as(u * X)))


class Sequential(Program):
    nesting = 0
    renyi = False

    def model(self):
        for i in pyro.plate("data", 3):
            z = pyro.sample(f"z_{i}", dist.Normal(weight("loc"), 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, positive("s")), obs=X[i])

    def guide(self):
        for i in pyro.plate("data", 3):
            pyro.sample(f"z_{i}", dist.Normal(weight("a") * X[i], positive("t")))


class Subsampled(Program):
    renyi = False

    def model(self):
        with pyro.plate("data", 6, subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(weight("loc"), 1.0))
            pyro.sample("x", dist.Normal(z, positive("s")), obs=X[rows])

    def guide(self):
        with pyro.plate("data", 6, subsample_size=2) as rows:
            pyro.sample("z", dist.Normal(weight("a") * X[rows], positive("t")))


class Global(Program):
    renyi = False

    def model(self):
        w = pyro.sample("w", dist.LogNormal(weight("loc"), 1.0))
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(0.0, w))
            pyro.sample("x", dist.Normal(z, positive("s")), obs=X)

    def guide(self):
        pyro.sample("w", dist.LogNormal(weight("b"), positive("v")))
        super().guide()


PROGRAMS = {cls.__name__.lower(): cls() for cls in (Program, *Program.__subclasses__())}
# Pyro is told how deep the plates are, since it draws from the random state to find it.
PARTICLES = {"one": (1, True), "at_once": (3, True), "one_by_one": (3, False)}


def step(objective, program):
    """The loss from a fixed random state, and the gradient of every parameter."""
    store = pyro.get_param_store()
    for _, parameter in store.named_parameters():
        parameter.grad = None
    pyro.set_rng_seed(3)
    loss = torch.as_tensor(objective.loss_and_grads(program.model, program.guide))
    grads = {name: parameter.grad for name, parameter in store.named_parameters()}
    pyro.set_rng_seed(3)
    torch.testing.assert_close(
        torch.as_tensor(objective.loss(program.model, program.guide)), loss, check_dtype=False
    )
    return loss, grads


def assert_same(ours, theirs, program):
    (loss, grads), (known, known_grads) = step(ours, program), step(theirs, program)
    torch.testing.assert_close(loss, known.to(loss.dtype), rtol=1e-5, atol=1e-5)
    assert grads.keys() == known_grads.keys()
    assert len(grads) >= 3
    for name, grad in grads.items():
        torch.testing.assert_close(grad, known_grads[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_sampled_elbo_is_trace_elbo(name, particles):
    program, (number, at_once) = PROGRAMS[name], PARTICLES[particles]
    stock = Trace_ELBO(number, vectorize_particles=at_once, max_plate_nesting=program.nesting)
    assert_same(ELBO(number, analytic=False, vectorize_particles=at_once), stock, program)


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("name", [name for name, p in PROGRAMS.items() if p.mean_field])
def test_closed_elbo_is_trace_mean_field_elbo(name, particles):
    program, (number, at_once) = PROGRAMS[name], PARTICLES[particles]
    stock = TraceMeanField_ELBO(
        number, vectorize_particles=at_once, max_plate_nesting=program.nesting
    )
    assert_same(ELBO(number, vectorize_particles=at_once), stock, program)


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("name", [name for name, p in PROGRAMS.items() if p.renyi])
def test_iwae_is_renyi_elbo_where_that_is_right(name, particles):
    program, (number, at_once) = PROGRAMS[name], PARTICLES[particles]
    stock = RenyiELBO(0, number, vectorize_particles=at_once, max_plate_nesting=program.nesting)
    assert_same(IWAE(number, vectorize_particles=at_once), stock, program)


@pytest.mark.parametrize("alpha", [-0.5, 0.5, 1.5])
@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("name", [name for name, p in PROGRAMS.items() if p.renyi])
def test_renyi_is_renyi_elbo_where_that_is_right(name, particles, alpha):
    program, (number, at_once) = PROGRAMS[name], PARTICLES[particles]
    run = {"vectorize_particles": at_once, "max_plate_nesting": program.nesting}
    assert_same(Renyi(number, alpha=alpha, **run), RenyiELBO(alpha, number, **run), program)


def vae_for(prior="normal", posterior="normal", network="mlp", **options):
    encoder, decoder = NETWORKS[network]
    return VAE(
        (1, 8, 8),
        3,
        prior=FEW_PRIORS[prior],
        posterior=FEW_POSTERIORS[posterior],
        encoder=encoder,
        decoder=decoder,
        **options,
    )


def step_vae(objective, vae, x, **options):
    """The loss from a fixed random state, and the gradient of every parameter."""
    vae.zero_grad()
    pyro.set_rng_seed(3)
    loss = torch.as_tensor(objective.differentiable_loss(vae.model, vae.guide, x, **options))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in vae.named_parameters()}


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("posterior", FEW_POSTERIORS)
@pytest.mark.parametrize("prior", FEW_PRIORS)
def test_vae_has_the_loss_and_gradient_of_pyro(prior, posterior, particles, binary):
    (number, at_once), vae = PARTICLES[particles], vae_for(prior, posterior)
    closed = POSTERIOR_ROWS[posterior].normal and PRIOR_ROWS[prior].normal
    for options in ({}, {"data_size": 100}, {"mask": torch.arange(12) % 3 > 0}):
        pairs = [(ELBO(number, analytic=False, vectorize_particles=at_once), Trace_ELBO)]
        if POSTERIOR_ROWS[posterior].pyro_kl or not closed:
            # Pyro has no closed form for a full covariance against independent normals.
            analytic = True if closed else None
            ours = ELBO(number, analytic=analytic, vectorize_particles=at_once)
            pairs.append((ours, TraceMeanField_ELBO))
        for ours, stock in pairs:
            theirs = stock(number, vectorize_particles=at_once, max_plate_nesting=1)
            loss, grads = step_vae(ours, vae, binary, **options)
            known, known_grads = step_vae(theirs, vae, binary, **options)
            torch.testing.assert_close(loss, known, rtol=1e-5, atol=1e-4)
            for name, grad in grads.items():
                torch.testing.assert_close(grad, known_grads[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_vae_has_the_importance_weighted_loss_of_pyro(network, binary):
    vae = vae_for(network=network)
    for at_once in (True, False):
        ours = IWAE(4, vectorize_particles=at_once)
        stock = RenyiELBO(0, 4, vectorize_particles=at_once, max_plate_nesting=1)
        losses, grads = [], []
        for objective in (ours, stock):
            vae.zero_grad()
            pyro.set_rng_seed(3)
            losses.append(float(objective.loss_and_grads(vae.model, vae.guide, binary)))
            grads.append([p.grad for p in vae.parameters()])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


class Scales(Program):
    """Two levels, the upper one positive, for guides that are made from the model."""

    def model(self):
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(0.0, w))
            pyro.sample("x", dist.Normal(z, 0.5), obs=X)


@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("make", [AutoNormal, AutoMultivariateNormal, AutoDelta])
def test_automatic_guides(make, particles):
    (number, at_once), program = PARTICLES[particles], Scales()
    program.guide = make(program.model)
    program.guide()
    stock = Trace_ELBO(number, vectorize_particles=at_once, max_plate_nesting=1)
    losses, grads = [], []
    for objective in (ELBO(number, vectorize_particles=at_once), stock):
        program.guide.zero_grad()
        pyro.set_rng_seed(3)
        losses.append(float(objective.loss_and_grads(program.model, program.guide)))
        grads.append([p.grad for p in program.guide.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(grads[0]) >= 2
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("particles", PARTICLES)
def test_effectful_guides(particles):
    (number, at_once), program = PARTICLES[particles], Scales()
    stock = Trace_ELBO(number, vectorize_particles=at_once, max_plate_nesting=1)
    losses = []
    for objective in (ELBO(number, analytic=False, vectorize_particles=at_once), stock):
        guide = AutoNormalMessenger(program.model)
        guide()
        pyro.set_rng_seed(3)
        losses.append(float(objective.loss(program.model, guide)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
