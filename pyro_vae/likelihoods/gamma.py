"""The gamma likelihood."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.likelihoods.core.positive import Concentration, bound_softly
from pyro_vae.likelihoods.core.support import check_positive_data
from pyro_vae.likelihoods.core.units import UnitLikelihood
from pyro_vae.validation import check_number

__all__ = ["Gamma"]

_MAX_LOG = 60.0


class Gamma(UnitLikelihood):
    r"""A gamma likelihood, for positive data whose standard deviation grows with the mean.

    .. math:: p(x \mid z) = \prod_i \mathrm{Gamma}(x_i \mid k_i, k_i / \mu_i(z)), \qquad
        \operatorname{Var}(x_i) = \mu_i^2 / k_i

    The concentration :math:`k` is a positive number (fixed), ``"shared"`` (learned, one for all
    elements), ``"element"`` (learned, one for each) or ``"network"`` (an output of the decoder).
    The decoder's features are logarithms of means, softly bounded to a factor of :math:`e^{60}`.

    Arguments:
        event_shape: The shape of one datum.
        concentration: As above.
        max_concentration: The upper bound of a learned concentration, without which the density of
            data on a manifold is unbounded.
        standardize: Whether the logarithms are in units of the mean and standard deviation of the
            logarithm of the training rows.

    Raises:
        ValueError: If ``concentration`` is none of these, or a bound is out of range.

    Example:
        >>> Gamma((2,), concentration=1.0)(torch.zeros(1, 2)).log_prob(torch.ones(2))
        tensor(-2.)
    """

    measure = "density"
    fill_value = 1.0

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        concentration: float | str = "shared",
        max_concentration: float = 1e6,
        standardize: bool = True,
    ) -> None:
        super().__init__(event_shape, standardize)
        self.concentration = Concentration(
            "concentration",
            concentration,
            self.event_shape,
            initial=1.0,
            most=check_number("max_concentration", max_concentration, above=1.0),
        )
        num_features = 1 + self.concentration.num_features
        self.feature_shape = torch.Size((num_features, *self.event_shape))

    def to_real(self, x: Tensor) -> Tensor:
        """Returns the logarithm."""
        return x.log()

    def forward(self, features: Tensor) -> TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        dim = -1 - len(self.event_shape)
        k = self.concentration(features, dim)
        h = features.select(dim, 0)
        # The bound leaves room for k and for the unit within single precision.
        h = bound_softly(self.unit_scale * h if self.standardize else h, _MAX_LOG)
        log_mean = self.unit_loc + h if self.standardize else h
        rate = k * (-log_mean).exp()
        return distributions.Gamma(*torch.broadcast_tensors(k, rate)).to_event(
            len(self.event_shape)
        )

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values are positive and finite."""
        check_positive_data(x, "gamma")
