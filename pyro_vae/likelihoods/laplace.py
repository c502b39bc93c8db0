"""The Laplace likelihood."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.likelihoods.core.positive import Scale
from pyro_vae.likelihoods.core.support import check_finite_data
from pyro_vae.likelihoods.core.units import UnitLikelihood
from pyro_vae.validation import check_positive

__all__ = ["Laplace"]


class Laplace(UnitLikelihood):
    r"""A Laplace likelihood, for real data with large errors: it models the median.

    .. math:: \log p(x \mid z) = -\sum_i \log 2 b_i + |x_i - \mu_i(z)| / b_i

    The scale :math:`b` is a positive number (fixed), ``"shared"`` (learned, one for all elements),
    ``"element"`` (learned, one for each) or ``"network"`` (an output of the decoder).

    Arguments:
        event_shape: The shape of one datum.
        scale: As above.
        min_scale: The lower bound of a learned scale.
        standardize: Whether the decoder's outputs are in units of the training rows' mean and
            standard deviation, for data that are not standardized.

    Raises:
        ValueError: If ``scale`` is none of these, or a scale is not positive.

    Example:
        >>> Laplace((2,), scale=1.0)(torch.zeros(1, 2)).log_prob(torch.zeros(2))
        tensor(-1.3863)
    """

    measure = "density"

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        scale: float | str = "shared",
        min_scale: float = 1e-3,
        standardize: bool = False,
    ) -> None:
        super().__init__(event_shape, standardize)
        floor = check_positive("min_scale", min_scale)
        self.scale = Scale("scale", scale, self.event_shape, floor)
        self.feature_shape = torch.Size((1 + self.scale.num_features, *self.event_shape))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        dim = -1 - len(self.event_shape)
        loc, scale = self.to_units(features.select(dim, 0), self.scale(features, dim))
        return dist.Laplace(loc, scale).to_event(len(self.event_shape))

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values are finite."""
        check_finite_data(x, "Laplace")
