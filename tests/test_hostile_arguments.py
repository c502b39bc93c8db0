"""Public functions on hostile arguments: a right answer or a ``ValueError``, nothing else.

A finite argument never leads to NaN, and the caller's tensors, random state and settings stay.
"""

import contextlib
import math
import tempfile
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from pyro_vae import (
    VAE,
    VAETransformer,
    data,
    distributions,
    evaluate,
    fit,
    kl,
    likelihoods,
    load,
    networks,
    objectives,
    posteriors,
    priors,
    save,
)

QUIET = {"deadline": None, "derandomize": True, "database": None}
QUIET["suppress_health_check"] = list(HealthCheck)
# For tests whose examples are small as they are.
PLAIN = {**QUIET, "phases": [Phase.generate]}

MLP = partial(networks.MLP, hidden=[4])

PRIORS = {
    "normal": priors.Normal,
    "learned": partial(priors.Normal, learned=True),
    "mixture": partial(priors.Mixture, components=2),
    "vamp": partial(priors.Vamp, components=2),
}

POSTERIORS = {"normal": posteriors.Normal, "full": posteriors.Full}

LIKELIHOODS = {
    "bernoulli": likelihoods.Bernoulli,
    "grey": partial(likelihoods.Bernoulli, grey_scale=True),
    "continuous": likelihoods.ContinuousBernoulli,
    "fixed": partial(likelihoods.Normal, scale=0.5),
    "shared": likelihoods.Normal,
    "element": partial(likelihoods.Normal, scale="element"),
    "network": partial(likelihoods.Normal, scale="network"),
    "optimal": partial(likelihoods.Normal, scale="optimal"),
    "categorical": partial(likelihoods.Categorical, levels=3),
}

REAL = ["fixed", "shared", "element", "network", "optimal"]

ROWS = 5


def both(short, long, **strategies):
    """Returns a property as a short and as a long test."""

    def wrap(body):
        few = settings(max_examples=short, **QUIET)(given(**strategies)(body))
        many = settings(max_examples=long, **QUIET)(given(**strategies)(body))
        return few, pytest.mark.long(many)

    return wrap


def make(
    likelihood="shared", event=(2, 3), latent=2, dtype=torch.float32, covariate_dim=0, **parts
):
    torch.manual_seed(0)
    return VAE(
        event,
        latent,
        likelihood=LIKELIHOODS[likelihood],
        prior=PRIORS[parts.get("prior", "normal")],
        posterior=POSTERIORS[parts.get("posterior", "normal")],
        encoder=MLP,
        decoder=MLP,
        covariate_dim=covariate_dim,
    ).to(dtype)


def rows_for(likelihood, event=(2, 3), rows=ROWS, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows, *event, generator=generator, dtype=torch.float64)
    if likelihood == "bernoulli":
        uniform = uniform.round()
    elif likelihood == "categorical":
        uniform = (2 * uniform).round() / 2
    elif likelihood in REAL:
        uniform = 4 * uniform - 2
    return uniform.to(dtype)


@contextlib.contextmanager
def untouched(*tensors):
    """Fails if tensors, the random state or settings of the caller change."""
    copies = [t.detach().clone() for t in tensors]
    grads = [t.requires_grad for t in tensors]
    dtype, validation = torch.get_default_dtype(), torch.distributions.Distribution._validate_args
    enabled = torch.is_grad_enabled()
    yield
    assert torch.get_default_dtype() is dtype
    assert torch.distributions.Distribution._validate_args is validation
    assert torch.is_grad_enabled() is enabled
    for tensor, copy, grad in zip(tensors, copies, grads, strict=True):
        assert torch.equal(tensor.detach().nan_to_num(), copy.nan_to_num())
        assert tensor.requires_grad is grad


def leaves(value):
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(value)
    elif isinstance(value, float):
        yield torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from leaves(part)


def is_finite(value):
    return all(bool(t.isfinite().all()) for t in leaves(value) if t.is_floating_point())


def distribution(fn):
    return [fn.mean, fn.log_prob(fn.sample())]


def trained(vae, x):
    result = fit(vae, x, epochs=1, batch_size=3, compile=False)
    return [result.history[0]["train_objective"], *vae.parameters()]


FUNCTIONS = {
    "encode": lambda vae, x: vae.encode(x).mean,
    "reconstruct": lambda vae, x: vae.reconstruct(x),
    "log_evidence": lambda vae, x: evaluate.log_evidence(vae, x, 3),
    "log_evidence_prior": lambda vae, x: evaluate.log_evidence(
        vae, x, 3, proposal="prior", diagnostics=True
    ),
    "elbo": lambda vae, x: evaluate.elbo(vae, x)[:3],
    "kl_per_dimension": evaluate.kl_per_dimension,
    "active_units": evaluate.active_units,
    "posterior_means": evaluate.posterior_means,
    "check": lambda vae, x: vae.check(x),
    "calibrate": lambda vae, x: [vae.calibrate(x), *vae.buffers()],
    "initialize": lambda vae, x: [vae.initialize(x), *vae.parameters()],
    "loss": lambda vae, x: objectives.ELBO().differentiable_loss(vae.model, vae.guide, x),
    "fit": trained,
}

HOSTILE = {
    "float32": lambda x: x.float(),
    "float64": lambda x: x.double(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "integer": lambda x: x.round().long(),
    "bytes": lambda x: x.abs().to(torch.uint8),
    "boolean": lambda x: x > 0.5,
    "complex": lambda x: x.to(torch.complex64),
    "row": lambda x: x[0],
    "flat": lambda x: x.flatten(),
    "scalar": lambda x: x.flatten()[0],
    "extra": lambda x: x[None],
    "swapped": lambda x: x.transpose(1, 2),
    "empty": lambda x: x[:0],
    "single": lambda x: x[:1],
    "expanded": lambda x: x[:1].expand(x.shape),
    "gradient": lambda x: x.clone().requires_grad_(),
    "nan": lambda x: x.where(x != x[0, 0, 0], math.nan),
    "infinite": lambda x: x.where(x != x[0, 0, 0], math.inf),
    "minus_infinite": lambda x: x.where(x != x[0, 0, 0], -math.inf),
    "huge": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-30,
    "numpy": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "nothing": lambda x: None,
    "word": lambda x: "x",
}


OURS = (ValueError, FloatingPointError)
"""An argument that is wrong, and a figure that is not finite."""


def answers(function, argument, errors=OURS):
    """Asserts a finite answer or an error of ours; returns the answer, or ``None``."""
    tensors = [argument] if torch.is_tensor(argument) and not argument.is_complex() else []
    with untouched(*tensors):
        try:
            answer = function(argument)
        except errors:
            return None
    assert is_finite(answer), "not finite"
    return answer


combinations = st.fixed_dictionaries(
    {
        "likelihood": st.sampled_from(sorted(LIKELIHOODS)),
        "prior": st.sampled_from(sorted(PRIORS)),
        "posterior": st.sampled_from(sorted(POSTERIORS)),
        "dtype": st.sampled_from([torch.float32, torch.float64]),
    }
)


def hostile_data(name, parts, inputs):
    vae = make(**parts)
    if name not in ("fit", "calibrate"):
        vae.eval()
    x = rows_for(parts["likelihood"], dtype=parts["dtype"])
    for kind in inputs:
        argument = HOSTILE[kind](x)
        try:
            answers(partial(FUNCTIONS[name], vae), argument)
        except OURS:
            raise
        except BaseException as error:
            raise AssertionError(f"{name} of {kind}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("kind", sorted(HOSTILE))
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@settings(max_examples=1, **PLAIN)
@given(parts=combinations)
def test_hostile_data(name, kind, parts):
    hostile_data(name, parts, [kind])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Encountered")
# A loss that overflows is Pyro's to warn of.
@pytest.mark.parametrize(
    ("name", "kind"), sorted({*product(FUNCTIONS, HOSTILE)} - {("loss", "huge")})
)
@settings(max_examples=40, **PLAIN)
@given(parts=combinations)
def test_hostile_data_long(name, kind, parts):
    hostile_data(name, parts, [kind])


@pytest.mark.parametrize("likelihood", ["shared", "optimal", "element"])
# Densities of a distribution and losses are Pyro's to warn of.
@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"encode", "loss"}))
@pytest.mark.filterwarnings("ignore:Encountered")
def test_huge_data(name, likelihood):
    """Densities overflow in single precision: an error that says so, and no NaN."""
    hostile_data(name, {"likelihood": likelihood, "dtype": torch.float32}, ["huge"])


LATENT_KINDS = sorted(set(HOSTILE) - {"swapped"})


@pytest.mark.parametrize("kind", LATENT_KINDS)
def test_decode_hostile(kind):
    vae = make().eval()
    z = HOSTILE[kind](torch.randn(ROWS, 3, 2))
    if kind not in ("nan", "infinite", "minus_infinite"):
        answers(lambda a: distribution(vae.decode(a)), z)


# Agreement of answers.


def legal(parts, event, latent, rows):
    """A VAE of any shape and parts: shapes, order of rows, strides, files, precision, state."""
    vae = make(event=event, latent=latent, **parts).eval()
    x = rows_for(parts["likelihood"], event, rows, parts["dtype"])
    state = torch.get_rng_state()
    vae.check(x)
    means, rate = evaluate.posterior_means(vae, x), None
    assert torch.equal(torch.get_rng_state(), state)
    assert means.shape == (rows, latent)
    order = torch.randperm(rows)
    torch.testing.assert_close(evaluate.posterior_means(vae, x[order]), means[order])
    if event:
        strided = x.transpose(0, -1).contiguous().transpose(0, -1)
        torch.testing.assert_close(evaluate.posterior_means(vae, strided), means)
    pyro.set_rng_seed(1)
    bound = evaluate.elbo(vae, x, num_particles=2)
    pyro.set_rng_seed(1)
    again = evaluate.elbo(vae, x.clone().requires_grad_(), num_particles=2)
    assert all(torch.equal(a, b) for a, b in zip(bound[:3], again[:3], strict=True))
    torch.testing.assert_close(bound.elbo, -bound.rate - bound.distortion)
    assert bound.elbo.shape == (rows,)
    assert is_finite(bound[:3])
    if bound.closed_form:
        assert (bound.rate >= -1e-5).all()
        if parts["posterior"] == "normal":
            rate = evaluate.kl_per_dimension(vae, x)
            torch.testing.assert_close(rate.sum(), bound.rate.mean(), rtol=1e-4, atol=1e-5)
    for proposal in ("posterior", "prior"):
        found = evaluate.log_evidence(vae, x, 4, proposal=proposal, diagnostics=True)
        assert found.log_evidence.shape == (rows,)
        assert is_finite(found)
        assert (found.effective_sample_size <= 4 + 1e-3).all()
    assert evaluate.active_units(vae, x).shape == (latent,) if rows > 1 else True
    assert vae.sample(2).shape == (2, *event)
    assert vae.reconstruct(x).shape == x.shape
    with tempfile.TemporaryDirectory() as folder:
        save(vae, f"{folder}/vae.safetensors")
        copy = load(f"{folder}/vae.safetensors")
    torch.testing.assert_close(evaluate.posterior_means(copy.to(x.dtype), x), means)
    double = make(event=event, latent=latent, **{**parts, "dtype": torch.float64}).eval()
    double.load_state_dict(vae.state_dict())
    torch.testing.assert_close(
        evaluate.posterior_means(double, x.double()), means.double(), rtol=1e-3, atol=1e-4
    )


test_legal, test_legal_long = both(
    25,
    1500,
    parts=combinations,
    event=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    latent=st.integers(1, 3),
    rows=st.integers(1, 6),
)(legal)


def trains(parts, rows, batch_size, masked):
    """One epoch: finite weights, evaluation mode, and a random state that stays."""
    vae = make(**parts)
    x = rows_for(parts["likelihood"], rows=rows, dtype=parts["dtype"])
    mask = torch.rand(x.shape) > 0.3 if masked else None
    state = torch.get_rng_state()
    with untouched(x):
        try:
            result = fit(
                vae,
                data.Rows(x, mask),
                valid=data.Rows(x, mask),
                epochs=1,
                batch_size=batch_size,
                compile=False,
            )
        except ValueError as error:
            if rows > 1 and batch_size > 1:
                raise AssertionError from error
            return
    assert torch.equal(torch.get_rng_state(), state)
    assert not vae.training
    assert is_finite([*vae.parameters(), *result.history[0].values()])


test_trains, test_trains_long = both(
    15,
    500,
    parts=combinations,
    rows=st.integers(1, 6),
    batch_size=st.integers(1, 7),
    masked=st.booleans(),
)(trains)


# Masks.

MASKED = {
    "log_evidence": lambda vae, x, m: evaluate.log_evidence(vae, x, 3, mask=m),
    "log_evidence_prior": lambda vae, x, m: evaluate.log_evidence(
        vae, x, 3, mask=m, proposal="prior"
    ),
    "elbo": lambda vae, x, m: evaluate.elbo(vae, x, mask=m)[:3],
    "kl_per_dimension": lambda vae, x, m: evaluate.kl_per_dimension(vae, x, mask=m),
    "active_units": lambda vae, x, m: evaluate.active_units(vae, x, mask=m),
    "posterior_means": lambda vae, x, m: evaluate.posterior_means(vae, x, mask=m),
    "loss": lambda vae, x, m: objectives.ELBO().differentiable_loss(
        vae.model, vae.guide, x, mask=m
    ),
    "iwae": lambda vae, x, m: objectives.IWAE(3).differentiable_loss(
        vae.model, vae.guide, x, mask=m
    ),
}


def masked_values(name, parts, seen, by_row, filler):
    vae = make(**parts).eval()
    x = rows_for(parts["likelihood"], dtype=parts["dtype"])
    mask = torch.rand(x.shape[:1] if by_row else x.shape) < seen
    broad = mask[:, None, None] if by_row else mask
    other = torch.where(broad, x, torch.tensor(filler, dtype=x.dtype))
    answers_of = []
    for values in (x, other):
        pyro.set_rng_seed(2)
        try:
            answers_of.append(list(leaves(MASKED[name](vae, values, mask))))
        except ValueError:
            # Fewer than two rows have no variance.
            assert name in ("active_units", "kl_per_dimension")
            answers_of.append([])
    assert is_finite(answers_of)
    if name == "posterior_means" and by_row:
        return
    assert all(torch.equal(a, b) for a, b in zip(*answers_of, strict=True))


@pytest.mark.parametrize("seen", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("name", sorted(MASKED))
@settings(max_examples=4, **QUIET)
@given(
    parts=combinations,
    by_row=st.booleans(),
    filler=st.sampled_from([math.nan, math.inf, 1e30, 0.5]),
)
def test_masked_values_do_not_matter(name, parts, seen, by_row, filler):
    masked_values(name, parts, seen, by_row, filler)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(MASKED))
@settings(max_examples=400, **QUIET)
@given(
    parts=combinations,
    seen=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    by_row=st.booleans(),
    filler=st.sampled_from([math.nan, math.inf, 1e30, 0.5]),
)
def test_masked_values_do_not_matter_long(name, parts, seen, by_row, filler):
    masked_values(name, parts, seen, by_row, filler)


WRONG_MASKS = {
    "float": lambda x: torch.ones(x.shape),
    "integer": lambda x: torch.ones(x.shape, dtype=torch.long),
    "long": lambda x: torch.ones(len(x) + 1, dtype=torch.bool),
    "empty": lambda x: torch.ones(0, dtype=torch.bool),
    "scalar": lambda x: torch.tensor(True),
    "numpy": lambda x: np.ones(x.shape, dtype=bool),
    "list": lambda x: [True] * len(x),
    "true": lambda x: True,
    "word": lambda x: "x",
}


@pytest.mark.parametrize("name", sorted(MASKED))
@pytest.mark.parametrize("kind", sorted(WRONG_MASKS))
def test_wrong_masks(name, kind):
    vae, x = make().eval(), rows_for("shared")
    answers(lambda mask: MASKED[name](vae, x, mask), WRONG_MASKS[kind](x))


def test_calibrate_refuses_negative_batches():
    """With none taken, the scale would stay as it was."""
    vae = make("optimal")
    with contextlib.suppress(ValueError):
        vae.calibrate(rows_for("optimal"), batch_size=-1)
        negative = vae.eval().decode(torch.zeros(2)).variance
        vae.calibrate(rows_for("optimal"), batch_size=ROWS)
        torch.testing.assert_close(vae.decode(torch.zeros(2)).variance, negative)


@pytest.mark.parametrize("whole", [True, False])
def test_active_units_needs_two_seen_rows(whole):
    """Of one observed row a variance would read as collapse."""
    mask = torch.zeros(ROWS, dtype=torch.bool)
    mask[0] = True
    if not whole:
        mask = mask[:, None, None].expand(ROWS, 2, 3)
    vae, x = make().eval(), rows_for("shared")
    with contextlib.suppress(ValueError):
        assert evaluate.active_units(vae, 9 * x, mask=mask, threshold=1e-9).any()


# Covariates.

COVARIATES = {
    "float64": lambda c: c.double(),
    "integer": lambda c: c.long(),
    "nan": lambda c: c * math.nan,
    "huge": lambda c: c * 1e38,
    "short": lambda c: c[:3],
    "single": lambda c: c[:1],
    "flat": lambda c: c[0],
    "wide": lambda c: torch.cat([c, c], -1),
    "column": lambda c: c[:, None],
    "numpy": lambda c: c.numpy(),
    "empty": lambda c: c[:0],
    "nothing": lambda c: None,
}
CONDITIONAL = {
    "log_evidence": lambda vae, x, c: evaluate.log_evidence(
        vae, x, 3, covariates=c, max_elements=6
    ),
    "elbo": lambda vae, x, c: evaluate.elbo(vae, x, covariates=c).elbo,
    "kl_per_dimension": lambda vae, x, c: evaluate.kl_per_dimension(vae, x, covariates=c),
    "active_units": lambda vae, x, c: evaluate.active_units(vae, x, covariates=c),
    "posterior_means": lambda vae, x, c: evaluate.posterior_means(vae, x, covariates=c),
    "reconstruct": lambda vae, x, c: vae.reconstruct(x, covariates=c),
    "loss": lambda vae, x, c: objectives.ELBO().differentiable_loss(
        vae.model, vae.guide, x, covariates=c
    ),
}


# A loss that is not finite is Pyro's to warn of.
CASES = [(n, k) for n in sorted(CONDITIONAL) for k in COVARIATES if (n, k) != ("loss", "huge")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_covariates(name, kind):
    vae, x, c = make(covariate_dim=2).eval(), rows_for("shared"), torch.randn(ROWS, 2)
    shape = CONDITIONAL[name](vae, x, c).shape
    answer = answers(lambda c: CONDITIONAL[name](vae, x, c), COVARIATES[kind](c))
    assert answer is None or answer.shape == shape


# Arguments of parts, networks, objectives and data.

SIZES = {
    "priors.Normal": priors.Normal,
    "priors.Mixture": priors.Mixture,
    "priors.Vamp": lambda n: priors.Vamp(n, (2,)),
    "components": lambda n: priors.Mixture(2, components=n),
    "posteriors.Normal": posteriors.Normal,
    "posteriors.Full": posteriors.Full,
    "prior covariates": lambda n: priors.Normal(2, learned=True, covariate_dim=n or -1),
    "Bernoulli event": lambda n: likelihoods.Bernoulli((n,)),
    "Normal event": lambda n: likelihoods.Normal((n,), scale="element"),
    "levels": lambda n: likelihoods.Categorical((2,), levels=n),
    "MLP in_shape": lambda n: networks.MLP((n,), (2,)),
    "MLP out_shape": lambda n: networks.MLP((2,), (n,)),
    "MLP covariates": lambda n: networks.MLP((2,), (2,), covariate_dim=n or -1),
    "hidden": lambda n: networks.MLP((2,), (2,), hidden=[n]),
    "channels": lambda n: networks.ConvEncoder((4, 4), (2,), channels=[n]),
    "ConvEncoder in_shape": lambda n: networks.ConvEncoder((n, 4), (2,)),
    "ConvDecoder out_shape": lambda n: networks.ConvDecoder((2,), (n, 4)),
    "latent_dim": lambda n: VAE((2,), n),
    "event_shape": lambda n: VAE((n, 2), 2),
    "n": lambda n: make().sample(n),
    "particles": lambda n: evaluate.log_evidence(make(), rows_for("shared"), n),
    "elbo particles": lambda n: evaluate.elbo(make(), rows_for("shared"), num_particles=n),
    "kl particles": lambda n: evaluate.kl_per_dimension(
        make(prior="mixture"), rows_for("shared"), num_particles=n
    ),
    "calibrate": lambda n: make("optimal").calibrate(rows_for("optimal"), batch_size=n),
    "max_elements": lambda n: evaluate.log_evidence(make(), rows_for("shared"), 3, max_elements=n),
    "ring": data.ring,
    "dims": lambda n: data.collapse(50, dims=n),
    "objective": objectives.ELBO,
}


@pytest.mark.parametrize("name", sorted(SIZES))
@settings(max_examples=10, **PLAIN)
@given(size=st.sampled_from([0, -1, -3, 1.5, math.nan, math.inf, "2", None, True]))
def test_sizes_are_positive_integers(name, size):
    with pytest.raises(ValueError, match=r"Expected|must"):
        SIZES[name](size)


NUMBERS = {
    "posteriors.Normal": lambda v: posteriors.Normal(2, min_scale=v),
    "posteriors.Full": lambda v: posteriors.Full(2, min_scale=v),
    "likelihoods.Normal": lambda v: likelihoods.Normal((2,), min_scale=v),
    "max_logit": lambda v: likelihoods.ContinuousBernoulli((2,), max_logit=v),
    "spread": lambda v: priors.Mixture(2, spread=v),
    "clip_norm": lambda v: fit(
        make(), rows_for("shared"), epochs=1, clip_norm=v or 0, compile=False
    ),
    "array scale": lambda v: scaled(v or 0),
}


def scaled(value):
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", np.random.rand(10, 4))
        return data.array(f"{folder}/x.npy", scale=value)


@pytest.mark.parametrize("name", sorted(NUMBERS))
@settings(max_examples=10, **PLAIN)
@given(value=st.sampled_from([0, -1.0, -1e-30, math.nan, "2", [1.0]]))
def test_numbers_are_positive(name, value):
    with pytest.raises(ValueError, match="Expected"):
        NUMBERS[name](value)


@pytest.mark.parametrize("seed", [None, 1.5, "1", True, np.int64(3), 2**70, -1])
@pytest.mark.parametrize("make_data", [data.ring, data.digits, data.moons, data.two_modes])
def test_seeds(make_data, seed):
    answers(lambda seed: make_data(seed=seed).x, seed)


# scikit-learn's interface.

TABLE = np.random.RandomState(0).randn(8, 3)
ARRAYS = {
    "single precision": TABLE.astype("f4"),
    "half": TABLE.astype("f2"),
    "integers": TABLE.round().astype(int),
    "booleans": TABLE > 0,
    "complex": TABLE + 1j,
    "objects": TABLE.astype(object),
    "empty": TABLE[:0],
    "single": TABLE[:1],
    "row": TABLE[0],
    "narrow": TABLE[:, :2],
    "extra": TABLE[None],
    "infinite": np.where(TABLE > 1, np.inf, TABLE),
    "nan": np.where(TABLE > 1, np.nan, TABLE),
    "nan column": np.where(np.arange(3) == 1, np.nan, TABLE),
    "huge": TABLE * 1e30,
    "huger": TABLE * 1e300,
    "tiny": TABLE * 1e-300,
    "constant": TABLE * 0,
    "fortran": np.asfortranarray(TABLE),
    "reversed": TABLE[::-1],
    "list": TABLE.tolist(),
    "tensor": torch.tensor(TABLE),
    "nothing": None,
}


def transformer(**settings_):
    return VAETransformer(
        2,
        epochs=1,
        batch_size=4,
        num_particles=3,
        random_state=0,
        encoder=MLP,
        decoder=MLP,
        **settings_,
    )


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("kind", sorted(ARRAYS))
@pytest.mark.filterwarnings("ignore:Encountered")
def test_transformer(kind, standardize):
    state, numbers = np.random.get_state()[1].copy(), torch.get_rng_state()
    fitted = transformer(standardize=standardize).fit(TABLE)
    x = ARRAYS[kind]
    answers(lambda x: [fitted.transform(x), fitted.score_samples(x), fitted.score(x)], x)

    def whole(x):
        own = transformer(standardize=standardize).fit(x)
        return [own.transform(x), own.inverse_transform(own.transform(x)), own.score_samples(x)]

    answers(whole, x)
    assert np.array_equal(np.random.get_state()[1], state)
    assert torch.equal(torch.get_rng_state(), numbers)


# Files.

TABLES = {
    "legal": [f"{i},{i * i % 7}" for i in range(20)],
    "huge": [f"{i},{i}e300" for i in range(20)],
    "largest": [f"{i},{(-1) ** i}.7e308" for i in range(20)],
    "tiny": [f"{i},{i}e-310" for i in range(20)],
    "offset": [f"{i},{10**15 + i}" for i in range(20)],
    "infinite": [f"{i},{'inf' if i == 3 else i}" for i in range(20)],
    "words": [f"{i},x" for i in range(20)],
    "missing": [f"{i},{'' if i == 3 else i * i}" for i in range(20)],
    "nothing": [f"{i}," for i in range(20)],
    "short": ["1,2"],
    "empty": [],
}


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("missing", ["raise", "nan"])
@pytest.mark.parametrize("kind", sorted(TABLES))
def test_table(kind, missing, standardize, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["a,b", *TABLES[kind]]))

    def values(path):
        table = data.table(path, missing=missing, standardize=standardize)
        return [*table.x, *(table.scaling or ())]

    found = answers(values, path)
    if kind == "legal":
        assert found is not None


def array(shape, dtype, options):
    values = np.asarray(np.random.RandomState(0).rand(*shape) * 200)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, values.astype(dtype), allow_pickle=False)
        answers(lambda path: list(data.array(path, **options).x), path)


test_array, test_array_long = both(
    60,
    2000,
    shape=st.lists(st.integers(0, 12), max_size=4),
    dtype=st.sampled_from(["f2", "f4", "f8", ">f8", "i8", "u1", "u8", "?", "c8", "U3", "M8[D]"]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "scale": st.sampled_from([255.0, 0, -1, math.nan, math.inf, 1e-320, "x"]),
            "binarize": st.sampled_from(["none", "threshold", "fixed", "dynamic", "x", None]),
            "valid": st.sampled_from([0, 2, 0.5, -1, 1.5, math.nan, "x", None]),
            "test": st.sampled_from([0, 2, 0.5, -1, 1.5, math.nan, "x", None]),
            "seed": st.sampled_from([0, 5, -1]),
            "key": st.sampled_from(["a", None]),
        },
    ),
)(array)


# Networks and distributions.


def network(batch, event, out, covariate_dim, conv):
    torch.manual_seed(0)
    shape = (2, *event) if conv else tuple(event)
    maker = networks.ConvEncoder if conv else networks.MLP
    extra = {"channels": [2], "hidden": 3} if conv else {"hidden": [3]}
    net = maker(shape, tuple(out), covariate_dim=covariate_dim, **extra).double().eval()
    x = torch.randn(*batch, *shape, dtype=torch.float64)
    c = torch.randn(*batch, covariate_dim, dtype=torch.float64) if covariate_dim else None
    answer = networks.apply_network(net, x, len(shape), c)
    assert answer.shape == (*batch, *out)
    assert is_finite(answer)
    if x.numel():
        flat = x.reshape(-1, *shape)
        each = net(flat) if c is None else net(flat, c.reshape(-1, covariate_dim))
        torch.testing.assert_close(answer, each.reshape(answer.shape))


test_network, test_network_long = both(
    40,
    2000,
    batch=st.lists(st.integers(0, 3), max_size=3),
    event=st.lists(st.integers(1, 5), min_size=2, max_size=2),
    out=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    covariate_dim=st.integers(0, 2),
    conv=st.booleans(),
)(network)

FAMILIES = {
    "normal": lambda a, b: dist.Normal(a, b),
    "laplace": lambda a, b: dist.Laplace(a, b),
    "student": lambda a, b: dist.StudentT(4.0, a, b),
    "log_normal": lambda a, b: dist.LogNormal(a, b),
    "gamma": lambda a, b: dist.Gamma(b, b + 0.3),
    "beta": lambda a, b: dist.Beta(b + 0.2, b),
    "exponential": lambda a, b: dist.Exponential(b),
    "uniform": lambda a, b: dist.Uniform(a, a + b),
    "unit": lambda a, b: dist.Uniform(torch.zeros_like(a), torch.ones_like(b)),
    "continuous_bernoulli": lambda a, b: distributions.ContinuousBernoulli(a),
    "bernoulli": lambda a, b: dist.Bernoulli(logits=a),
    "poisson": lambda a, b: dist.Poisson(b),
    "half_normal": lambda a, b: dist.HalfNormal(b),
    "gumbel": lambda a, b: dist.Gumbel(a, b),
    "cauchy": lambda a, b: dist.Cauchy(a, b),
    "von_mises": lambda a, b: dist.VonMises(a, b),
}


def closed_form(first, second, seed, event):
    """Where there is a closed form it is the mean of log q - log p over draws, six errors off."""
    torch.manual_seed(seed)
    draws = torch.randn(4, 3, dtype=torch.float64)
    shapes = torch.rand(2, 3, dtype=torch.float64) + 0.6
    q = FAMILIES[first](draws[0], shapes[0]).to_event(event)
    p = FAMILIES[second](draws[1], shapes[1]).to_event(event)
    value, reason = kl.closed_form(q, p)
    assert reason
    if value is None:
        return
    assert value.shape == q.batch_shape
    assert (value >= -1e-9).all()
    sample = q.sample((4000,))
    inside = p.support.check(sample)
    if not inside.all():
        assert value[~inside.all(0)].isinf().all() if value.dim() else value.isinf()
        return
    assume(value.isfinite().all())
    terms = q.log_prob(sample) - p.log_prob(sample)
    error = terms.std(0) / math.sqrt(len(terms))
    assert ((terms.mean(0) - value).abs() <= 6 * error + 1e-6).all(), (first, second)


test_closed_form, test_closed_form_long = both(
    120,
    5000,
    first=st.sampled_from(sorted(FAMILIES)),
    second=st.sampled_from(sorted(FAMILIES)),
    seed=st.integers(0, 3),
    event=st.integers(0, 1),
)(closed_form)
