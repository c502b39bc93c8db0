"""Transformers for sequences."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.networks.sequences import (
    append_covariates,
    read_sequence_shape,
    read_steps,
    split_length,
    write_steps,
)
from pyro_vae.validation import check_flag, check_number, check_shape, check_size

__all__ = ["TransformerDecoder", "TransformerEncoder"]


class _Layer(nn.Module):
    """A pre-norm layer, as ``torch.nn.TransformerEncoderLayer`` without biases of the projection.

    That class has a fast path without gradients that ``torch.func.vmap`` and thus ``fit_many`` do
    not support.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(width)
        # The softmax cancels a bias of the keys, and the last bias adds that of the values.
        self.projection = nn.Linear(width, 3 * width, bias=False)
        self.mixing = nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, h: Tensor, present: Tensor | None) -> Tensor:
        h = h + self.dropout(self._attend(self.attention_norm(h), present))
        return h + self.feedforward(h)

    def _attend(self, h: Tensor, present: Tensor | None) -> Tensor:
        q, k, v = self.projection(h).unflatten(-1, (3, self.heads, -1)).movedim(1, -2).unbind(1)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if present is not None:
            scores = scores.masked_fill(~present[:, None, None, :], -math.inf)
        weights = self.dropout(scores.softmax(-1))
        return self.mixing((weights @ v).transpose(1, 2).flatten(2))


class _Stack(nn.Module):
    """Layers and a last norm."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, present: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            h = layer(h, present)
        return self.norm(h)


def _build_stack(width: int, heads: int, layers: int, dropout: float) -> _Stack:
    heads = check_size("heads", heads, least=1)
    if width % heads:
        raise ValueError(f"Expected width to be a multiple of {heads=}, got {width}")
    layers = check_size("layers", layers, least=1)
    return _Stack(width, heads, layers, check_number("dropout", dropout, least=0.0, most=1.0))


def _compute_positions(length: int, width: int, max_period: float) -> Tensor:
    """Returns sines and cosines of each position, of periods from 2 pi to 2 pi ``max_period``."""
    max_period = check_number("max_period", max_period, least=1.0)
    positions = torch.zeros(length, width, dtype=torch.float64)
    rates = max_period ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    positions[:, 0::2] = angles.sin()
    positions[:, 1::2] = angles.cos()[:, : width // 2]
    # Rounded first, so they do not depend on the default precision.
    return positions.float().to(torch.get_default_dtype())


class TransformerEncoder(nn.Module):
    r"""A transformer from a sequence to features.

    A linear layer maps each step, to which sines and cosines of its position are added. The layers
    are pre-norm: self-attention, then two linear layers with a GELU between them, four times as
    wide. A learned token precedes the steps; a linear layer maps its output to the features.

    With ``masked=True`` sequences may be of different lengths, padded at their end, and have gaps.
    The network reads the mask of each step beside its values. Steps after the last observed value
    are padding and get no attention, so neither their number nor their content changes the output.
    In a sequence without observed values, the token attends to itself.

    References:
        | Attention is all you need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762
        | On layer normalization in the transformer architecture (Xiong et al., 2020),
          https://arxiv.org/abs/2002.04745

    Arguments:
        in_shape: ``(length, *features)``; the features of a step are flattened. With
            ``masked=True`` the first dimension is that of the values and then of the mask, as
            ``append_mask=True`` of an input transform returns them.
        out_shape: The shape of an output, without batch.
        width: The width of each step between the layers, a multiple of ``heads``.
        heads: The number of attention heads.
        layers: The number of layers.
        dropout: The probability of dropout.
        max_period: The periods of the sines are from :math:`2 \pi` to :math:`2 \pi` times this
            number of steps. A network learns fastest if it is about the length of the series.
        masked: Whether the input contains the mask of observed values.
        time_dim: The dimension of a datum that is time: 1 for ``(channels, length)``.
        covariate_dim: The number of covariates, concatenated to each step and to the last output.

    Raises:
        ValueError: If an argument is out of range, or ``in_shape`` does not fit ``masked`` or
            ``time_dim``.

    Example:
        >>> import torch
        >>> TransformerEncoder((20, 3), (2, 5))(torch.zeros(4, 20, 3)).shape
        torch.Size([4, 2, 5])
    """

    positions: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.0,
        max_period: float = 100.0,
        masked: bool = False,
        time_dim: int = 0,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        self.masked = check_flag("masked", masked)
        self.time_dim = check_size("time_dim", time_dim, least=0)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        width = check_size("width", width, least=1)
        length, features = read_sequence_shape(self.in_shape, self.time_dim, self.masked)
        self.stack = _build_stack(width, heads, layers, dropout)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.first = nn.Linear(features + covariate_dim, width)
        self.last = nn.Linear(width + covariate_dim, self.out_shape.numel())
        positions = _compute_positions(length, width, max_period)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        steps, present = read_steps(x, self.time_dim, self.masked)
        h = self.first(append_covariates(steps, covariates)) + self.positions
        h = torch.cat([self.token.expand(len(h), 1, -1), h], 1)
        if present is not None:
            present = torch.cat([torch.ones_like(present[:, :1]), present], 1)
        last = self.stack(h, present)[:, 0]
        if covariates is not None:
            last = torch.cat([last, covariates], -1)
        return self.last(last).unflatten(-1, self.out_shape)


class TransformerDecoder(nn.Module):
    r"""A transformer from features to a sequence.

    Each step starts as a linear map of the input, plus sines and cosines of its position. The
    layers are those of :class:`TransformerEncoder`, and a linear layer maps each step to the
    output. All steps are computed at once.

    References:
        | Attention is all you need (Vaswani et al., 2017), https://arxiv.org/abs/1706.03762

    Arguments:
        in_shape: The shape of an input, without batch; flattened.
        out_shape: ``(numbers, length, *features)``, as the ``feature_shape`` of a likelihood with
            one or several numbers for each element.
        width: As in :class:`TransformerEncoder`.
        heads: The number of attention heads.
        layers: The number of layers.
        dropout: The probability of dropout.
        max_period: As in :class:`TransformerEncoder`.
        time_dim: The dimension of ``out_shape`` that is time: 0 for ``(length, *features)``, 2 for
            ``(numbers, channels, length)``.
        covariate_dim: The number of covariates, concatenated to the input.

    Raises:
        ValueError: If an argument is out of range, or ``out_shape`` does not fit ``time_dim``.

    Example:
        >>> import torch
        >>> TransformerDecoder((5,), (2, 20, 3))(torch.zeros(4, 5)).shape
        torch.Size([4, 2, 20, 3])
    """

    positions: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.0,
        max_period: float = 100.0,
        time_dim: int = 1,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        self.time_dim = check_size("time_dim", time_dim, least=0)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        width = check_size("width", width, least=1)
        form = "(numbers, length, *features)"
        length, self.step_shape = split_length("out_shape", self.out_shape, self.time_dim, form)
        self.stack = _build_stack(width, heads, layers, dropout)
        self.first = nn.Linear(self.in_shape.numel() + covariate_dim, width)
        self.last = nn.Linear(width, self.step_shape.numel())
        positions = _compute_positions(length, width, max_period)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        h = self.stack(self.first(x)[:, None] + self.positions)
        return write_steps(self.last(h), self.step_shape, self.time_dim)
