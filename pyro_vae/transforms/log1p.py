"""Logarithmic encoder inputs, for counts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.transforms.standardize import Standardize
from pyro_vae.validation import check_flag

__all__ = ["Log1p"]


class Log1p(Standardize):
    r"""Takes :math:`\log (1 + x)`, for counts and other non-negative data.

    Negative values, which such data lack, are taken as 0.

    Arguments:
        event_shape: The shape of one datum.
        standardize: Whether to standardize the logarithms, as :class:`Standardize` does. Elements
            that are almost always zero then get very large values elsewhere.
        loc: The mean of the logarithms, to give it without training rows; or ``None``.
        scale: Their standard deviation, likewise.
        append_mask: Whether the encoder also sees which values are observed.

    Raises:
        ValueError: If only one of ``loc`` and ``scale`` is given, or they do not fit.

    Example:
        >>> Log1p((2,))(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.6931])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        standardize: bool = False,
        loc: Any = None,
        scale: Any = None,
        append_mask: bool = False,
    ) -> None:
        if not check_flag("standardize", standardize):
            if loc is not None or scale is not None:
                raise ValueError(
                    f"Expected standardize=True with loc and scale, got {loc=}, {scale=}"
                )
            loc, scale = 0.0, 1.0
        super().__init__(event_shape, loc=loc, scale=scale, append_mask=append_mask)

    def to_real(self, x: Tensor) -> Tensor:
        """Returns the logarithms."""
        return torch.log1p(x.clamp(min=0))
