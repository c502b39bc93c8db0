"""Random Pyro programs: objectives beside Pyro's own, and beside formulas written by hand.

A program has latent sites in a chain, observed sites, up to two plates that may be subsampled,
masks, scales, event dimensions and several families. All is in double precision.
"""

import contextlib
import math
from functools import partial
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import objectives

QUIET = {"deadline": None, "derandomize": True, "database": None}
QUIET["suppress_health_check"] = list(HealthCheck)

LATENT = {
    "real": ["normal", "laplace", "student"],
    "positive": ["log_normal", "gamma"],
    "unit": ["beta"],
    "vector": ["full"],
    "simplex": ["dirichlet"],
}
# Families with a closed-form KL to themselves in PyTorch's registry.
CLOSED = {"normal", "laplace", "log_normal", "gamma", "beta", "full", "dirichlet"}


def examples(short, long):
    """Runs a property on a few examples, and as a long test on many."""

    def apply(strategies, body):
        few = settings(max_examples=short, **QUIET)(given(**strategies)(body))
        many = settings(max_examples=long, **QUIET)(given(**strategies)(body))
        return few, pytest.mark.long(many)

    return apply


class Plate(NamedTuple):
    size: int
    rows: int
    kind: str  # full, fixed or random


class Site(NamedTuple):
    name: str
    plates: tuple  # numbers of its plates
    model: str  # family
    guide: str | None  # family, or None if observed
    event: tuple
    chained: bool
    scale: float | None
    masked: bool


class Program:
    """A model and a guide over the sites, with their parameters as leaves."""

    def __init__(self, plates, sites, seed=0):
        self.plates, self.sites, self.seed, self.kept = plates, sites, seed, {}
        generator = torch.Generator().manual_seed(seed)
        self.draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.parameters, self.data, self.masks, self.records = {}, {}, {}, []
        for site in sites:
            shape = self.shape(site, full=True)
            self.leaf(f"w_{site.name}", site.event)
            self.leaf(f"v_{site.name}", site.event)
            if site.guide:
                self.leaf(f"a_{site.name}", shape + site.event)
                self.leaf(f"b_{site.name}", shape + site.event)
            else:
                self.data[site.name] = self.draw(shape + site.event)
            uniform = torch.rand(shape, generator=generator)
            self.masks[site.name] = uniform > 0.4
        self.fixed = [
            torch.randperm(plate.size, generator=generator)[: plate.rows] for plate in plates
        ]

    def leaf(self, name, shape):
        self.parameters[name] = (0.4 * self.draw(shape)).requires_grad_()

    def shape(self, site, full=False):
        sizes = [plate.size if full else plate.rows for plate in self.plates]
        depth = len(sizes)
        return tuple(size if n in site.plates else 1 for n, size in enumerate(sizes))[:depth]

    def model_parameters(self):
        return {n: p for n, p in self.parameters.items() if n[0] in "wv"}

    def open_plates(self):
        plates = []
        for number, plate in enumerate(self.plates):
            how = {
                "full": {},
                "fixed": {"subsample": self.fixed[number]},
                "random": {"subsample_size": plate.rows},
            }[plate.kind]
            dim = number - len(self.plates)
            plates.append(pyro.plate(f"plate_{number}", plate.size, dim=dim, **how))
        return plates

    def mask(self, site, rows):
        """Returns the same tensor in guide and model, by which their masks are seen to be equal."""
        if any(self.plates[number].kind == "random" for number in site.plates):
            return rows(self.masks[site.name])
        if site.name not in self.kept:
            self.kept[site.name] = rows(self.masks[site.name])
        return self.kept[site.name]

    def unequal_masks(self):
        """Whether a mask of a latent site cannot be seen to be equal in guide and model."""
        return any(
            site.guide and site.masked and self.plates[number].kind == "random"
            for site in self.sites
            for number in site.plates
        )

    def __repr__(self):
        return f"Program({self.plates}, {self.sites}, {self.seed})"

    @contextlib.contextmanager
    def inside(self, site, plates):
        """Enters the site's plates, scale and mask; yields a function from full arrays to rows."""
        with contextlib.ExitStack() as stack:
            index = {n: stack.enter_context(plates[n]) for n in site.plates}

            def rows(full):
                for number, i in index.items():
                    full = full.index_select(number, i)
                return full

            if site.scale is not None:
                stack.enter_context(poutine.scale(scale=site.scale))
            if site.masked:
                stack.enter_context(poutine.mask(mask=self.mask(site, rows)))
            yield rows

    def model(self):
        plates, previous = self.open_plates(), None
        for site in self.sites:
            loc = self.parameters[f"w_{site.name}"]
            if (
                site.chained
                and previous is not None
                and set(previous[0].plates) <= set(site.plates)
            ):
                value = previous[1]
                summary = torch.tanh(
                    value.reshape(*value.shape[: value.dim() - len(previous[0].event)], -1)
                ).sum(-1)
                loc = loc + summary.reshape(summary.shape + (1,) * len(site.event))
            # Pyro misreads shapes of events that lack a dimension of a plate.
            loc = loc.expand(
                torch.broadcast_shapes(loc.shape, (1,) * len(self.plates) + site.event)
            )
            fn = family(site.model, loc, self.parameters[f"v_{site.name}"], site.event)
            with self.inside(site, plates) as rows:
                obs = None if site.guide else rows(self.data[site.name])
                value = pyro.sample(site.name, fn, obs=obs)
            if site.guide:
                previous = site, value

    def guide(self):
        plates, record = self.open_plates(), {}
        for site in self.sites:
            if site.guide:
                with self.inside(site, plates) as rows:
                    a, b = (rows(self.parameters[f"{n}_{site.name}"]) for n in "ab")
                    value = pyro.sample(site.name, family(site.guide, a, b, site.event))
                    record[site.name] = value.detach()
        record["index"] = [
            plate.subsample if hasattr(plate, "subsample") else None for plate in plates
        ]
        self.records.append(record)

    def loss_and_gradients(self, objective, names=None):
        pyro.set_rng_seed(7)
        loss = objective.differentiable_loss(self.model, self.guide)
        leaves = {n: p for n, p in self.parameters.items() if names is None or n in names}
        if not (torch.is_tensor(loss) and loss.requires_grad):
            return float(loss.detach()), {n: torch.zeros_like(p) for n, p in leaves.items()}
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        zero = [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(gradients, leaves.values(), strict=True)
        ]
        return float(loss.detach()), dict(zip(leaves, zero, strict=True))


def family(name, loc, raw, event):
    """Returns a distribution of that family with parameters that two free arrays lead to."""
    scale = 0.3 + torch.nn.functional.softplus(raw)
    shape = torch.broadcast_shapes(loc.shape, scale.shape)
    loc, scale = loc.expand(shape), scale.expand(shape)
    positive = 0.8 + torch.nn.functional.softplus(loc)
    if name == "full":
        return dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
    if name == "dirichlet":
        return dist.Dirichlet(positive * scale)
    fn = {
        "normal": lambda: dist.Normal(loc, scale),
        "laplace": lambda: dist.Laplace(loc, scale),
        "student": lambda: dist.StudentT(5.0, loc, scale),
        "log_normal": lambda: dist.LogNormal(loc, scale),
        "gamma": lambda: dist.Gamma(positive, scale),
        "beta": lambda: dist.Beta(positive, 0.5 + scale),
    }[name]()
    return fn.to_event(len(event))


@st.composite
def programs(draw, *, alone=False, closed=False, equal=False, subsample=True):
    """Draws programs.

    Arguments:
        alone: All latent sites are in the same plates, all observed ones in these too.
        closed: Every KL has a closed form.
        equal: No ``poutine.scale``.
        subsample: Whether plates may be subsampled.
    """
    plates = []
    for _ in range(draw(st.integers(1 if alone else 0, 2))):
        size = draw(st.integers(1, 4))
        kind = draw(st.sampled_from(["full", "fixed", "random"] if subsample else ["full"]))
        rows = size if kind == "full" else draw(st.integers(1, size))
        plates.append(Plate(size, rows, kind))
    every = tuple(range(len(plates)))
    subsets = [s for s in [(), (0,), (1,), (0, 1)] if set(s) <= set(every)]
    sites = []
    count = draw(st.integers(1, 3))
    for number in range(count + draw(st.integers(1, 2))):
        latent = number < count
        support = draw(st.sampled_from(sorted(LATENT))) if latent else "real"
        model = draw(st.sampled_from(LATENT[support]))
        guide = draw(st.sampled_from(LATENT[support])) if latent else None
        if closed and latent:
            model = draw(st.sampled_from(sorted(set(LATENT[support]) & CLOSED)))
            guide = model
        vector = support in ("vector", "simplex")
        dims = 1 if vector else draw(st.integers(0, 2))
        event = tuple(draw(st.integers(2 if vector else 1, 3)) for _ in range(dims))
        inside = every if alone else draw(st.sampled_from(subsets))
        scale = None if equal else draw(st.sampled_from([None, None, 0.5, 3.0]))
        name = f"z{number}" if latent else f"x{number - count}"
        chained, masked = draw(st.booleans()), draw(st.booleans())
        sites.append(Site(name, inside, model, guide, event, chained, scale, masked))
    return Program(plates, sites, draw(st.integers(0, 5)))


def close(first, second, tolerance=1e-9):
    """Asserts equal losses and gradients, relative to their size."""
    loss, gradients = first
    other, others = second
    assert math.isclose(loss, other, rel_tol=tolerance, abs_tol=tolerance), (loss, other)
    for name, gradient in gradients.items():
        error = (gradient - others[name]).abs().max() if gradient.numel() else torch.tensor(0.0)
        bound = tolerance * (1 + others[name].abs().max()) if gradient.numel() else 1.0
        assert error <= bound, (name, gradient, others[name])


def sampled(program, particles, vectorize):
    run = {"max_plate_nesting": len(program.plates), "vectorize_particles": vectorize}
    stock = Trace_ELBO(particles, **run)
    ours = objectives.ELBO(particles, analytic=False, **run)
    close(program.loss_and_gradients(ours), program.loss_and_gradients(stock))


test_elbo_is_trace_elbo, test_elbo_is_trace_elbo_long = examples(60, 3000)(
    {"program": programs(), "particles": st.integers(1, 3), "vectorize": st.booleans()}, sampled
)


def nesting_found(program, particles):
    """The depth of plates that is found by a run, which leaves the random state as it was."""
    run = {"max_plate_nesting": len(program.plates)}
    for make in (objectives.ELBO, objectives.FreeBits):
        try:
            stated = program.loss_and_gradients(make(particles, analytic=False, **run))
        except ValueError:  # noqa: PERF203
            with pytest.raises(ValueError, match="Expected"):
                program.loss_and_gradients(make(particles, analytic=False))
        else:
            close(program.loss_and_gradients(make(particles, analytic=False)), stated)


test_plate_nesting_is_found, test_plate_nesting_is_found_long = examples(15, 500)(
    {"program": programs(), "particles": st.integers(1, 2)}, nesting_found
)


def mean_field(program, particles):
    run = {"max_plate_nesting": len(program.plates), "vectorize_particles": True}
    report = objectives.kl_report(program.model, program.guide)
    assert set(report) == {site.name for site in program.sites if site.guide}
    assume(not program.unequal_masks())
    assert all(term.closed_form for term in report.values()), report
    stock = TraceMeanField_ELBO(particles, **run)
    ours = program.loss_and_gradients(objectives.ELBO(particles, **run))
    close(ours, program.loss_and_gradients(stock))
    close(ours, program.loss_and_gradients(objectives.ELBO(particles, analytic=True, **run)))


test_elbo_is_mean_field_elbo, test_elbo_is_mean_field_elbo_long = examples(30, 1500)(
    {"program": programs(closed=True), "particles": st.integers(1, 3)}, mean_field
)


def log_densities(program, record, particles):
    """Returns for each site log p - log q without scale, masked: (particles, *plates)."""
    depth = len(program.plates)

    def outer(side):
        with pyro.plate("particles", particles, dim=-depth - 1):
            side()

    values = {name: value for name, value in record.items() if name != "index"}
    # The rows of the run that is judged are those of the seed that both begin with.
    pyro.set_rng_seed(7)
    sites = {}
    guide = poutine.trace(outer).get_trace(poutine.condition(program.guide, data=values))
    rows = {n: s for n, s in guide.nodes.items() if s.get("is_observed") is False}
    replayed = poutine.Trace()
    for node in rows.values():
        if node["name"].startswith("plate_"):
            replayed.add_node(node["name"], **node)
    model = poutine.trace(outer).get_trace(
        poutine.replay(poutine.condition(program.model, data=values), trace=replayed)
    )
    for site in program.sites:
        total = torch.zeros(())
        for sign, trace in ((1, model), (-1, guide)):
            if site.name in trace.nodes:
                node = trace.nodes[site.name]
                term = node["fn"].log_prob(node["value"])
                mask = node["mask"]
                if mask is not None:
                    term = torch.where(torch.as_tensor(mask).expand(term.shape), term, 0.0)
                total = total + sign * term
        scale = float(model.nodes[site.name]["scale"])
        shape = (particles, *program.shape(site))
        sites[site.name] = total.expand(shape), scale
    return sites


def weights(program, record, particles):
    """Returns the log weights of data that are elements of all plates, and their scale."""
    sites = log_densities(program, record, particles)
    total = sum(term for term, _ in sites.values())
    (scale,) = {scale for _, scale in sites.values()}
    return total, scale


def importance(program, particles):
    """IWAE, and its family, by the log mean of weights of each datum, the scale outside."""
    assume(not any(plate.kind == "random" for plate in program.plates))
    run = {"max_plate_nesting": len(program.plates)}
    pyro.set_rng_seed(7)
    program.records.clear()
    values = objectives.IWAE(particles, **run).values(program.model, program.guide)
    log_weights, scale = weights(program, program.records[-1], particles)
    torch.testing.assert_close(values.log_weights.expand(log_weights.shape), log_weights)
    k = particles
    iwae = log_weights.logsumexp(0) - math.log(k)
    mean = log_weights.mean(0)
    groups = log_weights.reshape(k // 2, 2, *log_weights.shape[1:]) if k % 2 == 0 else None
    expected = {
        "iwae": (objectives.IWAE(k, **run), iwae),
        "miwae": (objectives.MIWAE(k, groups=1, **run), iwae),
        "piwae": (objectives.PIWAE(k, groups=1, **run), iwae),
        "ciwae": (objectives.CIWAE(k, beta=0.3, **run), 0.3 * mean + 0.7 * iwae),
        "ciwae_elbo": (objectives.CIWAE(k, beta=1, **run), mean),
        "ciwae_iwae": (objectives.CIWAE(k, beta=0, **run), iwae),
        "miwae_elbo": (objectives.MIWAE(k, groups=k, **run), mean),
        "renyi_0": (objectives.Renyi(k, alpha=0, **run), iwae),
        "renyi_1": (objectives.Renyi(k, alpha=1, **run), mean),
        "vr_max": (objectives.Renyi(k, alpha=-math.inf, **run), log_weights.amax(0)),
        "renyi": (
            objectives.Renyi(k, alpha=0.4, **run),
            ((0.6 * log_weights).logsumexp(0) - math.log(k)) / 0.6,
        ),
    }
    if groups is not None:
        two = (groups.logsumexp(1) - math.log(2)).mean(0)
        expected["miwae_2"] = (objectives.MIWAE(k, groups=k // 2, **run), two)
        expected["piwae_2"] = (objectives.PIWAE(k, groups=k // 2, **run), iwae)
    if k > 1:
        left_out = torch.stack(
            [
                torch.cat([log_weights[:i], log_weights[i + 1 :]]).logsumexp(0) - math.log(k - 1)
                for i in range(k)
            ]
        ).mean(0)
        expected["jackknife"] = (objectives.Jackknife(k, **run), k * iwae - (k - 1) * left_out)
    for name, (objective, bound) in expected.items():
        loss, _ = program.loss_and_gradients(objective)
        target = -scale * float(bound.sum().detach())
        assert math.isclose(loss, target, rel_tol=1e-9, abs_tol=1e-9), (name, loss, target)


test_importance_weighted, test_importance_weighted_long = examples(30, 1000)(
    {"program": programs(alone=True, equal=True), "particles": st.integers(1, 5)}, importance
)


def shared(program, particles):
    """With sites outside of the plates: drawn once, their ratio once, the rest by datum."""
    latent = [site for site in program.sites if site.guide]
    deepest = max((site.plates for site in latent), key=len)
    assume(not any(plate.kind == "random" for plate in program.plates))
    # Crossed plates, shared sites after a datum's, and several scales of a datum may be refused.
    assume(all(set(site.plates) <= set(deepest) for site in latent))
    first = min(n for n, site in enumerate(program.sites) if site.plates == deepest)
    assume(all(set(deepest) <= set(site.plates) for site in program.sites[first:]))
    pyro.set_rng_seed(7)
    program.records.clear()
    objective = objectives.IWAE(particles, max_plate_nesting=len(program.plates))
    sites = {site.name: site for site in program.sites}
    try:
        loss = float(objective.loss(program.model, program.guide))
    except ValueError as error:
        terms = log_densities(program, {}, 1)
        scales = {
            terms[name][1] for name, site in sites.items() if set(deepest) <= set(site.plates)
        }
        if len(scales) == 1:
            raise AssertionError from error
        return
    terms = log_densities(program, program.records[-1], particles)
    datum, total, scale = 0.0, 0.0, 1.0
    for name, (term, factor) in terms.items():
        plates = sites[name].plates
        if set(deepest) <= set(plates):
            extra = [n + 1 for n in plates if n not in deepest]
            datum = datum + (term.sum(extra, keepdim=True) if extra else term)
            scale = factor
        else:
            torch.testing.assert_close(term, term[:1].expand_as(term))
            total = total + factor * term[0].sum()
    datum, total = torch.as_tensor(datum).detach(), torch.as_tensor(total).detach()
    bound = total + scale * (datum.logsumexp(0) - math.log(particles)).sum()
    assert math.isclose(loss, -float(bound), rel_tol=1e-9, abs_tol=1e-9), (loss, -float(bound))


test_shared_sites, test_shared_sites_long = examples(50, 2000)(
    {"program": programs(equal=True), "particles": st.integers(1, 4)}, shared
)


def estimators(program, particles):
    """STL and DReG have the standard value, and the standard gradient of the model."""
    names = program.model_parameters()
    run = {"max_plate_nesting": len(program.plates)}
    makers = {
        "elbo": (partial(objectives.ELBO, particles, **run), ["stl"], {"analytic": False}),
        "iwae": (partial(objectives.IWAE, particles, **run), ["stl", "dreg"], {}),
        "ciwae": (partial(objectives.CIWAE, particles, **run), ["stl", "dreg"], {}),
        "renyi": (partial(objectives.Renyi, particles, alpha=0.5, **run), ["stl", "dreg"], {}),
    }
    for make, others, extra in makers.values():
        standard = program.loss_and_gradients(make(**extra), names)
        for estimator in others:
            close(program.loss_and_gradients(make(estimator=estimator), names), standard)


test_estimators, test_estimators_long = examples(15, 500)(
    {"program": programs(alone=True, equal=True), "particles": st.integers(1, 3)}, estimators
)


def batch_means(program, particles, nats):
    """Free bits, capacity and GECO beside the ELBO and its terms, under one noise."""
    run = {"max_plate_nesting": len(program.plates)}
    loss = lambda objective: program.loss_and_gradients(objective)[0]  # noqa: E731
    elbo = loss(objectives.ELBO(particles, **run))
    for per in ("site", "dimension"):
        for of in ("batch", "datum"):
            bits = partial(objectives.FreeBits, particles, per=per, of=of, **run)
            try:
                free = loss(bits(nats=nats))
            except ValueError:
                assert per == "dimension" or program.unequal_masks(), (per, of)
                continue
            assert free >= elbo - 1e-9 * abs(elbo), (per, of, free, elbo)
            report = objectives.kl_report(program.model, program.guide)
            if all(term.closed_form for term in report.values()):
                nothing = loss(bits(nats=0.0))
                assert math.isclose(nothing, elbo, rel_tol=1e-9, abs_tol=1e-9), (per, of)
    distortion = loss(objectives.ELBO(particles, beta=0.0, **run))
    observed = any(
        not site.masked or program.masks[site.name].any() for site in program.sites if site.guide
    )
    capacity = loss(objectives.Capacity(particles, gamma=0.0, capacity=nats, **run))
    if observed and not any(site.masked for site in program.sites):
        assert math.isclose(capacity, distortion, rel_tol=1e-9, abs_tol=1e-9)
        pull = loss(objectives.Capacity(particles, gamma=1.0, capacity=0.0, **run))
        rate = abs(elbo - distortion)
        assert math.isclose(pull, distortion + rate, rel_tol=1e-9, abs_tol=1e-9)
    assert math.isfinite(capacity)
    assert math.isfinite(loss(objectives.GECO(particles, target=1.0, **run)))


test_batch_means, test_batch_means_long = examples(20, 800)(
    {
        "program": programs(alone=True, closed=True, equal=True),
        "particles": st.integers(1, 3),
        "nats": st.sampled_from([0.0, 0.1, 5.0]),
    },
    batch_means,
)

EVERY = {
    "elbo": objectives.ELBO,
    "closed": partial(objectives.ELBO, analytic=True),
    "stl": partial(objectives.ELBO, 2, estimator="stl"),
    "iwae": partial(objectives.IWAE, 2),
    "iwae_one_by_one": partial(objectives.IWAE, 2, vectorize_particles=False),
    "dreg": partial(objectives.IWAE, 2, estimator="dreg"),
    "ciwae": partial(objectives.CIWAE, 2),
    "miwae": partial(objectives.MIWAE, 2, groups=2),
    "piwae": partial(objectives.PIWAE, 2, groups=2),
    "renyi": partial(objectives.Renyi, 2, alpha=0.5),
    "vr_max": partial(objectives.Renyi, 2, alpha=-math.inf),
    "jackknife": partial(objectives.Jackknife, 2),
    "jackknife_iwae": partial(objectives.Jackknife, 3, order=2, guide_bound="iwae"),
    "capacity": objectives.Capacity,
    "free_bits": objectives.FreeBits,
    "free_bits_site": partial(objectives.FreeBits, 2, per="site", of="datum"),
    "geco": partial(objectives.GECO, target=1.0),
}


def answers(program, name):
    """Any objective on any program: a finite loss with finite gradients, or a ``ValueError``."""
    try:
        loss, gradients = program.loss_and_gradients(EVERY[name]())
    except ValueError:
        return
    assert math.isfinite(loss)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


test_answers, test_answers_long = examples(120, 5000)(
    {"program": programs(), "name": st.sampled_from(sorted(EVERY))}, answers
)
