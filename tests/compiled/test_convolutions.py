"""Transposed convolutions by products of matrices, against PyTorch's."""

from itertools import product

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv_transpose2d

import pyro_vae
from pyro_vae import VAE, evaluate, networks, objectives
from pyro_vae.compiled.convolutions import (
    conv_transpose,
    replace_thin_convolutions,
    use_channels_last,
)
from pyro_vae.compiled.graph import capture_graph


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3), (5, 4)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_kernel_stride_and_padding(kernel, stride, channels):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 6).double()
    weight = torch.randn(4, channels, *kernel).double()
    for padding, extra in product(product(range(3), repeat=2), product(range(2), repeat=2)):
        if any(p >= k or e >= s for p, k, e, s in zip(padding, kernel, extra, stride, strict=True)):
            continue
        expected = conv_transpose2d(x, weight, None, stride, padding, extra)
        settings = {"stride": stride, "padding": padding, "output_padding": extra}
        torch.testing.assert_close(conv_transpose(x, weight, **settings), expected)


def capture(channels, bias=True, **settings):
    layer = torch.nn.ConvTranspose2d(8, channels, 3, stride=2, padding=1, bias=bias, **settings)
    with torch.no_grad():
        x = torch.randn(4, 8, 7, 7)
        return make_fx(layer)(x), x, layer(x)


@pytest.mark.parametrize("bias", [True, False])
def test_thin_convolutions_of_a_graph_are_replaced(bias):
    graph, x, expected = capture(1, bias)
    assert replace_thin_convolutions(graph) == 1
    assert not any("convolution" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), expected)


@pytest.mark.parametrize(
    ("channels", "settings"), [(16, {}), (8, {"groups": 8}), (1, {"dilation": 2})]
)
def test_other_convolutions_are_left(channels, settings):
    graph, x, expected = capture(channels, **settings)
    assert replace_thin_convolutions(graph) == 0
    torch.testing.assert_close(graph(x), expected)


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
