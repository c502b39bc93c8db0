"""Standardized encoder inputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.masking import compute_moments
from pyro_vae.transforms.base import InputTransform
from pyro_vae.validation import describe_value

__all__ = ["Standardize"]


class Standardize(InputTransform):
    r"""Standardizes each element, :math:`(x - a) / b`.

    :meth:`pyro_vae.VAE.initialize`, which :func:`pyro_vae.fit` calls, sets :math:`a` and :math:`b`
    to the mean and standard deviation of the training rows. Give both to train by SVI without it.

    Arguments:
        event_shape: The shape of one datum.
        loc: :math:`a`, a number or numbers that broadcast to the event shape; or ``None``.
        scale: :math:`b`, positive, likewise.
        append_mask: Whether the encoder also sees which values are observed.

    Raises:
        ValueError: If only one of both is given, or they do not fit.

    Example:
        >>> Standardize((2,), loc=10.0, scale=[1.0, 2.0])(torch.tensor([11.0, 12.0]))
        tensor([1., 1.])
    """

    loc: Tensor
    scale: Tensor
    started: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        loc: Any = None,
        scale: Any = None,
        append_mask: bool = False,
    ) -> None:
        super().__init__(event_shape, append_mask=append_mask)
        if (loc is None) != (scale is None):
            raise ValueError(f"Expected both loc and scale or none of them, got {loc=}, {scale=}")
        self.register_buffer("loc", _expand("loc", 0.0 if loc is None else loc, self.event_shape))
        self.register_buffer(
            "scale", _expand("scale", 1.0 if scale is None else scale, self.event_shape)
        )
        if not bool((self.scale > 0).all()):
            raise ValueError(f"Expected scale to be positive, got {scale}")
        self.register_buffer("started", torch.tensor(loc is not None))

    def to_real(self, x: Tensor) -> Tensor:
        """Returns the values that are standardized."""
        return x

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets mean and standard deviation from training rows, once; NaN marks missing values.

        A constant element keeps the scale 1.
        """
        if self.started:
            return
        loc, scale = compute_moments(self.to_real(x.double()), ~x.isnan())
        self.loc.copy_(loc)
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))
        self.started.fill_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns standardized data."""
        return (self.to_real(x) - self.loc) / self.scale


def _expand(name: str, value: Any, shape: torch.Size) -> Tensor:
    try:
        tensor = torch.as_tensor(value, dtype=torch.get_default_dtype()).expand(shape).clone()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"Expected {name} to be numbers that broadcast to {tuple(shape)}, got "
            f"{describe_value(value)}"
        ) from None
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"Expected {name} to be finite, got {describe_value(value)}")
    return tensor
