"""One-hot encoder inputs, for levels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.transforms.base import InputTransform
from pyro_vae.validation import check_size

__all__ = ["OneHot"]


class OneHot(InputTransform):
    r"""Encodes levels :math:`l / (L - 1)`, data of a categorical likelihood, as one-hot vectors.

    The levels become the first dimension, or more channels of an image ``(C, H, W)``. A value
    between two levels is shared between both, in proportion.

    Arguments:
        event_shape: The shape of one datum.
        levels: The number of levels :math:`L`.

    Raises:
        ValueError: If there are fewer than two levels.

    Example:
        >>> OneHot((2,), levels=3)(torch.tensor([0.0, 1.0])).T
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """

    def __init__(self, event_shape: Sequence[int], *, levels: int) -> None:
        super().__init__(event_shape)
        self.levels = check_size("levels", levels, least=2)
        self.is_image = len(self.event_shape) == 3
        channels, *rest = (self.levels, *self.event_shape)
        if self.is_image:
            channels, rest = channels * rest[0], rest[1:]
        self.out_shape = torch.Size((channels, *rest))

    def forward(self, x: Tensor) -> Tensor:
        """Returns one-hot vectors along the first dimension of the event."""
        steps = (x * (self.levels - 1)).unsqueeze(-1 - len(self.event_shape))
        level = torch.arange(self.levels, dtype=x.dtype, device=x.device)
        level = level.reshape(-1, *(1 for _ in self.event_shape))
        return self._merge_channels((1 - (steps - level).abs()).clamp(min=0))

    def _merge_channels(self, x: Tensor) -> Tensor:
        return x.flatten(-4, -3) if self.is_image else x

    def expand_mask(self, observed: Tensor) -> Tensor:
        """Returns the mask of the elements for each level."""
        observed = observed.unsqueeze(-1 - len(self.event_shape))
        dims = observed.dim() - 1 - len(self.event_shape)
        shape = (*observed.shape[:dims], self.levels, *self.event_shape)
        return self._merge_channels(observed.expand(shape))

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"{super().extra_repr()}, levels={self.levels}"
