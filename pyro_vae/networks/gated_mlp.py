"""Multilayer perceptrons of gated linear units."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_vae.validation import check_shape, check_size, check_sizes

__all__ = ["GatedMLP"]


class GatedMLP(nn.Module):
    r"""A multilayer perceptron of gated layers, as in the VampPrior paper.

    .. math:: h_{l + 1} = (W_l h_l + b_l) \odot \sigma(V_l h_l + c_l)

    A linear layer follows. The gates replace the activation: where they are open, a layer is
    linear. :math:`V_l` has Xavier's initialization, and :math:`W_l` twice of it, because all gates
    start near one half; the biases start at zero.

    References:
        | VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120
        | Language modeling with gated convolutional networks (Dauphin et al., 2017),
          https://arxiv.org/abs/1612.08083

    Arguments:
        in_shape: The shape of an input, without batch; flattened.
        out_shape: The shape of an output, without batch.
        hidden: The widths of the gated layers; an empty list makes the network linear.
        covariate_dim: The number of covariates, concatenated to the input.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> import torch
        >>> GatedMLP((1, 8, 8), (2, 5), hidden=[32])(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 2, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (300, 300),
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        widths = [self.in_shape.numel() + covariate_dim, *check_sizes("hidden", hidden)]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            # One matrix multiplication for W and V, whose rows follow those of W.
            layers += [_build_linear(fan_in, fan_out), nn.GLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.out_shape.numel()))

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        return self.layers(x).unflatten(-1, self.out_shape)


def _build_linear(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, 2 * fan_out)
    linear, gate = layer.weight.detach().chunk(2)
    nn.init.xavier_uniform_(linear, gain=2.0)
    nn.init.xavier_uniform_(gate)
    nn.init.zeros_(layer.bias)
    return layer
