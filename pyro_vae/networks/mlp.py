"""Multilayer perceptrons."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyro_vae.validation import (
    check_choice,
    check_flag,
    check_shape,
    check_size,
    check_sizes,
)

__all__ = ["MLP", "build_activation"]

ACTIVATIONS = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def build_activation(name: str) -> nn.Module:
    """Builds an activation from its name.

    Raises:
        ValueError: If the name is unknown.
    """
    return ACTIVATIONS[check_choice("activation", name, tuple(sorted(ACTIVATIONS)))]()


class MLP(nn.Module):
    r"""A multilayer perceptron from one shape to another.

    Arguments:
        in_shape: The shape of an input, without batch; flattened.
        out_shape: The shape of an output, without batch.
        hidden: The widths of the hidden layers; an empty list makes the network linear.
        activation: ``"elu"``, ``"gelu"``, ``"leaky_relu"``, ``"relu"``, ``"silu"``,
            ``"softplus"`` or ``"tanh"``.
        batch_norm: Whether to put a batch norm before each activation.
        covariate_dim: The number of covariates, concatenated to the input.

    Raises:
        ValueError: If a size is not a positive integer, or the activation is unknown.

    Example:
        >>> import torch
        >>> MLP((1, 8, 8), (2, 5), hidden=[32])(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 2, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (200,),
        activation: str = "relu",
        batch_norm: bool = False,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        batch_norm = check_flag("batch_norm", batch_norm)
        widths = [self.in_shape.numel() + covariate_dim, *check_sizes("hidden", hidden)]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers.append(nn.Linear(fan_in, fan_out, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(fan_out))
            layers.append(build_activation(activation))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], self.out_shape.numel()))

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        return self.layers(x).unflatten(-1, self.out_shape)
