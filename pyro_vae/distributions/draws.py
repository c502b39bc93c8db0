"""What a distribution remembers of its last draw, and the logarithms of draws."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Draw", "attach_log", "get_log"]

_LOG = "_pyro_vae_log"


class Draw(NamedTuple):
    """A draw, and a quantity that was computed with it.

    Attributes:
        value: The draw.
        other: The quantity.
        version: The version of the draw's memory.
    """

    value: Tensor
    other: Tensor
    version: int | None

    @classmethod
    def remember(cls, value: Tensor, other: Tensor) -> "Draw":
        """Returns a draw with its current version."""
        return cls(value, other, _get_version(value))

    def is_unchanged(self, value: Tensor) -> bool:
        """Whether a tensor is this draw, and was not changed in place."""
        return value is self.value and _get_version(value) == self.version


def _get_version(value: Tensor) -> int | None:
    return None if value.is_inference() else value._version


def attach_log(value: Tensor, log_value: Tensor) -> Tensor:
    """Returns a draw that remembers its logarithm, of which an underflow would lose the value."""
    draw: Any = value
    setattr(draw, _LOG, (log_value, _get_version(value)))
    return value


def get_log(value: Tensor) -> Tensor:
    """Returns the logarithm of a draw, or of another positive tensor, bounded below."""
    log_value, version = getattr(value, _LOG, (None, None))
    if log_value is not None and _get_version(value) == version:
        return log_value
    return value.clamp(min=torch.finfo(value.dtype).tiny).log()
