"""Laws of the networks: shapes for any image, and calls over any leading dimensions."""

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn

from helpers.tables import NETWORKS
from pyro_vae import VAE, data, fit, networks
from pyro_vae.networks import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    GatedMLP,
    ResidualConvDecoder,
    ResidualConvEncoder,
    ResidualMLP,
    apply_network,
    eval_mode,
)
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


@pytest.mark.parametrize("group_norm", [False, True])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_residual_convolutions_take_and_give_images_of_any_size(size, blocks, group_norm):
    options = {**SMALL, "blocks": blocks, "group_norm": group_norm}
    for shape in images(*size):
        for covariate_dim in (0, 2):
            covariates = torch.randn(4, covariate_dim) if covariate_dim else None
            encoder = ResidualConvEncoder(shape, (2, 5), **options, covariate_dim=covariate_dim)
            assert encoder(torch.randn(4, *shape), covariates).shape == (4, 2, 5)
            for out_shape in (shape, (1, *shape), (2, *shape)):
                decoder = ResidualConvDecoder(
                    (5,), out_shape, **options, covariate_dim=covariate_dim
                )
                assert decoder(torch.randn(4, 5), covariates).shape == (4, *out_shape)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 29, 17)])
def test_the_decoder_starts_from_the_image_that_the_encoder_ends_with(shape, depth, residual):
    channels = [2, 3, 4, 5][:depth]
    prefix = "Residual" if residual else ""
    encoder = getattr(networks, f"{prefix}ConvEncoder")(shape, (4,), channels=channels, hidden=6)
    decoder = getattr(networks, f"{prefix}ConvDecoder")((4,), shape, channels=channels, hidden=6)
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


@torch.no_grad()
def normalize(x, weight, bias, groups=1):
    """A group norm by hand."""
    parts = x.reshape(len(x), groups, -1)
    loc, scale = parts.mean(-1, keepdim=True), parts.var(-1, keepdim=True, correction=0)
    x = ((parts - loc) / (scale + 1e-5).sqrt()).reshape(x.shape)
    shape = (-1, *(1 for _ in x.shape[2:]))
    return x * weight.reshape(shape) + bias.reshape(shape)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_residual_mlp_is_its_formula(blocks, layer_norm):
    network = ResidualMLP(
        (2, 3), (4,), width=5, blocks=blocks, activation="tanh", layer_norm=layer_norm
    ).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    own = {name: value.detach() for name, value in network.named_parameters()}

    def act(prefix, number, h):
        if layer_norm:
            h = normalize(h, own[f"{prefix}.{number}.weight"], own[f"{prefix}.{number}.bias"])
        return h.tanh()

    def linear(prefix, h):
        return h @ own[f"{prefix}.weight"].T + own[f"{prefix}.bias"]

    x = torch.randn(7, 2, 3).double()
    h, step = linear("first", x.reshape(7, 6)), 2 + layer_norm
    for b in range(blocks):
        inner = linear(f"blocks.{b}.{step - 1}", act(f"blocks.{b}", 0, h))
        h = h + linear(f"blocks.{b}.{2 * step - 1}", act(f"blocks.{b}", step, inner))
    expected = linear(f"last.{step - 1}", act("last", 0, h))
    torch.testing.assert_close(network(x).detach(), expected)
    assert sum(p.numel() for p in network.parameters()) == (
        6 * 5 + 5 + blocks * 2 * (30 + 10 * layer_norm) + 5 * 4 + 4 + 10 * layer_norm
    )


@pytest.mark.parametrize("group_norm", [False, True])
def test_a_residual_convolution_is_its_formula(group_norm):
    network = ResidualConvEncoder(
        (2, 7, 6), (4,), channels=[16], hidden=6, activation="tanh", group_norm=group_norm
    ).double()
    convolution, block, *_ = network.features
    x = convolution(torch.randn(3, 2, 7, 6).double()).detach()
    expected = x
    for layer in block.layers:
        if isinstance(layer, nn.GroupNorm):
            assert layer.num_groups == 4
            nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
            expected = normalize(expected, layer.weight, layer.bias, 4)
        elif isinstance(layer, nn.Tanh):
            expected = expected.tanh()
        else:
            expected = nn.functional.conv2d(expected, layer.weight, layer.bias, padding=1)
    kinds = [nn.GroupNorm, nn.Tanh, nn.Conv2d] if group_norm else [nn.Tanh, nn.Conv2d]
    assert [type(layer) for layer in block.layers] == kinds * 2
    torch.testing.assert_close(block(x), x + expected)


def test_groups_of_a_norm_have_four_channels_or_more():
    for channels, groups in ((1, 1), (3, 1), (4, 1), (8, 2), (16, 4), (32, 8), (64, 8), (24, 2)):
        network = ResidualConvEncoder((8, 8), (4,), channels=[channels], group_norm=True)
        norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
        assert [norm.num_groups for norm in norms] == [groups] * 3


@torch.no_grad()
def test_deep_residual_networks_start_near_a_linear_map():
    shares = {}
    for blocks in (1, 64):
        torch.manual_seed(0)
        network = ResidualMLP((50,), (1,), width=200, blocks=blocks)
        start = h = network.first(torch.randn(100, 50))
        for block in network.blocks:
            h = h + block(h)
        shares[blocks] = ((h - start).std() / start.std()).square()
    assert shares[1] < 0.1
    assert 0.3 < shares[64] / shares[1] < 3


@pytest.mark.parametrize("covariate_dim", [0, 2])
def test_a_gated_mlp_is_its_formula(covariate_dim):
    network = GatedMLP((2, 3), (2, 2), hidden=[5, 4], covariate_dim=covariate_dim).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    x, covariates = torch.randn(7, 2, 3).double(), torch.randn(7, 2).double()
    inputs = (x, covariates) if covariate_dim else (x,)
    h = torch.cat([value.flatten(1) for value in inputs], 1)
    for layer, width in ((network.layers[0], 5), (network.layers[2], 4)):
        w, v = layer.weight[:width], layer.weight[width:]
        b, c = layer.bias[:width], layer.bias[width:]
        h = (h @ w.T + b) / (1 + (-(h @ v.T + c)).exp())
    expected = (h @ network.layers[4].weight.T + network.layers[4].bias).reshape(7, 2, 2)
    torch.testing.assert_close(network(*inputs), expected)
    assert len(network.layers) == 5


def test_gated_layers_keep_the_size_of_their_input():
    network = GatedMLP((300,), (1,), hidden=[300] * 8)
    h = torch.randn(200, 300)
    for layer in network.layers[:-1]:
        h = layer(h)
    assert 0.3 < h.std() < 3


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_has_a_gradient_in_both_precisions(kind):
    for dtype in (torch.float32, torch.float64):
        for make, in_shape, out_shape in both_ways(kind):
            network = make(in_shape, out_shape, covariate_dim=3).to(dtype)
            out = network(torch.rand(5, *in_shape, dtype=dtype), torch.randn(5, 3, dtype=dtype))
            assert out.dtype == dtype
            (out * torch.randn_like(out)).sum().backward()
            if "batch_norm" not in kind:
                assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_copies_and_stored_weights_give_the_same_output(kind):
    for make, in_shape, out_shape in both_ways(kind):
        network = make(in_shape, out_shape).eval()
        x = torch.rand(3, *in_shape)
        assert torch.equal(copy.deepcopy(network)(x), network(x))
        other = make(in_shape, out_shape).eval()
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(x), network(x))


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_residual_convolutions_refuse_channels_that_come_last(role):
    kind = ResidualConvEncoder if role == "encoder" else ResidualConvDecoder
    x = torch.rand(4, 16, 16, 3).round()
    rows = data.Rows(x)
    with pytest.raises(ValueError, match=rf"of the {role}, .*partial\(networks\.{kind.__name__}"):
        fit(VAE((16, 16, 3), 2, **{role: partial(kind, **SMALL)}), rows, epochs=1)
    part = partial(kind, **SMALL, channels_first=True)
    fit(VAE((16, 16, 3), 2, **{role: part}), rows, epochs=1)


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
        with pytest.raises((RuntimeError, ValueError), match=r"shape|channels|size"):
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
    "residual_width": (lambda: ResidualMLP((2,), (2,), width=0), "width .* got 0"),
    "residual_blocks": (lambda: ResidualMLP((2,), (2,), blocks=0), "blocks .* got 0"),
    "residual_norm": (lambda: ResidualMLP((2,), (2,), layer_norm=1), "layer_norm .* got 1"),
    "residual_activation": (lambda: ResidualMLP((2,), (2,), activation="x"), "activation"),
    "gated_hidden": (lambda: GatedMLP((2,), (2,), hidden=[0]), r"hidden .* got \[0\]"),
    "residual_conv": (lambda: ResidualConvEncoder((5,), (2,)), "in_shape to be an image"),
    "residual_conv_out": (lambda: ResidualConvDecoder((5,), (2,)), "out_shape to be an image"),
    "residual_conv_blocks": (lambda: ResidualConvEncoder((4, 4), (2,), blocks=0), "blocks"),
    "residual_conv_norm": (lambda: ResidualConvDecoder((2,), (4, 4), group_norm=2), "group_norm"),
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
