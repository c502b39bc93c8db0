"""Encoder inputs of a table of mixed columns."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.tables.schema import Schema
from pyro_vae.transforms.standardize import Standardize

__all__ = ["Columns"]


class Columns(Standardize):
    r"""Encodes the columns of a table: numbers are standardized, categories one-hot.

    Of positive columns the logarithm is standardized, of counts :math:`\log (1 + x)`. Binary
    columns are standardized too. Mean and standard deviation are those of the training rows, which
    :meth:`pyro_vae.VAE.initialize` sets. It is the default input transform for
    :class:`pyro_vae.likelihoods.Columns`, which gives it the columns.

    Arguments:
        event_shape: The shape of one datum, ``(columns,)``.
        columns: The columns, as of :class:`pyro_vae.likelihoods.Columns`.
        append_mask: Whether the encoder also sees which values are observed.

    Example:
        >>> columns = [
        ...     {"name": "mass", "kind": "real"},
        ...     {"name": "island", "kind": "categorical", "levels": ["Biscoe", "Dream", "Tor"]},
        ... ]
        >>> Columns((2,), columns=columns)(torch.tensor([0.5, 2.0]))
        tensor([0.5000, 0.0000, 0.0000, 1.0000])
    """

    numeric: Tensor
    coded: Tensor
    level: Tensor
    is_positive: Tensor
    is_count: Tensor

    def __init__(
        self, event_shape: Sequence[int], *, columns: Any = None, append_mask: bool = False
    ) -> None:
        super().__init__(event_shape, append_mask=append_mask)
        schema = Schema.for_shape(columns, self.event_shape)
        self.columns = schema
        kinds = [column.kind for column in schema.columns]
        one_hot = [kind in ("categorical", "ordinal") for kind in kinds]
        pairs = [
            (index, level)
            for index, column in enumerate(schema.columns)
            if one_hot[index]
            for level in range(len(column.levels))
        ]
        fixed = {
            "numeric": torch.tensor([i for i, is_coded in enumerate(one_hot) if not is_coded]),
            "coded": torch.tensor([index for index, _ in pairs]),
            "level": torch.tensor([float(level) for _, level in pairs]),
            "is_positive": torch.tensor([kind == "positive" for kind in kinds]),
            "is_count": torch.tensor([kind == "count" for kind in kinds]),
        }
        for name, values in fixed.items():
            values = values.long() if name in ("numeric", "coded") else values
            self.register_buffer(name, values, persistent=False)
        self.set_out_shape((len(self.numeric) + len(pairs),))

    def to_real(self, x: Tensor) -> Tensor:
        """Returns logarithms of positive numbers and counts, and other values unchanged."""
        x = torch.where(self.is_count, torch.log1p(x.clamp(min=0)), x)
        tiny = torch.finfo(x.dtype).tiny
        return torch.where(self.is_positive, x.clamp(min=tiny).log(), x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns standardized numbers, followed by one-hot codes."""
        numbers = super().forward(x)
        codes = (x.index_select(-1, self.coded) == self.level).to(x.dtype)
        return torch.cat([numbers.index_select(-1, self.numeric), codes], -1)

    def expand_mask(self, observed: Tensor) -> Tensor:
        """Returns the mask of the encoded values."""
        return observed.index_select(-1, torch.cat([self.numeric, self.coded]))
