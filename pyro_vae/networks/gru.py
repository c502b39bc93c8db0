"""Recurrent networks for sequences."""

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
from pyro_vae.validation import check_flag, check_shape, check_size

__all__ = ["GRUDecoder", "GRUEncoder"]


class GRUEncoder(nn.Module):
    r"""A gated recurrent network from a sequence to features.

    .. math::
        \overrightarrow{h}_t = \mathrm{GRU}(x_t, \overrightarrow{h}_{t - 1}), \qquad
        \overleftarrow{h}_t = \mathrm{GRU}(x_t, \overleftarrow{h}_{t + 1})

    A linear layer maps the last states, :math:`\overrightarrow{h}_T` and
    :math:`\overleftarrow{h}_1`, to the features. Further layers read the states of both directions.

    With ``masked=True`` sequences may be of different lengths, padded at their end, and have gaps.
    The network reads the mask of each step beside its values. Steps after the last observed value
    are padding: both directions leave them out, so neither their number nor their content changes
    the output. A sequence without observed values has states of zero.

    A compiled step unrolls the recurrence, so the time to compile grows with the length.
    :func:`pyro_vae.fit` makes eager steps unless you pass ``compile=True``.

    References:
        | Learning phrase representations using RNN encoder-decoder for statistical machine
          translation (Cho et al., 2014), https://arxiv.org/abs/1406.1078
        | Recurrent neural networks for multivariate time series with missing values (Che et al.,
          2018), https://arxiv.org/abs/1606.01865

    Arguments:
        in_shape: ``(length, *features)``; the features of a step are flattened. With
            ``masked=True`` the first dimension is that of the values and then of the mask, as
            ``append_mask=True`` of an input transform returns them.
        out_shape: The shape of an output, without batch.
        hidden: The size of the state of each direction.
        layers: The number of recurrent layers.
        bidirectional: Whether the sequence is also read backwards.
        masked: Whether the input contains the mask of observed values.
        time_dim: The dimension of a datum that is time: 1 for ``(channels, length)``.
        covariate_dim: The number of covariates, concatenated to each step and to the last states.

    Raises:
        ValueError: If an argument is out of range, or ``in_shape`` does not fit ``masked`` or
            ``time_dim``.

    Example:
        >>> import torch
        >>> GRUEncoder((20, 3), (2, 5))(torch.zeros(4, 20, 3)).shape
        torch.Size([4, 2, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = True,
        masked: bool = False,
        time_dim: int = 0,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        self.hidden = check_size("hidden", hidden, least=1)
        layers = check_size("layers", layers, least=1)
        self.time_dim = check_size("time_dim", time_dim, least=0)
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.masked = check_flag("masked", masked)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        _, features = read_sequence_shape(self.in_shape, self.time_dim, self.masked)
        width = self.hidden * (2 if self.bidirectional else 1)
        sizes = [features + covariate_dim, *[width] * (layers - 1)]
        self.forward_layers = self._build_layers(sizes)
        self.backward_layers = self._build_layers(sizes) if self.bidirectional else None
        self.last = nn.Linear(width + covariate_dim, self.out_shape.numel())

    def _build_layers(self, sizes: list[int]) -> nn.ModuleList:
        return nn.ModuleList(nn.GRU(size, self.hidden, batch_first=True) for size in sizes)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        steps, present = read_steps(x, self.time_dim, self.masked)
        steps = append_covariates(steps, covariates)
        order = None if present is None else _reverse_order(present)
        for depth, layer in enumerate(self.forward_layers):
            states = [layer(steps)[0]]
            if self.backward_layers is not None:
                backward, _ = self.backward_layers[depth](_reverse(steps, order))
                states.append(_reverse(backward, order))
            steps = torch.cat(states, -1)
        last = self._select_last(steps, present)
        if covariates is not None:
            last = torch.cat([last, covariates], -1)
        return self.last(last).unflatten(-1, self.out_shape)

    def _select_last(self, states: Tensor, present: Tensor | None) -> Tensor:
        """Returns the last state of each direction, after all steps except padding."""
        forward, backward = states[..., : self.hidden], states[:, 0, self.hidden :]
        if present is None:
            return torch.cat([forward[:, -1], backward], -1)
        index = (present.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.hidden)
        last = torch.cat([forward.gather(1, index).squeeze(1), backward], -1)
        return torch.where(present.any(1, keepdim=True), last, 0.0)


def _reverse_order(present: Tensor) -> Tensor:
    """Returns the indices that reverse the steps of each sequence and leave padding in place."""
    steps = torch.arange(present.shape[1], device=present.device)
    return torch.where(present, present.sum(1, keepdim=True) - 1 - steps, steps)


def _reverse(steps: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return steps.flip(1)
    return steps.gather(1, order[..., None].expand(-1, -1, steps.shape[-1]))


class GRUDecoder(nn.Module):
    r"""A gated recurrent network from features to a sequence.

    .. math::
        h_0 = \tanh(A z + a), \qquad h_t = \mathrm{GRU}(z, h_{t - 1}), \qquad y_t = W h_t + b

    The likelihood makes the steps of the data independent given z, so no step is an input of the
    next.

    References:
        | Learning phrase representations using RNN encoder-decoder for statistical machine
          translation (Cho et al., 2014), https://arxiv.org/abs/1406.1078

    Arguments:
        in_shape: The shape of an input, without batch; flattened.
        out_shape: ``(numbers, length, *features)``, as the ``feature_shape`` of a likelihood with
            one or several numbers for each element.
        hidden: The size of the state.
        layers: The number of recurrent layers.
        time_dim: The dimension of ``out_shape`` that is time: 0 for ``(length, *features)``, 2 for
            ``(numbers, channels, length)``.
        covariate_dim: The number of covariates, concatenated to the input.

    Raises:
        ValueError: If an argument is out of range, or ``out_shape`` does not fit ``time_dim``.

    Example:
        >>> import torch
        >>> GRUDecoder((5,), (2, 20, 3))(torch.zeros(4, 5)).shape
        torch.Size([4, 2, 20, 3])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: int = 128,
        layers: int = 1,
        time_dim: int = 1,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        hidden = check_size("hidden", hidden, least=1)
        layers = check_size("layers", layers, least=1)
        self.time_dim = check_size("time_dim", time_dim, least=0)
        form = "(numbers, length, *features)"
        self.length, self.step_shape = split_length(
            "out_shape", self.out_shape, self.time_dim, form
        )
        size = self.in_shape.numel() + check_size("covariate_dim", covariate_dim, least=0)
        self.first = nn.Sequential(
            nn.Linear(size, layers * hidden), nn.Tanh(), nn.Unflatten(-1, (layers, hidden))
        )
        self.gru = nn.GRU(size, hidden, layers, batch_first=True)
        self.last = nn.Linear(hidden, self.step_shape.numel())

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        start = self.first(x).transpose(0, 1).contiguous()
        states, _ = self.gru(x[:, None].expand(-1, self.length, -1), start)
        return write_steps(self.last(states), self.step_shape, self.time_dim)
