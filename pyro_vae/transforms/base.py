"""The base of input transforms."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.validation import check_shape

__all__ = ["InputTransform"]


class InputTransform(nn.Module, ABC):
    """A fixed function of the data, applied before the encoder.

    The data at the sites of model and guide, and hence the evidence, stay in their own units. A
    transform has no parameters. Its buffers are saved with the VAE.

    Arguments:
        event_shape: The shape of one datum.

    Attributes:
        out_shape: The shape of one transformed datum.
    """

    out_shape: torch.Size

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.out_shape = self.event_shape

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Returns data of shape ``(*batch, *out_shape)`` for ``(*batch, *event_shape)``."""

    def expand_mask(self, observed: Tensor) -> Tensor:
        """Returns a mask that broadcasts to transformed data, from that of the data."""
        return observed

    def extra_repr(self) -> str:
        """Shows the shape in the module's repr."""
        return f"event_shape={tuple(self.event_shape)}"
