"""Latent sites that data share, and batches that stand for all data: against exact evidence.

w ~ N(0, 1), for all data or for each group of them; z ~ N(w, 1); x given z ~ N(z, 1). The guide
is the posterior, or spoilt by a known amount.
"""

import math
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from helpers.designs import cover, keep
from helpers.truths import SIGMAS, family_limit, z_score
from pyro_vae.objectives import (
    CIWAE,
    ELBO,
    GECO,
    IWAE,
    MIWAE,
    PIWAE,
    Capacity,
    FreeBits,
    Jackknife,
    Renyi,
)

GROUPS, ROWS = 3, 20


def data():
    generator = torch.Generator().manual_seed(4)
    return 1.5 * torch.randn(GROUPS, ROWS, generator=generator, dtype=torch.float64) + 1.0


class Shared(NamedTuple):
    """The model and its guide, w for each group or for all."""

    x: torch.Tensor
    by_group: bool
    shift: float = 0.0
    inflate: float = 1.0

    def groups(self):
        return pyro.plate("groups", GROUPS, dim=-2)

    def model(self):
        if not self.by_group:
            w = pyro.sample("w", dist.Normal(self.x.new_zeros(()), 1.0))
        with self.groups():
            if self.by_group:
                w = pyro.sample("w", dist.Normal(self.x.new_zeros(()), 1.0))
            with pyro.plate("data", ROWS, dim=-1):
                z = pyro.sample("z", dist.Normal(w, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=self.x)

    def posterior_of_w(self):
        """Mean and scale of w, which x informs with a variance of 2."""
        sums = self.x.sum(1, keepdim=True) if self.by_group else self.x.sum()
        precision = 1 + (ROWS if self.by_group else GROUPS * ROWS) / 2
        scale = (self.inflate / precision) ** 0.5
        return sums / 2 / precision + self.shift, torch.full_like(sums, scale)

    def guide(self):
        if not self.by_group:
            w = pyro.sample("w", dist.Normal(*self.posterior_of_w()))
        with self.groups():
            if self.by_group:
                w = pyro.sample("w", dist.Normal(*self.posterior_of_w()))
            with pyro.plate("data", ROWS, dim=-1):
                scale = (self.inflate / 2) ** 0.5
                pyro.sample("z", dist.Normal((w + self.x) / 2 + self.shift, scale))

    def evidence(self):
        """log p(x)."""
        rows = self.x if self.by_group else self.x.reshape(1, -1)
        size = rows.shape[1]
        covariance = 2 * torch.eye(size, dtype=rows.dtype) + torch.ones(size, size)
        normal = torch.distributions.MultivariateNormal(rows.new_zeros(size), covariance)
        return normal.log_prob(rows).sum().item()

    def bound_of_locals_alone(self):
        """E[log p(w) - log q(w) + sum log p(x given w)]: what more samples of z lead to."""
        loc, scale = self.posterior_of_w()
        rate = 0.5 * (scale**2 + loc**2 - 1) - scale.log()
        distortion = 0.5 * math.log(4 * math.pi) + ((self.x - loc) ** 2 + scale**2) / 4
        return -(rate.sum() + distortion.sum()).item()


WEIGHTED = {
    "iwae": IWAE,
    "iwae_dreg": partial(IWAE, estimator="dreg"),
    "ciwae": CIWAE,
    "miwae": partial(MIWAE, groups=2),
    "renyi": Renyi,
    "jackknife": partial(Jackknife, guide_bound="jackknife"),
}


@pytest.mark.parametrize("by_group", [False, True])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("name", WEIGHTED)
def test_with_the_posterior_every_draw_of_the_bound_is_the_evidence(name, at_once, by_group):
    exact = Shared(data(), by_group)
    objective = WEIGHTED[name](6, vectorize_particles=at_once)
    for loss in (objective.loss, objective.differentiable_loss):
        for _ in range(3):
            found = torch.as_tensor(loss(exact.model, exact.guide)).detach()
            assert found.item() == pytest.approx(-exact.evidence())


@pytest.mark.parametrize("by_group", [False, pytest.param(True, marks=pytest.mark.long)])
def test_data_are_independent_given_what_they_share(by_group):
    """With many samples the bound is that of the locals integrated out, and not the evidence."""
    pyro.set_rng_seed(2)
    spoilt = Shared(data(), by_group, shift=0.2, inflate=1.5)
    evidence, limit = spoilt.evidence(), spoilt.bound_of_locals_alone()
    bounds = {}
    for size, number in ((1, 300), (5, 300), (2000, 200)):
        losses = [IWAE(size).loss(spoilt.model, spoilt.guide) for _ in range(number)]
        bounds[size] = -torch.tensor(losses)
    assert z_score(bounds[1], limit) < -SIGMAS
    assert z_score(bounds[5], limit) < -SIGMAS
    assert abs(z_score(bounds[2000], limit)) < SIGMAS
    assert z_score(bounds[2000], evidence) < -SIGMAS


@pytest.mark.parametrize("estimator", keep(["dreg"], ["stl", "dreg"]))
def test_a_loop_has_the_gradient_of_a_vectorized_run_for_global_sites(estimator):
    """Samples that all particles share are not detached in a loop either."""
    spoilt, shift = Shared(data(), by_group=False), torch.tensor(0.2, requires_grad=True)
    guide = spoilt._replace(shift=shift, inflate=1.5).guide
    gradients = {}
    for at_once in (True, False):
        pyro.set_rng_seed(int(at_once))
        objective = IWAE(3, estimator=estimator, vectorize_particles=at_once)
        draws = [
            torch.autograd.grad(objective.differentiable_loss(spoilt.model, guide), shift)[0]
            for _ in range(150)
        ]
        gradients[at_once] = torch.stack(draws)
    difference = gradients[True].double() - gradients[False].double()
    assert abs(z_score(gradients[True].double())) > SIGMAS
    assert abs(z_score(difference)) < SIGMAS


def test_values_tell_what_is_shared():
    shared = Shared(data(), by_group=True, shift=0.2, inflate=1.5)
    for objective in (IWAE(5), IWAE(5, vectorize_particles=False), ELBO(5, analytic=False)):
        pyro.set_rng_seed(1)
        values = objective.values(shared.model, shared.guide)
        assert values.objective is None or values.objective.shape == (GROUPS,)
        assert values.rate["w"].shape[0] == GROUPS
        assert values.rate["z"].shape[0] == GROUPS
    values = IWAE(5).values(shared.model, shared.guide)
    assert values.objective is None
    assert values.log_weights.shape == (5, GROUPS, ROWS)
    pyro.set_rng_seed(3)
    values = IWAE(5).values(shared.model, shared.guide)
    pyro.set_rng_seed(3)
    loss = IWAE(5).differentiable_loss(shared.model, shared.guide)
    local = (values.log_weights.logsumexp(0) - math.log(5)).sum()
    torch.testing.assert_close(loss, values.rate["w"].sum() - local)


def test_what_is_shared_is_drawn_once():
    shared, seen = Shared(data(), by_group=False), []

    def guide():
        shared.guide()

    def model():
        with poutine.trace() as trace:
            shared.model()
        seen.append(trace.trace.nodes["w"]["value"])

    for objective in (IWAE(4), IWAE(4, max_plate_nesting=2), IWAE(4, vectorize_particles=False)):
        seen.clear()
        objective.loss(model, guide)
        drawn = torch.stack([value.flatten()[0] for value in seen[-4:]])
        if objective.vectorize_particles:
            drawn = seen[-1].flatten()
            assert seen[-1].shape == (4, 1, 1)
        assert len(drawn) == 4
        assert (drawn == drawn[0]).all()


def late(side):
    """A site shared by all data, after one of a datum."""

    def run():
        if side == "early":
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", ROWS):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        if side == "late":
            pyro.sample("w", dist.Normal(0.0, 1.0))

    return run


def aside(names):
    """Latent sites in two plates of one dimension."""

    def run():
        for name in names:
            with pyro.plate(f"data_{name}", ROWS):
                pyro.sample(name, dist.Normal(torch.zeros(()), 1.0))

    return run


@pytest.mark.parametrize("objective", [IWAE(3), IWAE(3, vectorize_particles=False), Renyi(3)])
def test_what_would_be_no_bound_is_refused(objective):
    for sides, message in (
        (("late", "early"), r"'w' after 'z' in the model.*use ELBO"),
        (("early", "late"), r"'w' after 'z' in the guide.*use ELBO"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.loss(*map(late, sides))
    with pytest.raises(ValueError, match=r"\['b'\] in other plates than \['a'\].*use ELBO"):
        objective.loss(aside("ab"), aside("ab"))


MANY, BATCH = 1000, 100


class Noise(NamedTuple):
    """Draws that are known beforehand, one for w and ``(particles, rows)`` for z."""

    w: torch.Tensor
    z: torch.Tensor


def normal_with(noise):
    """A normal distribution that draws by the noise it is told."""

    class Given(dist.Normal):
        def rsample(self, sample_shape=()):
            # The run that tells the depth of plates has no particles.
            particles = noise.dim() > self.loc.dim() > 0
            return self.loc + self.scale * (noise[0] if particles else noise)

    return Given


class Sampled(NamedTuple):
    """Data of a plate that may be subsampled, with or without a w that all share."""

    shared: bool
    parameters: tuple[torch.Tensor, ...]
    mask: torch.Tensor | None = None

    def plate(self, x, size):
        return pyro.plate("data", size, subsample=torch.arange(len(x)), dim=-1)

    def masked(self):
        return nullcontext() if self.mask is None else poutine.mask(mask=self.mask)

    def model(self, x, noise, size):
        a, _, _ = self.parameters
        w = pyro.sample("w", dist.Normal(a, 1.0)) if self.shared else a
        with self.plate(x, size), self.masked():
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z * a, 1.0), obs=x)

    def guide(self, x, noise, size):
        _, b, c = self.parameters
        w = pyro.sample("w", normal_with(noise.w)(b, 0.3)) if self.shared else b
        with self.plate(x, size), self.masked():
            pyro.sample("z", normal_with(noise.z)((w + x) / 2, c.exp()))

    def loss_and_grads(self, objective, x, noise, size):
        loss = objective.differentiable_loss(self.model, self.guide, x, noise, size)
        return torch.stack([loss.detach(), *torch.autograd.grad(loss, self.parameters)])


ADDITIVE = {
    **{f"elbo_{beta}": partial(ELBO, beta=beta) for beta in (0.0, 0.5, 1.0)},
    "elbo_stl": partial(ELBO, estimator="stl"),
    "free_bits": partial(FreeBits, nats=0.6, per="site", of="datum"),
    "iwae": IWAE,
    "iwae_stl": partial(IWAE, estimator="stl"),
    "iwae_dreg": partial(IWAE, estimator="dreg"),
    **{f"ciwae_{beta}": partial(CIWAE, beta=beta) for beta in (0.0, 0.5, 1.0)},
    "miwae": partial(MIWAE, groups=3),
    "renyi": partial(Renyi, alpha=0.3),
    "vr_max": partial(Renyi, alpha=-math.inf),
    "jackknife": partial(Jackknife, order=2, guide_bound="jackknife"),
}
ALONE = {
    "geco": partial(GECO, target=0.5, step_size=0.0, multiplier=2.0),
    "piwae": partial(PIWAE, groups=3),
    "jackknife_elbo": Jackknife,
}


def sampled(shared, mask=None):
    parameters = tuple(
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.8, 0.4, -0.5)
    )
    generator = torch.Generator().manual_seed(9)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    return Sampled(shared, parameters, mask), normal(MANY), Noise(normal(()), normal(6, MANY))


@pytest.mark.parametrize(
    ("name", "shared"),
    [(name, shared) for name in ADDITIVE for shared in (False, True)]
    + [(name, False) for name in ALONE],
)
def test_batches_of_a_plate_average_to_all_data(name, shared):
    setting, x, noise = sampled(shared)
    objective = (ADDITIVE | ALONE)[name](6, max_plate_nesting=1)
    full = setting.loss_and_grads(objective, x, noise, MANY)
    batches = [
        setting.loss_and_grads(objective, rows, Noise(noise.w, part), MANY)
        for rows, part in zip(x.split(BATCH), noise.z.split(BATCH, 1), strict=True)
    ]
    assert len(batches) == 10
    torch.testing.assert_close(torch.stack(batches).mean(0), full)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ADDITIVE)
def test_a_mask_leaves_the_rows_that_it_hides_out(name, shared):
    setting, x, noise = sampled(shared)
    mask = torch.arange(MANY) % 3 > 0
    objective = ADDITIVE[name](6, max_plate_nesting=1)
    hidden = setting._replace(mask=mask).loss_and_grads(objective, x, noise, MANY)
    rows, part = x[mask], noise.z[:, mask]
    shown = setting.loss_and_grads(objective, rows, Noise(noise.w, part), len(rows))
    torch.testing.assert_close(hidden, shown)


BELOW = {
    "elbo": ELBO,
    "beta_2": partial(ELBO, beta=2.0),
    "free_bits": partial(FreeBits, nats=0.1, per="site"),
    "free_bits_datum": partial(FreeBits, nats=0.1, per="site", of="datum"),
    "iwae": IWAE,
    "ciwae": CIWAE,
    "miwae": partial(MIWAE, groups=3),
    "renyi": partial(Renyi, alpha=0.5),
}
ABOVE = {
    "beta_0": partial(ELBO, beta=0.0),
    "vr_max": partial(Renyi, alpha=-math.inf),
    "renyi_minus_10": partial(Renyi, alpha=-10.0),
}


@pytest.mark.parametrize(("name", "by_group"), cover([*BELOW, *ABOVE], [None, False, True]))
def test_what_is_called_a_bound_stays_below_the_evidence(name, by_group):
    """None: no site is shared. Half of the rows stand for all, drawn anew each time."""
    pyro.set_rng_seed(11)
    setting = Shared(data(), bool(by_group), shift=0.1, inflate=1.3)
    evidence = setting.evidence()
    model, guide = setting.model, setting.guide
    if by_group is None:
        model, guide, evidence = without_shared(setting)
    objective = (BELOW | ABOVE)[name](6)
    bounds = -torch.tensor([objective.loss(model, guide) for _ in range(200)])
    score = z_score(bounds, evidence)
    if name in BELOW:
        assert score < family_limit(3 * len(BELOW))
    else:
        assert score > SIGMAS


def without_shared(setting):
    """A model of local sites alone, its guide, and its evidence, the plate subsampled by half."""
    x = setting.x.flatten()
    half = len(x) // 2

    def model():
        with pyro.plate("data", len(x), subsample_size=half) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide():
        with pyro.plate("data", len(x), subsample_size=half) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2 + setting.shift, (setting.inflate / 2) ** 0.5))

    return model, guide, dist.Normal(0.0, 2.0**0.5).log_prob(x).sum().item()


def rates_model(loc):
    """A latent site whose rate differs from datum to datum, nothing observed."""

    def model():
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(loc.new_zeros(1), 1.0).to_event(1))

    def guide():
        with pyro.plate("data", len(loc)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide


def excess(make, size, repeats=4000):
    """By how much the mean over batches of a size exceeds the loss of all data, per datum."""
    generator = torch.Generator().manual_seed(5)
    loc = torch.randn(10_000, 1, generator=generator, dtype=torch.float64)
    of_all = make().differentiable_loss(*rates_model(loc)) / len(loc)
    rates = (loc**2 / 2).squeeze(1)
    index = torch.randint(len(loc), (repeats, size), generator=generator)
    # One batch by the objective itself; the others by its formula, which that one confirms.
    by_formula = penalty_of(make(), rates[index].mean(1))
    by_objective = make().differentiable_loss(*rates_model(loc[index[0]])) / size
    torch.testing.assert_close(by_objective, by_formula[0])
    return (by_formula.mean() - of_all).item()


def penalty_of(objective, mean):
    """The penalty of a batch's mean rate, per datum."""
    if isinstance(objective, Capacity):
        return objective.gamma * (mean - objective.capacity).abs()
    return mean.clamp(min=objective.nats)


@pytest.mark.parametrize(
    "make", [partial(Capacity, capacity=0.5, gamma=2.0), partial(FreeBits, nats=0.5)]
)
def test_what_depends_on_the_batch_does_so_the_less_the_larger_it_is(make):
    """The mean rate, 1/2, is at the threshold, where the dependence is strongest."""
    small, middle, large = (excess(make, size) for size in (10, 160, 2560))
    assert small > middle > large > 0
    assert small / middle == pytest.approx(4.0, rel=0.25)
    assert middle / large == pytest.approx(4.0, rel=0.35)


def test_away_from_the_threshold_the_batch_hardly_matters():
    assert abs(excess(partial(FreeBits, nats=0.1), 160)) < 1e-2 * excess(
        partial(FreeBits, nats=0.5), 10
    )


@pytest.mark.parametrize("size", [10, pytest.param(160, marks=pytest.mark.long)])
def test_the_multiplier_scatters_the_less_the_larger_the_batch(size):
    def run(seed, size):
        generator = torch.Generator().manual_seed(seed)
        objective = GECO(target=1.4, step_size=0.01, momentum=0.9)

        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

        for _ in range(20):
            objective.differentiable_loss(model, guide, torch.randn(size, generator=generator))
        return objective.multiplier.log()

    spread = torch.stack([run(seed, size) for seed in range(60)]).std()
    wider = torch.stack([run(100 + seed, size // 5) for seed in range(60)]).std()
    assert 1.4 < wider / spread < 3.6


def test_geco_follows_the_constraint_it_is_given():
    """The multiplier moves as the paper's rule says, step by step, and only while training."""
    objective = GECO(target=1.0, step_size=0.1, momentum=0.75, multiplier=2.0)
    x = torch.tensor([2.0, 0.0])

    def model():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(torch.ones(()), 1.0))

    constraint = 0.5 * math.log(2 * math.pi) + 1.0 - 1.0
    multiplier = 2.0
    for _ in range(3):
        for evaluate in (objective.loss, objective.differentiable_loss):
            assert float(evaluate(model, guide)) == pytest.approx(
                2 * (0.5 + multiplier * constraint), rel=1e-6
            )
        multiplier *= math.exp(0.1 * constraint)
        assert objective.multiplier.item() == pytest.approx(multiplier, rel=1e-6)
    twin = GECO(target=1.0)
    twin.load_state_dict(objective.state_dict())
    assert torch.equal(twin.multiplier, objective.multiplier)
    objective.average.fill_(4.0)
    objective.differentiable_loss(model, guide)
    assert objective.average.item() == pytest.approx(0.75 * 4.0 + 0.25 * constraint, rel=1e-6)


@pytest.mark.parametrize("objective", [PIWAE(4), Jackknife(4)])
def test_what_both_of_two_bounds_would_train_is_refused(objective):
    shared = Shared(data(), by_group=False)
    with pytest.raises(
        ValueError, match=r"outside of the data plates for (PIWAE|Jackknife).*Use IWAE or MIWAE"
    ):
        objective.loss(shared.model, shared.guide)


@pytest.mark.parametrize("objective", [Capacity(), GECO(target=1.0)])
def test_means_per_datum_need_all_sites_within_the_plates(objective):
    shared = Shared(data(), by_group=False)
    with pytest.raises(ValueError, match=r"within the same data plates.*\['w'\] outside.*Use ELBO"):
        objective.loss(shared.model, shared.guide)


def two_dimensions(observe, loc):
    with pyro.plate("data", 4):
        base = dist.Normal(torch.zeros(2), 1.0) if observe else dist.Normal(loc, 0.5)
        pyro.sample("z", base.to_event(1))


def test_free_bits_are_what_they_are_defined_as():
    loc = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    pair = (partial(two_dimensions, True, loc), partial(two_dimensions, False, loc))
    rates = 0.5 * (0.25 + loc**2 - 1) - math.log(0.5)
    nats = 1.0
    expected = {
        ("dimension", "batch"): 4 * rates.mean(0).clamp(min=nats).sum(),
        ("site", "batch"): 4 * rates.sum(1).mean(0).clamp(min=nats),
        ("dimension", "datum"): rates.clamp(min=nats).sum(),
        ("site", "datum"): rates.sum(1).clamp(min=nats).sum(),
    }
    assert len({round(value.item(), 4) for value in expected.values()}) == 4
    for (per, of), value in expected.items():
        for particles in (1, 3):
            for at_once in (True, False):
                objective = FreeBits(
                    particles, nats=nats, per=per, of=of, vectorize_particles=at_once
                )
                torch.testing.assert_close(objective.differentiable_loss(*pair), value)
        sampled = FreeBits(5000, nats=nats, per=per, of=of, analytic=False)
        losses = torch.tensor([sampled.loss(*pair) for _ in range(20)])
        # Every rate is drawn, also where a closed form is known.
        assert 0 < abs(losses.mean() - value) < 0.2
        assert losses.std() > 0
    values = ELBO().values(*pair)
    torch.testing.assert_close(values.rate_per_dimension["z"], rates)


def test_capacity_is_that_of_the_batch_mean():
    loc = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    pair = (partial(two_dimensions, True, loc), partial(two_dimensions, False, loc))
    mean = (0.5 * (0.25 + loc**2 - 1) - math.log(0.5)).sum(1).mean()
    for capacity in (0.0, mean.item() + 1.5):
        expected = 4 * 3.0 * (mean - capacity).abs()
        loss = Capacity(capacity=capacity, gamma=3.0).differentiable_loss(*pair)
        torch.testing.assert_close(loss, expected)


def test_free_bits_by_dimension_need_dimensions():
    def model():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))

    with pytest.raises(ValueError, match=r"factorize over the dimensions of 'z'.*use per='site'"):
        FreeBits().loss(model, model)
    assert FreeBits(per="site", nats=1.0).loss(model, model) == 4.0


@pytest.mark.parametrize(
    ("objective", "at_once"),
    cover([IWAE, Jackknife, partial(FreeBits, nats=0.0, per="site")], [True, False]),
)
def test_particles_of_a_datum_are_particles_of_the_same_rows(objective, at_once):
    """With the posterior a batch's bound is the evidence of its rows; their mean that of all."""
    x = data().flatten()

    def plate():
        return pyro.plate("data", len(x), subsample_size=4)

    def model():
        with plate() as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide():
        with plate() as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 0.5**0.5))

    made = objective(8, vectorize_particles=at_once)
    bounds = -torch.tensor([made.loss(model, guide) for _ in range(400)])
    evidence = dist.Normal(0.0, 2.0**0.5).log_prob(x).sum().item()
    assert abs(z_score(bounds, evidence)) < SIGMAS
    values = IWAE(8, vectorize_particles=at_once).values(model, guide)
    assert (values.log_weights.std(0) < 1e-12).all()


def plain(scale=1.0, observe=True, mask=None, loc=0.0):
    """A latent site scaled or masked, and an observation that is not."""
    x = torch.tensor([0.5, -1.0, 2.0])

    def run():
        with pyro.plate("data", 3):
            handler = poutine.mask(mask=mask) if mask is not None else poutine.scale(scale=scale)
            with handler:
                z = pyro.sample("z", dist.Normal(torch.full((), loc), 1.0))
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return run


def test_a_threshold_is_refused_where_there_is_no_one_kl():
    for model in (plain(scale=0.1), plain(mask=torch.tensor([True, False, True]))):
        with pytest.raises(ValueError, match=r"scale and mask in guide and model at 'z'.*Use ELBO"):
            FreeBits(per="site").loss(model, plain(observe=False))


def test_a_scale_of_all_sites_weighs_the_data():
    scaled = [poutine.scale(part, scale=0.25) for part in (plain(), plain(observe=False, loc=1.0))]
    whole = (plain(), plain(observe=False, loc=1.0))
    for make in (
        partial(Capacity, capacity=1.0, gamma=2.0),
        partial(FreeBits, nats=1.0),
        partial(GECO, target=0.5),
    ):
        losses = []
        for pair in (whole, scaled):
            pyro.set_rng_seed(1)
            losses.append(make().loss(*pair))
        assert losses[1] == pytest.approx(losses[0] / 4, rel=1e-5)


def test_data_in_plates_apart_have_no_mean():
    for objective in (Capacity(), GECO(target=1.0)):
        with pytest.raises(ValueError, match="within the same data plates"):
            objective.loss(aside("ab"), aside("ab"))
    assert ELBO().values(aside("ab"), aside("ab")).objective is None


def test_a_batch_without_a_plate_has_no_weights_of_its_own():
    def bare():
        pyro.sample("z", dist.Normal(torch.zeros(5), 1.0))

    for validate in (True, False):
        for objective in (IWAE(3), IWAE(1), IWAE(3, vectorize_particles=False)):
            with (
                pyro.validation_enabled(validate),
                pytest.raises(
                    ValueError,
                    match=r"batch dimension in a plate|invalid log_prob shape|Shape mismatch",
                ),
            ):
                objective.loss(bare, bare)


def test_an_auxiliary_site_that_nothing_pays_for_is_refused():
    def guide():
        pyro.sample("u", dist.Normal(0.0, 1e4), infer={"is_auxiliary": True})
        plain(observe=False)()

    for objective in (ELBO(), IWAE(3), FreeBits(per="site")):
        with pytest.raises(ValueError, match="'u' without one: no term of the model balances"):
            objective.loss(plain(), guide)


def test_nothing_latent_is_no_rate():
    for objective in (Capacity(), GECO(target=1.0)):
        with pytest.raises(ValueError, match="Expected a latent site"):
            objective.loss(lambda: None, lambda: None)


def test_a_loss_that_is_not_finite_does_not_outlast_its_step():
    objective = GECO(target=1.0)

    def model(x):
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    objective.differentiable_loss(model, guide, torch.ones(2))
    before = objective.state_dict()
    for bad in (torch.inf, torch.nan):
        with pyro.validation_enabled(False):
            objective.differentiable_loss(model, guide, torch.full((2,), bad))
        assert objective.state_dict() == before
    objective.differentiable_loss(model, guide, torch.ones(2))
    assert objective.multiplier != before["multiplier"]


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_shared_may_change_from_call_to_call(at_once):
    drawn = []

    def program(shared):
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0)) if shared else torch.zeros(())
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(w, 1.0))
        return w

    def guide(shared):
        drawn.append(program(shared))

    objective = IWAE(4, estimator="dreg", vectorize_particles=at_once)
    for shared in (False, True, False, True):
        drawn.clear()
        objective.differentiable_loss(program, guide, shared)
        assert len(torch.stack(drawn[-1 if at_once else -4 :]).unique()) == 1


@pytest.mark.parametrize("vectorize", [False, True])
def test_an_auxiliary_site_that_data_share_is_drawn_once_for_all_particles(vectorize):
    draws = []

    def model():
        w = pyro.sample("w", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, w))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(4))

    def guide():
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        draws.append(a.detach())
        pyro.sample("w", dist.Delta(a.exp(), log_density=-a))
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    objective = IWAE(3, vectorize_particles=vectorize)
    objective.differentiable_loss(model, guide)
    draws.clear()
    assert objective.differentiable_loss(model, guide).isfinite()
    values = torch.cat([draw.reshape(-1) for draw in draws])
    assert len(values) == 3
    assert torch.equal(values, values[0].expand(3))
