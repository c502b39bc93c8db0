"""The log-normal likelihood."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.likelihoods.core.positive import Scale
from pyro_vae.likelihoods.core.support import check_positive_data
from pyro_vae.likelihoods.core.units import UnitLikelihood
from pyro_vae.likelihoods.normal import Normal
from pyro_vae.validation import check_positive

__all__ = ["LogNormal"]


class LogNormal(UnitLikelihood):
    r"""A log-normal likelihood, for positive data: the logarithm is normal.

    .. math:: \log p(x \mid z) = \sum_i \log \mathcal{N}(\log x_i \mid \mu_i(z), \sigma_i^2)
        - \log x_i

    The scale :math:`\sigma` is a positive number (fixed), ``"shared"`` (learned, one for all
    elements), ``"element"`` (learned, one for each) or ``"network"`` (an output of the decoder).

    Arguments:
        event_shape: The shape of one datum.
        scale: As above.
        min_scale: The lower bound of a learned scale.
        standardize: Whether the decoder's outputs are in units of the mean and standard deviation
            of the logarithm of the training rows.

    Raises:
        ValueError: If ``scale`` is none of these, or a scale is not positive.

    Example:
        >>> LogNormal((2,), scale=1.0)(torch.zeros(1, 2)).log_prob(torch.ones(2))
        tensor(-1.8379)
    """

    measure = "density"
    fill_value = 1.0

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        scale: float | str = "shared",
        min_scale: float = 1e-3,
        standardize: bool = True,
    ) -> None:
        super().__init__(event_shape, standardize)
        self.min_scale = check_positive("min_scale", min_scale)
        self.scale = Scale("scale", scale, self.event_shape, self.min_scale)
        self.feature_shape = torch.Size((1 + self.scale.num_features, *self.event_shape))

    def to_real(self, x: Tensor) -> Tensor:
        """Returns the logarithm."""
        return x.log()

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        dim = -1 - len(self.event_shape)
        loc, scale = self.to_units(features.select(dim, 0), self.scale(features, dim))
        return dist.LogNormal(loc, scale).to_event(len(self.event_shape))

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> dist.TorchDistribution:
        """Computes the M step of a normal for the logarithms."""
        likelihood = Normal(
            self.event_shape, scale=self.scale.value, min_scale=self.min_scale,
            standardize=self.standardize,
        )  # fmt: skip
        if self.standardize:
            likelihood.unit_scale.copy_(self.unit_scale)
        normal = likelihood.em_step(responsibilities, x.log(), smoothing)
        return dist.LogNormal(*torch.broadcast_tensors(normal.mean, normal.stddev))

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values are positive and finite."""
        check_positive_data(x, "log-normal")
