"""The networks of this project."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["MyEncoder"]


class MyEncoder(nn.Module):
    """A network with skip connections and dropout, for an encoder or a decoder.

    Arguments:
        in_shape: The shape of an input without batch, which the VAE passes.
        out_shape: The shape of an output without batch, likewise.
        width: The width of the hidden layers.
        blocks: The number of skip connections.
        dropout: The share of hidden units that are zero in a training step.
        covariate_dim: The number of covariates, which the VAE passes.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        width: int = 100,
        blocks: int = 2,
        dropout: float = 0.05,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.out_shape = torch.Size(out_shape)
        self.first = nn.Linear(torch.Size(in_shape).numel() + covariate_dim, width)
        # Change the layers here. Evaluation turns dropout off.
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.last = nn.Linear(width, self.out_shape.numel())

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h.relu()).unflatten(-1, self.out_shape)
