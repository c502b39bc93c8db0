"""The base of input transforms."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.masking import fill_missing
from pyro_vae.validation import check_flag, check_shape

__all__ = ["InputTransform"]


class InputTransform(nn.Module, ABC):
    """A fixed function of the data, applied before the encoder.

    The data at the sites of model and guide, and hence the evidence, stay in their own units. A
    transform has no parameters. Its buffers are saved with the VAE.

    Arguments:
        event_shape: The shape of one datum.
        append_mask: Whether the mask of observed values is appended to the first dimension of the
            transformed datum, so the encoder sees which values are missing. Images get more
            channels.

    Attributes:
        out_shape: The shape of the encoder's input.
    """

    out_shape: torch.Size

    def __init__(self, event_shape: Sequence[int], *, append_mask: bool = False) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.append_mask = check_flag("append_mask", append_mask)
        self.set_out_shape(self.event_shape)

    def set_out_shape(self, shape: Sequence[int]) -> None:
        """Sets the shape of the encoder's input from that of one transformed datum."""
        first, *rest = shape
        if self.append_mask:
            first += self.event_shape[0]
        self.out_shape = torch.Size((first, *rest))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Returns transformed data for ``(*batch, *event_shape)``."""

    def expand_mask(self, observed: Tensor) -> Tensor:
        """Returns a mask that broadcasts to transformed data, from that of the data."""
        return observed

    def encode(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Returns the encoder's input, with zeros where a value is not observed.

        Arguments:
            x: Data of shape ``(*batch, *event_shape)``.
            observed: True where a value is observed, of this shape; ``None`` for all.
        """
        inputs = self(x)
        if observed is not None:
            inputs = fill_missing(inputs, self.expand_mask(observed))
        if not self.append_mask:
            return inputs
        mask = torch.ones_like(x) if observed is None else observed.to(x.dtype)
        return torch.cat([inputs, mask.expand_as(x)], -len(self.out_shape))

    def extra_repr(self) -> str:
        """Shows the shape in the module's repr."""
        shown = ", append_mask=True" if self.append_mask else ""
        return f"event_shape={tuple(self.event_shape)}{shown}"
