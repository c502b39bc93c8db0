"""Transposed convolutions by products of matrices, against PyTorch's."""

from itertools import product

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import conv_transpose2d

from pyro_vae.compiled.convolutions import conv_transpose, replace_thin_convolutions


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
