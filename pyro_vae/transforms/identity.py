"""The identity, the default input transform."""

from torch import Tensor

from pyro_vae.transforms.base import InputTransform

__all__ = ["Identity"]


class Identity(InputTransform):
    """The data themselves.

    Arguments:
        event_shape: The shape of one datum.
        append_mask: Whether the encoder also sees which values are observed.

    Example:
        >>> import torch
        >>> Identity((2,))(torch.tensor([3.0, 4.0]))
        tensor([3., 4.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the data unchanged."""
        return x
