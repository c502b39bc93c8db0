"""Compiled evaluation gives the figures of the eager one."""

import math
import warnings
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.nn import ConditionalAutoRegressiveNN

from helpers.designs import cover
from helpers.graphs import count_graph_calls
from helpers.tables import EVENT, FEW_POSTERIORS, FEW_PRIORS, LIKELIHOODS, data_for
from pyro_vae import VAE, evaluate, networks
from pyro_vae.conditional import Posterior, Prior
from pyro_vae.evaluate import scoring
from pyro_vae.likelihoods import Bernoulli

NET = partial(networks.MLP, hidden=[6])


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Runs graphs without machine code, and counts their calls."""
    return count_graph_calls(monkeypatch)


def evidence(vae, x, particles=40, **settings):
    torch.manual_seed(4)
    # A hundred rows, and four samples at once.
    size = min(len(x), 100) * 4 * vae.likelihood.feature_shape.numel()
    return evaluate.log_evidence(vae, x, particles, diagnostics=True, max_elements=size, **settings)


def bound(vae, x, particles=4, **settings):
    torch.manual_seed(4)
    size = 10 * particles * vae.likelihood.feature_shape.numel()
    return evaluate.elbo(vae, x, particles, max_elements=size, **settings)


def check_same(function, *args, graphs, **settings):
    """Compares a metric with the eager one, and the noise that follows."""
    expected = [*function(*args, compile=False, **settings), torch.rand(1)]
    assert not graphs
    found = [*function(*args, compile="strict", **settings), torch.rand(1)]
    assert len(graphs) >= 2
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, bool):
            assert ours == theirs
        else:
            torch.testing.assert_close(ours, theirs)


def made(prior="normal", posterior="normal", likelihood="bernoulli", **settings):
    parts = {
        "prior": FEW_PRIORS[prior], "posterior": FEW_POSTERIORS[posterior],
        "likelihood": LIKELIHOODS[likelihood],
    }  # fmt: skip
    vae = VAE(EVENT, 2, **parts, encoder=NET, decoder=NET, **settings)
    x = data_for(likelihood, 30)
    vae.initialize(x)
    vae.calibrate(x)
    return vae, x


@pytest.mark.parametrize(
    ("prior", "posterior", "likelihood", "function"),
    cover(FEW_PRIORS, FEW_POSTERIORS, LIKELIHOODS, [evidence, bound]),
)
def test_every_part(prior, posterior, likelihood, function, graphs):
    vae, x = made(prior, posterior, likelihood)
    check_same(function, vae, x, graphs=graphs)


@pytest.mark.parametrize("proposal", ["posterior", "prior"])
@pytest.mark.parametrize("prior", FEW_PRIORS)
def test_each_proposal(prior, proposal, graphs):
    vae, x = made(prior)
    check_same(evidence, vae, x, graphs=graphs, proposal=proposal)


@pytest.mark.parametrize("mask", ["rows", "elements"])
@pytest.mark.parametrize("function", [evidence, bound])
def test_masks(function, mask, graphs):
    vae, x = made(likelihood="normal_fixed")
    shape = x.shape if mask == "elements" else x.shape[:1]
    observed = torch.rand(shape) < 0.7
    x[~observed] = math.nan
    check_same(function, vae, x, graphs=graphs, mask=observed)


@pytest.mark.parametrize("function", [evidence, bound])
@pytest.mark.parametrize("prior", ["normal", "vamp"])
def test_covariates(prior, function, graphs):
    parts = {"prior": FEW_PRIORS[prior], "likelihood": LIKELIHOODS["normal_fixed"]}
    vae = VAE(EVENT, 2, **parts, encoder=NET, decoder=NET, covariate_dim=3)
    x = data_for("normal_fixed", 30)
    vae.initialize(x)
    check_same(function, vae, x, graphs=graphs, covariates=torch.randn(30, 3))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_images_by_a_convolutional_network(batch_norm, graphs):
    encoder = partial(networks.ConvEncoder, batch_norm=batch_norm)
    decoder = partial(networks.ConvDecoder, batch_norm=batch_norm)
    vae = VAE((1, 8, 8), 2, encoder=encoder, decoder=decoder)
    check_same(evidence, vae, (torch.rand(30, 1, 8, 8) < 0.5).float(), graphs=graphs)
    assert vae.training


def test_double_precision(graphs):
    vae, x = made(likelihood="normal_fixed")
    vae, x = vae.double(), x.double()
    expected = evidence(vae, x, compile=False)
    found = evidence(vae, x, compile="strict")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rows", "particles"), [(33, 40), (30, 41), (31, 37), (1, 1), (3, 2)])
def test_what_is_left_over_from_chunks_of_equal_size_counts(rows, particles, graphs):
    vae, x = made()
    x = x.repeat(2, *[1] * len(EVENT))[:rows]
    check_rows = rows, particles
    found = evidence(vae, x, particles, compile="strict")
    expected = evidence(vae, x, particles, compile=False)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert check_rows == (len(found.log_evidence), particles)


def test_every_sample_is_decoded_by_the_graph(graphs):
    """Chunks of equal size leave nothing over, and the encoder runs once for each row."""
    vae, _ = made()
    x, encoded, decoded = data_for("bernoulli", 300), [], []
    vae.encoder.register_forward_hook(lambda module, given, out: encoded.append(len(out)))
    vae.decoder.register_forward_hook(lambda module, given, out: decoded.append(len(out)))
    evidence(vae, x, 400, compile="strict")
    assert sum(encoded) == len(x)
    # Three chunks of rows times a hundred of samples; one more finds shared memory.
    assert len(graphs) == 301
    # Two eager calls to compare with, and one that is captured.
    assert len(decoded) == 3


def test_auto_compiles_what_is_long_enough_and_of_known_parts(graphs, monkeypatch):
    vae, x = made()
    evidence(vae, x)
    assert not graphs
    monkeypatch.setattr(scoring, "worth_compiling_evaluation", lambda *sizes: True)
    evidence(VAE(EVENT, 2, encoder=NET, decoder=First), x)
    assert not graphs
    evidence(vae, x)
    assert graphs


class PositivePrior(Prior):
    """A prior on positive numbers."""

    def __init__(self, latent_dim):
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, covariates=None, *, encode=None):
        return dist.Exponential(torch.ones(self.latent_dim)).to_event(1)


class NarrowPosterior(Posterior):
    """A normal posterior of small scale."""

    def __init__(self, latent_dim):
        super().__init__()
        self.latent_dim, self.feature_shape = latent_dim, torch.Size((latent_dim,))

    def forward(self, features):
        return dist.Normal(features, 0.05).to_event(1)


def test_draws_outside_of_the_priors_support_are_an_error(graphs):
    """They occur in the last rows only, for which no call is compared with an eager one."""
    parts = {"prior": PositivePrior, "posterior": NarrowPosterior}
    vae = VAE(EVENT, 2, **parts, encoder=First, decoder=NET)
    x = data_for("bernoulli", 300)
    x.flatten(1)[:, 0] = torch.arange(300) < 200
    for compiled in (False, "strict"):
        with pytest.raises(ValueError, match="to be within the support"):
            evidence(vae, x, compile=compiled)
    assert graphs


class Flow(Posterior):
    """A flow that stores derived tensors while it draws."""

    def __init__(self, latent_dim):
        super().__init__()
        self.latent_dim, self.feature_shape = latent_dim, torch.Size((3 * latent_dim,))
        self.network = ConditionalAutoRegressiveNN(latent_dim, latent_dim, [8])

    def forward(self, features):
        loc, scale, context = features.chunk(3, -1)
        flow = transforms.ConditionalAffineAutoregressive(self.network, stable=True)
        base = dist.Normal(loc, torch.nn.functional.softplus(scale) + 0.05)
        return dist.TransformedDistribution(base, [flow.condition(context)])


class CountsCalls(networks.MLP):
    """A network whose output depends on the number of its calls."""

    calls = 0

    def forward(self, x, covariates=None):
        self.calls += 1
        out = super().forward(x, covariates)
        return 2 * out if self.calls > 4 else out


def wrapped():
    vae = VAE(EVENT, 2, encoder=NET, decoder=NET)
    vae.decoder = torch.compile(vae.decoder, backend="eager")
    return vae


def of_inference_mode():
    with torch.inference_mode():
        return VAE(EVENT, 2, encoder=NET, decoder=NET)


UNUSUAL = {
    "flow": lambda: VAE(EVENT, 2, posterior=Flow, encoder=NET, decoder=NET),
    "calls": lambda: VAE(EVENT, 2, encoder=NET, decoder=partial(CountsCalls, hidden=[6])),
    "wrapped": wrapped,
    "inference mode": of_inference_mode,
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_fallback_has_the_figures_of_an_eager_call(name):
    x, found = data_for("bernoulli", 61), []
    # Dynamo changes PyTorch's validation when it is called first.
    with pyro.validation_enabled(True):
        for compiled in (False, True):
            torch.manual_seed(0)
            vae = UNUSUAL[name]()
            said = pytest.warns(UserWarning, match="not compiled") if compiled else nullcontext()
            with said:
                figures = evidence(vae, x, compile=compiled)
            found.append([*figures, torch.rand(1)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


class ReadsAValue(networks.MLP):
    def forward(self, x, covariates=None):
        out = super().forward(x, covariates)
        return out if bool(out.sum() > 1e9) else out * 1


@pytest.mark.parametrize("function", [evidence, bound])
def test_what_cannot_be_compiled_is_eager_with_a_warning(function):
    torch.manual_seed(0)
    vae = VAE(EVENT, 2, encoder=NET, decoder=partial(ReadsAValue, hidden=[6]))
    x = data_for("bernoulli", 30)
    with pytest.warns(UserWarning, match="eager, not compiled: .* depends on the values") as caught:
        found = function(vae, x, compile=True)
    assert [warning.filename for warning in caught] == [__file__]
    expected = function(vae, x, compile=False)
    assert torch.equal(found[0], expected[0])
    with pytest.raises(RuntimeError, match="depends on the values"):
        function(vae, x, compile="strict")


class Jumps(Bernoulli):
    """A likelihood with the probability 1.5 for features above 10."""

    def forward(self, features):
        features = features.squeeze(-1 - len(self.event_shape))
        p = torch.where(features > 10, 1.5, 0.5)
        return dist.Bernoulli(probs=p).to_event(len(self.event_shape))


class First(torch.nn.Module):
    """A network that returns a multiple of the first number of its input in all places."""

    def __init__(self, in_shape, out_shape, factor=1.0):
        super().__init__()
        self.out_shape, self.factor = out_shape, factor

    def forward(self, x):
        first = self.factor * x.flatten(1)[:, 0]
        return first.reshape(-1, *[1] * len(self.out_shape)).expand(-1, *self.out_shape)


@pytest.mark.parametrize("validation", [False, True])
def test_invalid_parameters_are_an_error(validation, graphs):
    """Only the last rows have them, for which no call is compared with an eager one."""
    vae = VAE(EVENT, 2, likelihood=Jumps, encoder=partial(First, factor=100.0), decoder=First)
    x = data_for("bernoulli", 300)
    x.flatten(1)[:, 0] = torch.arange(300) >= 200
    with pyro.validation_enabled(validation):
        if validation:
            with pytest.raises(
                FloatingPointError, match=r"of p\(x given z\) are .* not valid: Exp"
            ):
                evidence(vae, x, compile="strict")
        else:
            # PyTorch limits probabilities to one.
            assert evidence(vae, x, compile="strict").log_evidence.isfinite().all()
    # The first call with such rows is repeated eagerly.
    assert len(graphs) == (22 if validation else 31)


def test_terms_that_are_not_finite_are_named(graphs):
    vae, x = made(likelihood="normal_fixed")
    x[25] = 1e30
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function in (evidence, bound):
            for compiled in (False, "strict"):
                with pytest.raises(FloatingPointError, match=r"1 of 30 rows.* row 25.*x given z"):
                    function(vae, x, compile=compiled)


@pytest.mark.parametrize("function", [evidence, bound])
def test_bfloat16(function, graphs):
    vae, x = made(likelihood="normal_fixed")
    exact = function(vae, x, compile="strict")
    rounded = function(vae, x, precision="bfloat16")
    assert not torch.equal(rounded[0], exact[0])
    torch.testing.assert_close(rounded[0], exact[0], rtol=0.02, atol=0.1)
    with pytest.raises(ValueError, match=r"precision='bfloat16' needs, got compile=False"):
        function(vae, x, precision="bfloat16", compile=False)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"compile": "yes"}, "compile"),
        ({"compile": None}, "compile"),
        ({"precision": "half"}, "precision"),
    ],
)
@pytest.mark.parametrize("function", [evidence, bound])
def test_bad_settings(function, settings, named):
    vae, x = made()
    with pytest.raises(ValueError, match=f"Expected {named} to be"):
        function(vae, x, **settings)
