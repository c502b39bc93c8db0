"""Products in bfloat16: rounded factors, and all else as it is."""

from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_vae
from pyro_vae import VAE, data, fit, networks, objectives
from pyro_vae.compiled.bfloat16 import use_bfloat16


def rounded(x):
    return x.bfloat16().float()


def as_graph_of(function, *inputs):
    graph = make_fx(function)(*inputs)
    return graph, use_bfloat16(graph)


@pytest.mark.parametrize("bias", [False, True])
def test_the_factors_of_products_are_rounded_and_no_sum_is(bias):
    torch.manual_seed(0)
    left, right, shift = torch.randn(7, 40), torch.randn(40, 5), torch.randn(5)

    def function(left, right, shift):
        product = torch.addmm(shift, left, right) if bias else left @ right
        return product.exp().sum(), product

    graph, changed = as_graph_of(function, left, right, shift)
    total, product = graph(left, right, shift)
    exact = rounded(left).double() @ rounded(right).double()
    assert changed
    assert product.dtype == total.dtype == torch.float32
    # What is left is the rounding of the product itself, half of 2**-7.
    error = (product - bias * shift).double() - exact
    assert (error.abs() <= 2**-8 * exact.abs() + 1e-5).all()
    torch.testing.assert_close(total, product.exp().sum())


def test_convolutions_and_their_gradients_are_products_too():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 2, 8, 8), torch.randn(4, 2, 3, 3), torch.randn(4)

    def function(x, weight, bias):
        weight, bias = weight.detach().requires_grad_(), bias.detach().requires_grad_()
        out = torch.nn.functional.conv2d(x, weight, bias, stride=2, padding=1)
        return (out.detach(), *torch.autograd.grad(out.square().sum(), (weight, bias)))

    graph, changed = as_graph_of(function, x, weight, bias)
    assert changed
    for ours, exact in zip(graph(x, weight, bias), function(x, weight, bias), strict=True):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, exact)
        assert (ours - exact).norm() < 0.01 * exact.norm()


def test_double_precision_and_a_graph_without_products_stay_as_they_are():
    x = torch.randn(3, 3)
    assert not as_graph_of(lambda x: x + 1, x)[1]
    assert not as_graph_of(lambda x: x @ x, x.double())[1]


@pytest.mark.parametrize(
    "parts",
    [
        {"encoder": partial(networks.MLP, hidden=[16], batch_norm=True)},
        {"encoder": networks.ConvEncoder, "decoder": networks.ConvDecoder},
    ],
    ids=["mlp", "conv"],
)
def test_a_step_has_nearly_the_same_loss_and_gradients(parts):
    torch.manual_seed(0)
    vae, objective = VAE((1, 8, 8), 2, **parts), objectives.ELBO()
    x = (torch.rand(30, 1, 8, 8) > 0.5).float()
    made = pyro_vae.compile(
        objective, vae.model, vae.guide, precision="bfloat16", strict=True, backend="eager"
    )
    made(x)
    torch.manual_seed(1)
    loss, ours = made(x), torch.cat([p.grad.flatten() for p in vae.parameters()])
    torch.manual_seed(1)
    vae.zero_grad()
    exact = objective.differentiable_loss(vae.model, vae.guide, x)
    exact.backward()
    theirs = torch.cat([p.grad.flatten() for p in vae.parameters()])
    assert made.engine == "compiled-bfloat16"
    assert loss != exact
    assert abs(loss - exact) < 1e-3 * exact
    assert (ours - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.long
def test_training_in_bfloat16_goes_on_in_it(tmp_path):
    digits = data.digits()

    def trained(**settings):
        torch.manual_seed(3)
        vae = VAE((1, 8, 8), 2, encoder=partial(networks.MLP, hidden=[8]))
        return vae, fit(vae, digits.train, **settings)

    whole, result = trained(epochs=3, precision="bfloat16")
    assert result.engine == "compiled-bfloat16"
    trained(epochs=1, precision="bfloat16", out=tmp_path)
    again, resumed = trained(epochs=3, out=tmp_path, resume=True)
    assert resumed.history == result.history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_what_is_no_precision_is_refused():
    digits, vae = data.digits(), VAE((1, 8, 8), 2)
    with pytest.raises(
        ValueError, match="Expected precision to be 'float32' or 'bfloat16', got 'half'"
    ):
        fit(vae, digits.train, precision="half")
    with pytest.raises(
        ValueError, match="Expected precision to be 'float32' or 'bfloat16', got 'half'"
    ):
        pyro_vae.compile(objectives.ELBO(), vae.model, vae.guide, precision="half")
    with pytest.raises(
        ValueError, match="Expected compiled steps, which precision='bfloat16' needs"
    ):
        fit(vae, digits.train, precision="bfloat16", compile=False)
