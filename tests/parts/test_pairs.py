"""Every prior with every posterior that fits it: densities, divergences, training and graphs."""

import itertools
import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import pyro_vae
from helpers.tables import (
    EVENT,
    LIKELIHOODS,
    POSTERIOR_ROWS,
    POSTERIORS,
    PRIOR_ROWS,
    PRIORS,
    data_for,
    find_pairs,
)
from helpers.truths import SIGMAS, family_limit
from pyro_vae import VAE, evaluate, load, networks, objectives, posteriors, priors, save
from pyro_vae.kl import closed_form
from pyro_vae.vae.build import build_part
from pyro_vae.vae.part_checks import check_supports

PAIRS = find_pairs()

OBJECTIVES = {"elbo": objectives.ELBO, "iwae": partial(objectives.IWAE, 3), "trace": Trace_ELBO}

SEVERAL = [(p, q) for p, q in PAIRS if p.endswith("several") or q.endswith("several")]

DIM = 6
"""A size that all rows divide: two variables of three categories, or three positions."""


def made(prior: str, posterior: str, likelihood: str = "bernoulli", **options) -> VAE:
    mlp = partial(networks.MLP, hidden=[8])
    return VAE(
        EVENT, DIM, prior=PRIORS[prior], posterior=POSTERIORS[posterior],
        likelihood=LIKELIHOODS[likelihood], encoder=mlp, decoder=mlp, **options,
    )  # fmt: skip


def is_exact_one_hot(posterior: str) -> bool:
    return posterior.startswith("one_hot")


def rows_of_objectives() -> list[tuple[str, str, str, str]]:
    """All combinations of a pair, a likelihood and an objective that can train the pair."""
    return [
        (prior, posterior, likelihood, objective)
        for (prior, posterior), likelihood, objective in itertools.product(
            PAIRS, LIKELIHOODS, OBJECTIVES
        )
        if objective == "trace" or not is_exact_one_hot(posterior)
    ]


EVERYTHING = rows_of_objectives()


def choose_rows() -> list[tuple[str, str, str, str]]:
    """One combination for each pair, in which each likelihood and each objective occurs."""
    chosen = []
    likelihoods, objectives_ = itertools.cycle(LIKELIHOODS), itertools.cycle(OBJECTIVES)
    for prior, posterior in PAIRS:
        objective = "trace" if is_exact_one_hot(posterior) else next(objectives_)
        chosen.append((prior, posterior, next(likelihoods), objective))
    return chosen


def train_five_steps(row: tuple[str, str, str, str]) -> None:
    """Takes five steps; all gradients are finite, and each tensor has one that is not zero."""
    prior, posterior, likelihood, objective = row
    pyro.set_rng_seed(4)
    vae, x = made(prior, posterior, likelihood), data_for(likelihood)
    vae.initialize(x)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    waiting = {name for name, p in vae.named_parameters() if p.requires_grad}
    loss_of = OBJECTIVES[objective]()
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_of.differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        for name, parameter in vae.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
            if parameter.grad.any():
                waiting.discard(name)
    assert waiting == set()


@pytest.mark.parametrize("row", choose_rows(), ids="-".join)
def test_five_steps_of_each_pair(row):
    train_five_steps(row)


@pytest.mark.long
@pytest.mark.parametrize("row", EVERYTHING, ids="-".join)
def test_five_steps_of_everything(row):
    train_five_steps(row)


def test_the_chosen_rows_hold_every_option():
    chosen = choose_rows()
    assert {row[:2] for row in chosen} == set(PAIRS)
    assert {row[2] for row in chosen} == set(LIKELIHOODS)
    assert {row[3] for row in chosen} == set(OBJECTIVES)
    assert len(EVERYTHING) > 5000


# Which fits which


def test_the_pairs_are_those_of_one_set():
    sets = {
        "real": ({"normal", "mixture", "laplace", "student_t", "flow", "gaussian_process"},
                 {"normal", "full", "low_rank", "laplace", "student_t", "flow"}),
        "simplex": ({"logistic_normal", "dirichlet", "relaxed_one_hot"},
                    {"logistic_normal", "relaxed_one_hot"}),
        "sphere": ({"uniform_sphere"}, {"power_spherical"}),
        "codes": ({"one_hot"}, {"one_hot", "straight_through"}),
        "two codes": ({"one_hot_several", "autoregressive"},
                      {"one_hot_several", "straight_through_several"}),
    }  # fmt: skip
    expected = {pair for p, q in sets.values() for pair in itertools.product(p, q)}
    assert expected <= set(PAIRS)
    assert {q for p, q in PAIRS if p == "vamp"} == set(POSTERIORS)
    others = {name for p, q in sets.values() for name in (*p, *q)}
    found = {(p, q) for p, q in PAIRS if {p, q} <= others}
    assert found == expected


@pytest.mark.parametrize(
    ("prior", "posterior", "message"),
    [
        (
            priors.Dirichlet,
            posteriors.Normal,
            r"the prior Dirichlet on the simplex and the posterior Normal on real vectors: "
            r"posteriors on the simplex are 'LogisticNormal', 'RelaxedOneHot'; priors on real "
            r"vectors are 'Flow', .*'Vamp'",
        ),
        (
            priors.OneHot,
            posteriors.RelaxedOneHot,
            r"the prior OneHot on one-hot vectors and the posterior RelaxedOneHot on the simplex",
        ),
        (
            priors.UniformSphere,
            posteriors.Full,
            r"posteriors on the sphere are 'PowerSpherical'",
        ),
        (
            partial(priors.OneHot, variables=2),
            partial(posteriors.OneHot, variables=3),
            r"on 2 one-hot vectors and the posterior OneHot on 3 one-hot vectors: posteriors on 2 "
            r"one-hot vectors are 'OneHot', 'StraightThrough' with variables=2",
        ),
        (
            priors.LogisticNormal,
            partial(posteriors.RelaxedOneHot, variables=2),
            r"priors on 2 simplices are 'RelaxedOneHot', 'Vamp' with variables=2",
        ),
    ],
)
def test_parts_on_different_sets_are_refused(prior, posterior, message):
    with pytest.raises(
        ValueError, match=f"Expected prior and posterior on the same set.*{message}"
    ):
        VAE(EVENT, DIM, prior=prior, posterior=posterior)


def test_a_part_set_later_has_to_fit_too():
    vae = made("dirichlet", "logistic_normal")
    with pytest.raises(ValueError, match="on the same set"):
        vae.posterior = posteriors.Normal(DIM)


def test_the_number_of_variables_follows_the_prior():
    vae = VAE(EVENT, 6, prior=partial(priors.OneHot, variables=3), posterior=posteriors.OneHot)
    assert vae.posterior.variables == 3
    assert vae.sample(2).shape == (2, *EVENT)


def test_incompatible_pairs_give_this_error_only():
    for prior, posterior in itertools.product(PRIORS, POSTERIORS):
        if (prior, posterior) in PAIRS:
            continue
        parts = [
            build_part(table[name], role, latent_dim=DIM, event_shape=EVENT)
            for role, table, name in (
                ("prior", PRIORS, prior),
                ("posterior", POSTERIORS, posterior),
            )
        ]
        with pytest.raises(ValueError, match="on the same set") as error:
            check_supports(*parts)
        for part in parts:
            assert type(part).__name__ in str(error.value)


# Divergences


NORMALS = [name for name, row in POSTERIOR_ROWS.items() if row.normal]

CLOSED = {
    *itertools.product(
        [name for name, row in PRIOR_ROWS.items() if row.normal],
        (*NORMALS, "laplace", "student_t"),
    ),
    *itertools.product(("laplace", "laplace_learned"), (*NORMALS, "laplace")),
    *itertools.product(("gaussian_process",), (*NORMALS, "laplace", "student_t")),
    ("logistic_normal", "logistic_normal"),
    ("uniform_sphere", "power_spherical"),
    *itertools.product(("one_hot",), ("one_hot", "straight_through")),
    *itertools.product(("one_hot_several",), ("one_hot_several", "straight_through_several")),
}
"""The pairs whose divergence has a closed form."""


def distributions(prior: str, posterior: str, dtype=torch.float64, rows: int = 3):
    """The distributions of a pair off their starting values."""
    torch.manual_seed(1)
    vae = made(prior, posterior)
    with torch.no_grad():
        for parameter in vae.prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    vae = vae.to(dtype)
    features = torch.randn(rows, *vae.posterior.feature_shape).to(dtype)
    return vae.posterior(features), vae.prior_distribution()


def test_the_closed_divergences_are_these():
    found = {pair for pair in PAIRS if closed_form(*distributions(*pair))[0] is not None}
    assert found == CLOSED


@pytest.mark.parametrize("draws", [50_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pair", sorted(CLOSED), ids="-".join)
def test_a_closed_divergence_is_that_of_the_densities(pair, dtype, draws):
    q, p = distributions(*pair, dtype)
    kl, _ = closed_form(q, p)
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(q, p))
    total, square, count = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for _ in range(10):
        with torch.no_grad():
            z = q.sample((draws // 10,))
            ratio = (q.log_prob(z) - p.log_prob(z)).double()
        total, square, count = total + ratio.sum(0), square + (ratio**2).sum(0), count + len(ratio)
    mean = total / count
    error = ((square / count - mean**2) / count).sqrt()
    rounding = 1e-5 * (1 + kl.double().abs()) if dtype == torch.float32 else 1e-12
    limit = family_limit(2 * 3 * len(CLOSED))
    assert ((mean - kl.double()).abs() <= limit * error + rounding).all()
    assert limit < SIGMAS + 1.2


@pytest.mark.parametrize("pair", sorted(CLOSED), ids="-".join)
def test_closed_divergences_under_plates_masks_and_expansion(pair):
    q, p = distributions(*pair)
    kl, _ = closed_form(q, p)
    wide, _ = closed_form(q.expand((4, 3)), p)
    torch.testing.assert_close(wide, kl.expand(4, 3))
    both, _ = closed_form(q.expand((4, 3)), p.expand((4, 3)))
    torch.testing.assert_close(both, kl.expand(4, 3))
    mask = torch.tensor([True, False, True])
    masked, _ = closed_form(q.mask(mask), p.expand((3,)).mask(mask))
    torch.testing.assert_close(masked, kl * mask)
    ones, _ = closed_form(q.expand((1, 3)), p.expand((2, 1)))
    torch.testing.assert_close(ones, kl.expand(2, 3))


def make_subclass(d):
    """The same values of a class that could have another density."""
    kind = type("Own", (type(d),), {"__module__": "elsewhere"})
    other = d.expand(d.batch_shape)
    other.__class__ = kind
    return other


@pytest.mark.parametrize("pair", sorted(CLOSED), ids="-".join)
def test_a_subclass_has_no_closed_divergence(pair):
    q, p = distributions(*pair)
    for a, b in ((make_subclass(q), p), (q, make_subclass(p))):
        kl, reason = closed_form(a, b)
        assert kl is None
        assert "custom class" in reason


# Within what exists


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_is_saved_evaluated_and_drawn(pair, tmp_path):
    pyro.set_rng_seed(0)
    vae, x = made(*pair), data_for("bernoulli", 5)
    vae.initialize(x)
    save(vae, tmp_path / "vae.safetensors")
    vae.name = "before"
    other = load(tmp_path / "vae.safetensors")
    vae.eval()
    other.eval()
    z = vae.encode(x).sample()
    assert torch.equal(vae.encode(x).log_prob(z), other.encode(x).log_prob(z))
    assert torch.equal(vae.prior_distribution().log_prob(z), other.prior_distribution().log_prob(z))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evidence = evaluate.log_evidence(vae, x, 20)
        bound = evaluate.elbo(vae, x, 20)
    assert torch.isfinite(evidence).all()
    assert torch.isfinite(bound.elbo).all()
    assert vae.reconstruct(x).shape == vae.sample(5).shape == x.shape
    assert vae.interpolate(x, x, 3).shape == (3, *x.shape)
    report = objectives.kl_report(vae.model, vae.guide, x)
    assert report["before.z"].closed_form == (pair in CLOSED)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_in_plates_of_the_caller(pair):
    pyro.set_rng_seed(0)
    vae, x = made(*pair, plate=None), data_for("bernoulli", 12).reshape(3, 4, *EVENT)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False

    def program(side):
        with pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 4, dim=-1):
            return side(x, mask=mask, suffix=1)

    losses = [
        Trace_ELBO(num_particles=2, vectorize_particles=True).differentiable_loss(
            lambda: program(vae.model), lambda: program(vae.guide)
        )
    ]
    if not is_exact_one_hot(pair[1]):
        losses.append(
            objectives.IWAE(2).differentiable_loss(
                lambda: program(vae.model), lambda: program(vae.guide)
            )
        )
    for loss in losses:
        vae.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_pair_below_an_enumerated_site(pair):
    pyro.set_rng_seed(0)
    vae, x = made(*pair, plate=None, covariate_dim=3), data_for("bernoulli", 5)
    logits = torch.zeros(5, 3, requires_grad=True)

    def model():
        with pyro.plate("rows", 5):
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(3)))
            vae.model(x, covariates=y)

    def guide():
        with pyro.plate("rows", 5):
            fn = dist.OneHotCategorical(logits=logits)
            y = pyro.sample("y", fn, infer={"enumerate": "parallel"})
            assert vae.guide(x, covariates=y).shape[-2:] == (5, DIM)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide)
    loss.backward()
    assert torch.isfinite(loss)
    assert (logits.grad != 0).any()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)


REPARAMETERIZED = [pair for pair in PAIRS if not is_exact_one_hot(pair[1])]
FEW_GRAPHS = [
    pair
    for i, pair in enumerate(REPARAMETERIZED)
    if pair[0] == "normal" or pair[1] == "normal" or pair not in
    list(itertools.product(("normal_learned", "mixture", "vamp", "laplace_learned"), POSTERIORS))
][::2]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("pair", FEW_GRAPHS, ids="-".join)
def test_the_step_of_a_pair_is_one_graph(pair):
    pyro.set_rng_seed(0)
    vae, x = made(*pair), data_for("bernoulli", 8)
    vae.initialize(x)
    step = pyro_vae.compile(
        objectives.ELBO(), vae.model, vae.guide, parameters=vae.parameters(),
        strict=True, backend="eager",
    )  # fmt: skip
    assert torch.isfinite(step(x).detach())
    assert step.engine != "eager"


ESTIMATORS = {
    "stl": partial(objectives.ELBO, 5, analytic=False),
    "dreg": partial(objectives.IWAE, 5),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("posterior", ["flow", "flow_affine", "low_rank", "power_spherical"])
def test_estimators_that_score_a_detached_draw(posterior, estimator):
    prior = "uniform_sphere" if posterior == "power_spherical" else "normal"
    pyro.set_rng_seed(0)
    vae, x = made(prior, posterior).double(), data_for("bernoulli", 4).double()
    bias = vae.encoder.layers[-1].bias
    runs = 60
    losses, slopes = [], []
    for kind in ("standard", estimator):
        objective = ESTIMATORS[estimator](estimator=kind)
        values, draws = [], []
        for seed in range(runs):
            pyro.set_rng_seed(seed)
            loss = objective.differentiable_loss(vae.model, vae.guide, x)
            values.append(loss.detach())
            draws.append(torch.autograd.grad(loss, bias)[0])
        losses.append(torch.stack(values))
        slopes.append(torch.stack(draws))
    torch.testing.assert_close(*losses)
    # The draws are the same, so that the difference has little noise.
    gap = slopes[0] - slopes[1]
    error = (gap.std(0) / math.sqrt(runs)).clamp(min=1e-9)
    assert ((gap.mean(0) / error).abs() < family_limit(8 * bias.numel())).all()
    assert not torch.allclose(*slopes)


def test_importing_zuko_changes_no_setting():
    import subprocess
    import sys

    program = """
import torch, pyro
from torch.distributions import Distribution, transforms
from torch.distributions.transforms import _InverseTransform
before = (Distribution._validate_args, vars(Distribution)["arg_constraints"],
          _InverseTransform.__name__, torch.get_default_dtype(), torch.is_grad_enabled(),
          set(vars(torch.distributions)))
state = torch.get_rng_state()
from pyro_vae.guard import import_zuko
import sys
assert "zuko" not in sys.modules
import pyro_vae
assert "zuko" not in sys.modules
import_zuko()
assert "zuko" in sys.modules
after = (Distribution._validate_args, vars(Distribution)["arg_constraints"],
         _InverseTransform.__name__, torch.get_default_dtype(), torch.is_grad_enabled(),
         set(vars(torch.distributions)))
assert before == after
assert torch.equal(state, torch.get_rng_state())
try:
    torch.distributions.Normal(0.0, -1.0)
except ValueError:
    print("validated")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "validated", run.stderr


def test_rows_cover_every_size_of_a_law():
    assert all(row.dim == 6 for name, row in PRIOR_ROWS.items() if name.endswith("several"))
    assert all(row.dim == 6 for name, row in POSTERIOR_ROWS.items() if name.endswith("several"))
    assert SEVERAL
    assert isinstance(distributions("normal", "normal")[0], dist.Independent)
    assert math.isfinite(family_limit(10))
