"""Fully connected residual networks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.networks.mlp import build_activation
from pyro_vae.validation import check_flag, check_shape, check_size

__all__ = ["ResidualMLP", "shrink_layers"]


@torch.no_grad()
def shrink_layers(layers: Sequence[nn.Linear | nn.Conv2d]) -> None:
    """Divides the parameters of layers, the last of residual blocks, by the root of their number.

    The sum of the outputs of blocks then has a variance that does not depend on their number.
    """
    for layer in layers:
        for parameter in layer.parameters():
            parameter.div_(math.sqrt(len(layers)))


class ResidualMLP(nn.Module):
    r"""A fully connected residual network from one shape to another.

    A linear layer, ``blocks`` residual blocks, and a linear layer after an activation:

    .. math:: h_{l + 1} = h_l + W_l\, a(n(V_l\, a(n(h_l)) + b_l)) + c_l

    The activation :math:`a` precedes the linear layers, so that gradients reach every block along
    the sum. :math:`n` is a layer norm or nothing. All layers have PyTorch's initialization, and
    :math:`W_l` and :math:`c_l` are divided by the square root of ``blocks``: a network of any depth
    starts near a linear map.

    References:
        | Identity mappings in deep residual networks (He et al., 2016),
          https://arxiv.org/abs/1603.05027

    Arguments:
        in_shape: The shape of an input, without batch; flattened.
        out_shape: The shape of an output, without batch.
        width: The width of the blocks and of the layer inside each.
        blocks: The number of blocks.
        activation: As in :class:`~pyro_vae.networks.MLP`.
        layer_norm: Whether to put a layer norm before each activation.
        covariate_dim: The number of covariates, concatenated to the input.

    Raises:
        ValueError: If a size is not a positive integer, or the activation is unknown.

    Example:
        >>> import torch
        >>> ResidualMLP((1, 8, 8), (2, 5), blocks=4)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 2, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        width: int = 200,
        blocks: int = 2,
        activation: str = "relu",
        layer_norm: bool = False,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        width = check_size("width", width, least=1)
        blocks = check_size("blocks", blocks, least=1)
        layer_norm = check_flag("layer_norm", layer_norm)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        self.first = nn.Linear(self.in_shape.numel() + covariate_dim, width)
        stack = [_build_block(width, activation, layer_norm) for _ in range(blocks)]
        shrink_layers([block[-1] for block in stack])  # type: ignore[misc]
        self.blocks = nn.ModuleList(stack)
        self.last = nn.Sequential(
            *_build_activation(width, activation, layer_norm),
            nn.Linear(width, self.out_shape.numel()),
        )

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h).unflatten(-1, self.out_shape)


def _build_block(width: int, activation: str, layer_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [*_build_activation(width, activation, layer_norm), nn.Linear(width, width)]
    return nn.Sequential(*layers)


def _build_activation(width: int, activation: str, layer_norm: bool) -> list[nn.Module]:
    return [*([nn.LayerNorm(width)] if layer_norm else []), build_activation(activation)]
