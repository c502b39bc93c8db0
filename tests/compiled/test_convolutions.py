"""Convolutions as matmuls of patches, against PyTorch's."""

from itertools import product

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv2d, conv_transpose2d

import pyro_vae
from pyro_vae import VAE, evaluate, networks, objectives
from pyro_vae.compiled.convolutions import (
    Geometry,
    convolve,
    convolve_transposed,
    replace_convolutions,
    unfold,
    use_channels_last,
)
from pyro_vae.compiled.graph import capture_graph

kernels = pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3), (5, 4)])
strides = pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])


def list_paddings(kernel, stride):
    for padding, extra in product(product(range(3), repeat=2), product(range(2), repeat=2)):
        if all(p < k and e < s for p, k, e, s in zip(padding, kernel, extra, stride, strict=True)):
            yield padding, extra


@kernels
@strides
@pytest.mark.parametrize("channels", [1, 3])
def test_transposed_convolutions_of_any_kernel_stride_and_padding(kernel, stride, channels):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 6).double()
    weight = torch.randn(4, channels, *kernel).double()
    for padding, extra in list_paddings(kernel, stride):
        expected = conv_transpose2d(x, weight, None, stride, padding, extra)
        geometry = Geometry(kernel, stride, padding, tuple(expected.shape[2:]), (5, 6))
        torch.testing.assert_close(convolve_transposed(x, weight, geometry), expected)


@kernels
@strides
@pytest.mark.parametrize("size", [(7, 8), (8, 7), (9, 6)])
def test_convolutions_of_any_kernel_stride_and_padding(kernel, stride, size):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, *size).double(), torch.randn(4, 3, *kernel).double()
    for padding, _ in list_paddings(kernel, stride):
        expected = conv2d(x, weight, None, stride, padding)
        geometry = Geometry(kernel, stride, padding, size, tuple(expected.shape[2:]))
        torch.testing.assert_close(convolve(unfold(x, geometry), weight, geometry), expected)


def capture_gradients(layer, x):
    """Returns the graph of a layer's output and gradients, their inputs and their values."""
    weights = list(layer.parameters())
    factor = torch.randn_like(layer(x))

    def run(x, factor, *weights):
        names = [name for name, _ in layer.named_parameters()]
        named = dict(zip(names, weights, strict=True))
        y = torch.func.functional_call(layer, named, (x,))
        return y, *torch.autograd.grad((y * factor).sum(), (x, *weights))

    inputs = [x, factor, *weights]
    graph = make_fx(run)(*[t.detach().requires_grad_() for t in inputs])
    return graph, inputs, run(*inputs)


def count_convolutions(graph):
    return sum("convolution" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "channels", "settings"),
    [
        (torch.nn.Conv2d, (1, 8), {"stride": 2, "padding": 1}),
        (torch.nn.Conv2d, (7, 2), {"stride": (2, 3), "padding": (0, 2)}),
        (torch.nn.Conv2d, (3, 2), {"padding": (2, 1)}),
        (torch.nn.ConvTranspose2d, (24, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
        (torch.nn.ConvTranspose2d, (2, 7), {"stride": (3, 2), "output_padding": (2, 0)}),
        (torch.nn.ConvTranspose2d, (8, 1), {"stride": 2, "padding": 1}),
        (torch.nn.ConvTranspose2d, (8, 3), {"stride": 1, "padding": 2}),
    ],
)
def test_convolutions_of_a_graph_and_their_gradients_are_replaced(
    kind, channels, settings, bias, dtype
):
    torch.manual_seed(0)
    layer = kind(*channels, 3, bias=bias, dtype=dtype, **settings)
    x = torch.randn(4, channels[0], 8, 9, dtype=dtype, requires_grad=True)
    graph, inputs, expected = capture_gradients(layer, x)
    assert count_convolutions(graph) == 2
    assert replace_convolutions(graph) == 2
    assert not count_convolutions(graph)
    for actual, value in zip(graph(*inputs), expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-4, atol=1e-4)


def test_gradients_that_nobody_needs_are_left_out():
    layer = torch.nn.Conv2d(4, 16, 3, stride=2, bias=False)
    x, weight = torch.randn(2, 4, 9, 9), layer.weight.detach().requires_grad_()

    def run(x, weight):
        y = torch.nn.functional.conv2d(x, weight, stride=2)
        return torch.autograd.grad(y.square().sum(), weight)

    graph = make_fx(run)(x, weight)
    expected = run(x, weight)
    replace_convolutions(graph)
    torch.testing.assert_close(graph(x, weight), expected, rtol=1e-4, atol=1e-4)
    assert sum("mm" in str(node.target) for node in graph.graph.nodes) == 2


@pytest.mark.parametrize(
    ("kind", "channels", "settings"),
    [
        (torch.nn.ConvTranspose2d, (1, 8), {}),
        (torch.nn.ConvTranspose2d, (16, 16), {"groups": 8}),
        (torch.nn.ConvTranspose2d, (8, 1), {"dilation": 2}),
        (torch.nn.Conv2d, (8, 1), {}),
        (torch.nn.Conv2d, (1, 16), {"dilation": 2}),
        (torch.nn.Conv2d, (1, 16), {"padding": 3}),
        (torch.nn.Conv1d, (1, 16), {}),
    ],
)
def test_other_convolutions_are_left(kind, channels, settings):
    layer = kind(*channels, 3, **settings)
    with torch.no_grad():
        x = torch.randn(4, channels[0], *[9] * len(layer.kernel_size))
        graph, expected = make_fx(layer)(x), layer(x)
    assert replace_convolutions(graph) == 0
    torch.testing.assert_close(graph(x), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, torch.nn.ConvTranspose2d])
def test_other_convolutions_and_their_gradients_are_channels_last(kind, bias):
    torch.manual_seed(0)
    layer = kind(16, 12, 3, stride=2, padding=1, bias=bias)
    x = torch.randn(4, 16, 8, 9, requires_grad=True)
    graph, inputs, expected = capture_gradients(layer, x)
    assert replace_convolutions(graph) == 0
    use_channels_last(graph)
    actual = graph(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    assert actual[2].stride() == layer.weight.stride()


@pytest.mark.parametrize("channels", [(1, 16), (16, 16)])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_convolutions_with_frozen_parameters(channels, frozen):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(*channels, 3, stride=2)
    x = torch.randn(4, channels[0], 9, 9, requires_grad=True)
    trained = getattr(layer, {"weight": "bias", "bias": "weight"}[frozen])
    getattr(layer, frozen).requires_grad_(False)

    def run(x, trained, other):
        weight, bias = (other, trained) if frozen == "weight" else (trained, other)
        y = conv2d(x, weight, bias, stride=2)
        return y, *torch.autograd.grad(y.square().sum(), (x, trained))

    inputs = [x, trained, getattr(layer, frozen)]
    graph, expected = make_fx(run)(*inputs), run(*inputs)
    replace_convolutions(graph)
    use_channels_last(graph)
    torch.testing.assert_close(graph(*inputs), expected, rtol=1e-4, atol=1e-4)


def make_conv():
    torch.manual_seed(0)
    vae = VAE((1, 8, 8), 2, encoder=networks.ConvEncoder, decoder=networks.ConvDecoder)
    return vae, torch.rand(20, 1, 8, 8).round()


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_convolutions_are_compiled_in_each_precision(precision):
    vae, x = make_conv()
    optimizer = torch.optim.Adam(vae.parameters())
    step = pyro_vae.compile(
        objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer, precision=precision,
        strict=True,
    )  # fmt: skip
    for _ in range(2):
        assert torch.isfinite(step(x))
    assert step.engine.startswith("compiled")
    assert all(p.grad.stride() == p.stride() for p in vae.parameters())


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluation_of_convolutions_is_compiled_in_each_precision(precision):
    vae, x = make_conv()
    found = [
        evaluate.log_evidence(vae, x, 200, compile=compiled, precision=chosen).mean()
        for compiled, chosen in (("strict", precision), (False, "float32"))
    ]
    torch.testing.assert_close(*found, rtol=0, atol=0.3)


def test_graphs_without_convolutions_are_left():
    graph = make_fx(lambda x: x.view(2, 6) + 1)(torch.zeros(12))
    before = graph.code
    use_channels_last(graph)
    assert graph.code == before


def test_a_weight_that_the_model_changes_in_place_is_copied_after_that():
    weight = torch.zeros(4, 3, 3, 3)

    def model(x):
        weight.view(-1).clamp_(max=0.5)
        return (torch.nn.functional.conv2d(x, weight).flatten(1),)

    x = torch.randn(2, 3, 5, 5)
    graph, lifted = capture_graph(model, [x])
    use_channels_last(graph)
    weight.fill_(1.0)
    found = graph(*lifted, x)[0]
    weight.fill_(1.0)
    torch.testing.assert_close(found, model(x)[0])
