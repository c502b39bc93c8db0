"""Laws of the networks: shapes for any image, and calls over any leading dimensions."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from helpers.tables import NETWORKS
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder, apply_network, eval_mode
from pyro_vae.networks.mlp import ACTIVATIONS

SIZES = [(1, 1), (2, 3), (5, 4), (8, 8), (9, 7), (17, 29), (28, 28), (20, 33)]

SMALL = {"channels": [3, 4], "hidden": 6}


def images(height: int, width: int) -> list[tuple[int, ...]]:
    return [(height, width), (1, height, width), (3, height, width)]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("covariate_dim", [0, 2])
@pytest.mark.parametrize("size", SIZES)
def test_convolutions_take_and_give_images_of_any_size(size, covariate_dim, batch_norm):
    covariates = torch.randn(4, covariate_dim) if covariate_dim else None
    options = {**SMALL, "covariate_dim": covariate_dim, "batch_norm": batch_norm}
    for shape in images(*size):
        encoder = ConvEncoder(shape, (2, 5), **options)
        assert encoder(torch.randn(4, *shape), covariates).shape == (4, 2, 5)
        for numbers in (1, 2):
            decoder = ConvDecoder((5,), (numbers, *shape), **options)
            assert decoder(torch.randn(4, 5), covariates).shape == (4, numbers, *shape)
        assert ConvDecoder((5,), shape, **options)(torch.randn(4, 5), covariates).shape == (
            4,
            *shape,
        )


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 29, 17)])
def test_the_decoder_starts_from_the_image_that_the_encoder_ends_with(shape, depth):
    channels = [2, 3, 4, 5][:depth]
    encoder = ConvEncoder(shape, (4,), channels=channels, hidden=6)
    decoder = ConvDecoder((4,), shape, channels=channels, hidden=6)
    smallest = encoder.features(torch.zeros(2, *shape)).shape[1:]
    assert decoder.smallest == tuple(smallest)
    assert decoder(torch.zeros(2, 4)).shape == (2, *shape)


def test_every_pixel_reaches_the_encoder_and_is_reached_by_the_decoder():
    shape = (3, 9, 7)
    x = torch.randn(1, *shape, requires_grad=True)
    encoder = ConvEncoder(shape, (4,), channels=[8, 8], hidden=32, activation="silu")
    (gradient,) = torch.autograd.grad(encoder(x).square().sum(), x)
    assert (gradient != 0).all()
    decoder = ConvDecoder((4,), shape, channels=[8, 8], hidden=32, activation="silu")
    assert (decoder(torch.randn(64, 4)).std(0) > 0).all()


MAKERS = {
    "mlp": (partial(MLP, hidden=[6]), partial(MLP, hidden=[6])),
    "linear": (partial(MLP, hidden=[]), partial(MLP, hidden=[])),
    "conv": (partial(ConvEncoder, **SMALL), partial(ConvDecoder, **SMALL)),
}


ALL = {**NETWORKS, **MAKERS}
"""Every network of the package, and small ones."""


def both_ways(kind: str):
    """An encoder and a decoder, to be made, with their shapes."""
    encoder, decoder = ALL[kind]
    return [(encoder, (2, 6, 5), (4,)), (decoder, (4,), (2, 6, 5))]


@pytest.mark.parametrize("kind", ALL)
def test_context_changes_the_output_and_is_needed(kind):
    for make, in_shape, out_shape in both_ways(kind):
        network = make(in_shape, out_shape, covariate_dim=3).eval()
        x, covariates = torch.randn(2, *in_shape), torch.randn(2, 3)
        out = network(x, covariates)
        assert not torch.allclose(out[0], network(x, covariates.flip(0))[0])
        torch.testing.assert_close(out.flip(0), network(x.flip(0), covariates.flip(0)))
        with pytest.raises(RuntimeError, match=r"shape|channels"):
            network(x)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_batch_norm_normalizes_in_training_and_remembers_for_evaluation(kind):
    network = MAKERS[kind][0]((1, 6, 5), (4,), batch_norm=True)
    x = 3 * torch.randn(16, 1, 6, 5) + 5
    for _ in range(60):
        training = network(x)
    network.eval()
    torch.testing.assert_close(network(x), training, rtol=0.1, atol=0.1)
    torch.testing.assert_close(network(x[:1]), network(x)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_built_by_name(activation):
    network = MLP((3,), (2,), hidden=[5], activation=activation)
    kinds = [type(m) for m in network.modules()]
    assert kinds.count(ACTIVATIONS[activation]) == 1
    conv = ConvEncoder((4, 4), (2,), **SMALL, activation=activation)
    assert [type(m) for m in conv.modules()].count(ACTIVATIONS[activation]) == 3


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3), (2, 1, 3), (5, 1, 1, 2)])
@pytest.mark.parametrize("kind", ALL)
def test_apply_network_equals_a_plain_call(kind, batch):
    for make, in_shape, out_shape in both_ways(kind):
        network = make(in_shape, out_shape).eval()
        x = torch.randn(*batch, *in_shape)
        out = apply_network(network, x, len(in_shape))
        assert out.shape == (*batch, *out_shape)
        plain = network(x.reshape(-1, *in_shape)).reshape(*batch, *out_shape)
        assert torch.equal(out, plain)


@pytest.mark.parametrize(
    ("batch", "context_batch"),
    [
        ((), ()),
        ((4,), ()),
        ((), (4,)),
        ((4,), (4,)),
        ((4,), (5, 1)),
        ((5, 1), (4,)),
        ((2, 1, 3), (4, 1)),
        ((3,), (2, 1, 3)),
    ],
)
@pytest.mark.parametrize("kind", ALL)
def test_apply_network_broadcasts_the_context_in_both_directions(kind, batch, context_batch):
    shape = (2, 6, 5)
    network = ALL[kind][0](shape, (4,), covariate_dim=3).eval()
    x, covariates = torch.randn(*batch, *shape), torch.randn(*context_batch, 3)
    out = apply_network(network, x, 3, covariates)
    full = torch.broadcast_shapes(batch, context_batch)
    assert out.shape == (*full, 4)
    rows, covariates = x.expand(*full, *shape), covariates.expand(*full, 3)
    for index in itertools.product(*map(range, full)):
        alone = network(rows[index][None], covariates[index][None])[0]
        torch.testing.assert_close(out[index], alone)


def test_apply_network_takes_no_rows():
    for kind in ALL:
        network = ALL[kind][0]((2, 6, 5), (4,)).eval()
        assert apply_network(network, torch.zeros(0, 3, 2, 6, 5), 3).shape == (0, 3, 4)


class Summing(nn.Module):
    """Loses the batch."""

    def forward(self, x):
        return x.sum(0)


def test_apply_network_refuses_a_network_that_loses_rows():
    with pytest.raises(ValueError, match=r"Expected Summing to return 6 rows for 6, got .*\(5,\)"):
        apply_network(Summing(), torch.zeros(6, 5), 1)
    with pytest.raises(ValueError, match="Expected Summing to return 1 rows for 1"):
        apply_network(Summing(), torch.zeros(5), 1)


def test_eval_mode_restores_the_mode_of_each_module():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    network[1].eval()
    other = nn.Dropout()
    modes = [m.training for m in network.modules()]
    with eval_mode(network, other):
        assert not any(m.training for m in [*network.modules(), other])
        with eval_mode(network):
            pass
        assert not any(m.training for m in network.modules())
    assert [m.training for m in network.modules()] == modes
    assert other.training


def test_eval_mode_restores_after_an_error():
    network = nn.Dropout()
    with pytest.raises(KeyError), eval_mode(network):
        raise KeyError
    assert network.training


BAD = {
    "activation": (
        lambda: MLP((2,), (2,), activation="sigh"),
        "activation to be 'elu', .* got 'sigh'",
    ),
    "conv_activation": (lambda: ConvEncoder((4, 4), (2,), activation="sigh"), "activation"),
    "hidden_zero": (lambda: MLP((2,), (2,), hidden=[0]), r"hidden .* positive integers, got \[0\]"),
    "hidden_float": (lambda: MLP((2,), (2,), hidden=[2.5]), "hidden"),
    "hidden_number": (lambda: MLP((2,), (2,), hidden=16), "hidden .* got 16"),
    "channels": (lambda: ConvEncoder((4, 4), (2,), channels=[4, -1]), "channels"),
    "channels_number": (lambda: ConvDecoder((2,), (4, 4), channels=4), "channels"),
    "encoder_hidden": (lambda: ConvEncoder((4, 4), (2,), hidden=0), "hidden"),
    "decoder_hidden": (lambda: ConvDecoder((2,), (4, 4), hidden=0), "hidden"),
    "in_shape": (lambda: ConvEncoder((5,), (2,)), r"in_shape to be an image.* got \(5,\)"),
    "in_shape_4": (lambda: ConvEncoder((1, 2, 4, 4), (2,)), "in_shape to be an image"),
    "out_shape": (lambda: ConvDecoder((2,), (5,)), "out_shape to be an image"),
    "out_shape_5": (lambda: ConvDecoder((2,), (1, 1, 2, 4, 4)), "out_shape to be an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=f"Expected {message}"):
        make()


@pytest.mark.parametrize("covariates", [None, torch.ones(4, 1, 2)])
def test_a_network_that_broadcasts_by_itself_is_given_the_batch_as_it_is(covariates):
    class Weights(torch.nn.Module):
        broadcasts = True

        def forward(self, x, *given):
            shapes.append([tuple(value.shape) for value in (x, *given)])
            return x * torch.arange(7.0).reshape(7, 1, 1, 1)

    shapes = []
    x = torch.ones(4, 5, 3)
    assert apply_network(Weights(), x, 1, covariates).shape == (7, 4, 5, 3)
    assert shapes == [[(4, 5, 3)] if covariates is None else [(4, 5, 3), (4, 1, 2)]]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("kind", list(MAKERS))
def test_batch_norm_takes_the_place_of_the_biases_before_it(kind, batch_norm):
    network = MAKERS[kind][0]((1, 6, 5), (4,), batch_norm=batch_norm)
    modules = list(network.modules())
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    layers = [m for m in modules if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
    assert batch_norm or not norms
    assert sum(layer.bias is None for layer in layers) == len(norms)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (None, r"got a NoneType$"),
        (3.0, r"got a float$"),
        ({"loc": torch.ones(4, 2)}, r"got a dict$"),
        ((torch.ones(4, 2), None), r"got a tuple$"),
        (
            [torch.ones(4, 2), torch.ones(4, 3)],
            r"got a list \[\(4, 2\), \(4, 3\)\]: stack them, torch\.stack\(outputs, 1\)$",
        ),
    ],
)
@pytest.mark.parametrize("batch", [(4,), (2, 4)])
def test_a_network_that_returns_no_tensor_is_refused(out, message, batch):
    class Given(nn.Module):
        def forward(self, x):
            return out

    with pytest.raises(ValueError, match=f"Expected Given to return one tensor, {message}"):
        apply_network(Given(), torch.ones(*batch, 5), 1, None)
