"""The base of likelihoods with a location and a scale, in the units of the training data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.conditional import Likelihood
from pyro_vae.likelihoods.core.positive import format_part
from pyro_vae.masking import compute_moments
from pyro_vae.validation import check_flag, check_shape

__all__ = ["UnitLikelihood"]


class UnitLikelihood(Likelihood):
    r"""A likelihood of real elements that learns in standardized units.

    With ``standardize=True`` the decoder's features describe :math:`(y - a) / b`, where :math:`a`
    and :math:`b` are the mean and standard deviation of the training rows, for each element. The
    density stays that of the data in their own units.

    Arguments:
        event_shape: The shape of one datum.
        standardize: As above. False: :math:`a = 0` and :math:`b = 1`.
    """

    unit_loc: Tensor
    unit_scale: Tensor
    started: Tensor

    def __init__(self, event_shape: Sequence[int], standardize: bool) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.standardize = check_flag("standardize", standardize)
        if self.standardize:
            self.register_buffer("unit_loc", torch.zeros(self.event_shape))
            self.register_buffer("unit_scale", torch.ones(self.event_shape))
            self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets location and scale from training rows, once; NaN marks missing values."""
        if not self.standardize or self.started:
            return
        loc, scale = compute_moments(self.to_real(x.double()), ~x.isnan())
        self.unit_loc.copy_(loc)
        self.unit_scale.copy_(torch.where(scale > 0, scale, 1.0))
        self.started.fill_(True)

    def to_real(self, x: Tensor) -> Tensor:
        """Returns the values that have this location and scale: the data, or their logarithm."""
        return x

    def to_units(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Returns location and scale in the units of the data."""
        if not self.standardize:
            return loc, scale
        return self.unit_loc + self.unit_scale * loc, self.unit_scale * scale

    __repr__ = format_part

    def extra_repr(self) -> str:
        """Shows the shape, and whether units are standardized."""
        return super().extra_repr() + (", standardize=True" if self.standardize else "")
