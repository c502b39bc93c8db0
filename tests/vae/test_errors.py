"""What a user may get wrong: each raises one ValueError that names it."""

import math
from functools import partial

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from helpers.tables import EVENT, LIKELIHOODS, data_for
from pyro_vae import VAE, likelihoods, networks, objectives, posteriors, priors, transforms

X = data_for("bernoulli")
GREY = data_for("categorical")
MLP = partial(networks.MLP, hidden=[8])


def made(**options) -> VAE:
    return VAE(EVENT, 3, **{"encoder": MLP, "decoder": MLP, **options})


class Returning(nn.Module):
    """A network of the user's, of a fixed output shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x, covariates=None):
        return x.new_zeros(len(x), *self.shape)


class Headless(nn.Module):
    """A part that does not say what its network must give."""


def needy(latent_dim, depth):
    raise AssertionError


CONSTRUCTOR = {
    "latent_zero": (lambda: VAE(EVENT, 0), "latent_dim to be an integer of at least 1, got 0"),
    "latent_negative": (lambda: VAE(EVENT, -2), "latent_dim .* got -2"),
    "latent_float": (lambda: VAE(EVENT, 2.0), "latent_dim .* got 2.0"),
    "latent_bool": (lambda: VAE(EVENT, True), "latent_dim .* got True"),
    "context_negative": (lambda: VAE(EVENT, 2, covariate_dim=-1), "covariate_dim .* got -1"),
    "event_empty": (lambda: VAE((), 2), r"event_shape to be positive integers, got \(\)"),
    "event_zero": (lambda: VAE((1, 0), 2), r"event_shape .* got \(1, 0\)"),
    "event_float": (lambda: VAE((2.5,), 2), "event_shape"),
    "event_number": (lambda: VAE(0, 2), "event_shape .* got 0"),
    "plate_false": (lambda: VAE(EVENT, 2, plate=False), "plate to be True or None, got False"),
    "plate_name": (lambda: VAE(EVENT, 2, plate="data"), "plate to be True or None, got 'data'"),
    "name": (lambda: VAE(EVENT, 2, name=""), "name to be a non-empty string"),
    "not_a_part": (lambda: made(prior="vamp"), "prior to be a module or a callable .* got 'vamp'"),
    "no_module": (
        lambda: made(likelihood=lambda event_shape: 3),
        "likelihood to build a torch.nn.Module, got int",
    ),
    "too_many_arguments": (lambda: made(prior=needy), r"prior to require only .*\['depth'\]"),
    "prior_size": (
        lambda: made(prior=priors.Normal(4)),
        r"prior to have latent_dim=3, got 4 in Normal\(latent_dim=4",
    ),
    "posterior_size": (
        lambda: made(posterior=posteriors.Full(2)),
        r"posterior to have latent_dim=3, got 2 in Full\(latent_dim=2\)",
    ),
    "likelihood_size": (
        lambda: made(likelihood=likelihoods.Bernoulli((1, 9, 9))),
        "likelihood to have event_shape=.* got .*9, 9.* in Bernoulli",
    ),
    "headless_posterior": (lambda: made(posterior=Headless()), "posterior to have a feature_shape"),
    "headless_likelihood": (lambda: made(likelihood=Headless), "likelihood to have a feature"),
    "convolution_of_no_image": (
        lambda: VAE((5,), 2, encoder=networks.ConvEncoder),
        r"in_shape to be an image.* got \(5,\)",
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTOR)
def test_the_constructor_refuses(name):
    make, message = CONSTRUCTOR[name]
    with pytest.raises(ValueError, match=f"Expected {message}"):
        make()


CALLS = {
    "shape": ({"x": torch.ones(12, 8, 8)}, r"x to have shape \(\*batch, 1, 8, 8\), got \(12, 8, 8"),
    "size": ({"x": torch.ones(12, 1, 9, 8)}, r"x to have shape .* got \(12, 1, 9, 8\)"),
    "vector": ({"x": torch.ones(8)}, r"x to have shape .* got \(8,\)"),
    "one_row": ({"x": torch.ones(EVENT)}, r"x of shape \(batch, 1, 8, 8\), got \(1, 8, 8\)"),
    "two_batches": ({"x": torch.ones(3, 4, *EVENT)}, r"x of shape \(batch, 1, 8, 8\).*plate=None"),
    "no_rows": ({"x": torch.ones(0, *EVENT)}, "x to have rows"),
    "integers": ({"x": torch.ones(12, *EVENT, dtype=torch.long)}, "x to be a floating-point"),
    "booleans": ({"x": torch.ones(12, *EVENT, dtype=torch.bool)}, "x to be a floating-point"),
    "nan": ({"x": X.clone().fill_(math.nan)}, "x to have no NaN, got 768"),
    "data_size": (
        {"x": X, "data_size": 11},
        "data_size to be at least .* 12 rows, got 11",
    ),
    "data_size_zero": ({"x": X, "data_size": 0}, "data_size .* got 0"),
    "n_zero": ({"n": 0}, "n to be an integer of at least 1, got 0"),
    "n_float": ({"n": 2.0}, "n to be an integer of at least 1, got 2.0"),
    "covariates": ({"x": X, "covariates": torch.ones(12, 2)}, "covariates to have 0 features"),
}


@pytest.mark.parametrize("side", ["model", "guide"])
@pytest.mark.parametrize("name", CALLS)
def test_model_and_guide_refuse(name, side):
    kwargs, message = CALLS[name]
    vae = made()
    with pytest.raises(ValueError, match=f"Expected {message}"):
        getattr(vae, side)(**kwargs)


WITH_CONTEXT = {
    "missing": ({"x": X}, r"covariates of shape \(batch, 2\) for covariate_dim=2, got None"),
    "missing_for_draws": ({"n": 3}, "covariates of shape .* got None"),
    "features": (
        {"x": X, "covariates": torch.ones(12, 3)},
        r"covariates to have 2 features.*\(12, 3\)",
    ),
    "scalar": ({"x": X, "covariates": torch.tensor(1.0)}, r"covariates to have 2 features.*\(\)"),
    "n": ({"covariates": torch.ones(5, 2), "n": 3}, "n to be the 5 rows of covariates, got 3"),
    "rows": ({"x": X, "covariates": torch.ones(5, 2)}, "covariates"),
}


@pytest.mark.parametrize("side", ["model", "guide"])
@pytest.mark.parametrize("name", WITH_CONTEXT)
def test_wrong_covariates_are_refused(name, side):
    kwargs, message = WITH_CONTEXT[name]
    vae = made(covariate_dim=2)
    with pytest.raises(ValueError, match=f"Expected {message}"):
        getattr(vae, side)(**kwargs)


@pytest.mark.parametrize("kwargs", [{"data_size": 100}, {"n": 3}])
def test_without_a_plate_its_size_is_refused(kwargs):
    vae = made(plate=None)
    for side in (vae.model, vae.guide):
        with pytest.raises(ValueError, match="Expected neither data_size nor n with plate=None"):
            side(X, **kwargs)


def test_methods_refuse_wrong_shapes():
    vae = made(covariate_dim=2)
    covariates = torch.ones(12, 2)
    for call in (vae.encode, vae.reconstruct, vae.check):
        with pytest.raises(ValueError, match=r"Expected x to have shape .* got \(12, 8, 8\)"):
            call(X[:, 0])
    with pytest.raises(ValueError, match=r"Expected z to have shape \(\*batch, 3\), got \(12, 2\)"):
        vae.decode(torch.ones(12, 2), covariates)
    for call in (partial(vae.encode, X), partial(vae.decode, torch.ones(12, 3)), vae.sample):
        with pytest.raises(ValueError, match="Expected covariates of shape"):
            call()
    with pytest.raises(ValueError, match="Expected covariates of shape"):
        vae.prior_distribution()
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"Expected n to be .* got {n}"):
            vae.sample(n, covariates=covariates)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"encoder": partial(networks.Embedding, levels=2)},
        {"input_transform": partial(transforms.OneHot, levels=2)},
        {"posterior": posteriors.Full},
    ],
)
def test_methods_refuse_values_that_are_not_finite(wrong, parts):
    vae = VAE(5, 2, **parts)
    x = torch.ones(4, 5)
    x[1, 2] = wrong
    name = "no NaN, got 1" if wrong != wrong else "finite, got 1 infinite"
    for call in (vae.encode, vae.reconstruct, partial(vae.interpolate, x[:1]), vae.guide):
        with pytest.raises(ValueError, match=f"Expected x to (have|be) {name}"):
            call(x)
    assert vae.encode(x, mask=x.isfinite()).mean.isfinite().all()


def test_encode_takes_means_and_can_be_mapped_and_captured():
    vae, x = VAE(5, 2), torch.rand(4, 5)
    expected = vae.encode(x).mean
    torch.testing.assert_close(torch.func.vmap(lambda row: vae.encode(row).mean)(x), expected)
    compiled = torch.compile(lambda x: vae.encode(x).mean, backend="eager", fullgraph=True)
    # PyTorch's checks of parameters of distributions cannot be compiled.
    with pyro.validation_enabled(False):
        torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(make_fx(lambda x: vae.encode(x).mean)(x)(x), expected)


REFUSED = {
    "bernoulli": (GREY, "got grey-scale values: binarize the data"),
    "bernoulli_grey": (2 * X, "values from 0 to 2"),
    "continuous_bernoulli": (255 * GREY, "values from 0 to 255"),
    "normal_shared": (GREY + math.inf, "finite"),
    "categorical": (GREY * 16 / 255, "17 levels"),
}


@pytest.mark.parametrize("likelihood", REFUSED)
def test_values_outside_of_the_support_are_refused(likelihood):
    x, message = REFUSED[likelihood]
    vae = made(likelihood=LIKELIHOODS[likelihood])
    for call in (vae.check, vae.model, partial(objectives.ELBO().loss, vae.model, vae.guide)):
        with pytest.raises(ValueError, match=message):
            call(x)


def test_grey_scale_is_scored_where_it_is_asked_for():
    vae = made(likelihood=LIKELIHOODS["bernoulli_grey"])
    trace = poutine.trace(vae.model).get_trace(GREY)
    trace.compute_log_prob()
    p = vae.decode(trace.nodes["vae.z"]["value"]).mean
    cross_entropy = nn.functional.binary_cross_entropy(p, GREY, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(trace.nodes["vae.x"]["log_prob"], -cross_entropy)


def test_data_are_checked_only_where_pyro_validates():
    vae = made()
    with pyro.validation_enabled(False):
        assert vae.model(GREY).shape == (12, 3)
    with pytest.raises(ValueError, match="zeros and ones"):
        vae.model(GREY)


NETWORKS = {
    "encoder": ({"encoder": Returning(7)}, r"the encoder's output .* 2, 3\), got \(12, 7\)"),
    "encoder_order": ({"encoder": Returning(3, 2)}, r"the encoder's output .* got \(12, 3, 2\)"),
    "decoder": ({"decoder": Returning(8, 8)}, r"the decoder's output .*1, 1, 8, 8\), got"),
    "encoder_rows": ({"encoder": nn.Flatten(0)}, "Flatten to return 12 rows for 12"),
    "decoder_rows": ({"decoder": nn.Flatten(0)}, "Flatten to return 12 rows for 12"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_wrong_output_is_named(name):
    parts, message = NETWORKS[name]
    vae = made(**parts)
    with pytest.raises(ValueError, match=f"Expected {message}"):
        vae.guide(X) if name.startswith("encoder") else vae.model(X)


@pytest.mark.parametrize("particles", [0, -1, 1.5, True])
@pytest.mark.parametrize("objective", [objectives.ELBO, objectives.IWAE])
def test_objectives_refuse_a_number_of_particles(objective, particles):
    with pytest.raises(ValueError, match="Expected num_particles to be a positive integer"):
        objective(particles)
