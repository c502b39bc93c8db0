"""The Student-t likelihood."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.likelihoods.core.positive import Concentration, Scale
from pyro_vae.likelihoods.core.support import check_finite_data
from pyro_vae.likelihoods.core.units import UnitLikelihood
from pyro_vae.validation import check_number, check_positive

__all__ = ["StudentT"]


class StudentT(UnitLikelihood):
    r"""A Student-t likelihood, for real data with outliers.

    .. math:: p(x \mid z) = \prod_i \mathrm{St}(x_i \mid \nu, \mu_i(z), \sigma_i)

    Both the scale :math:`\sigma` and the degrees of freedom :math:`\nu` are a number (fixed),
    ``"shared"`` (learned, one for all elements), ``"element"`` (learned, one for each) or
    ``"network"`` (an output of the decoder). A learned :math:`\nu` lies between 2 and 1000, so that
    the variance is finite.

    References:
        | Student-t variational autoencoder for robust density estimation (Takahashi et al., 2018),
          https://www.ijcai.org/proceedings/2018/374

    Arguments:
        event_shape: The shape of one datum.
        scale: As above.
        df: The degrees of freedom, as above; a number must be above 1, so that the mean exists.
        min_scale: The lower bound of a learned scale.
        standardize: Whether the decoder's outputs are in units of the training rows' mean and
            standard deviation, for data that are not standardized.

    Raises:
        ValueError: If ``scale`` or ``df`` is none of these, or a scale is not positive.

    Example:
        >>> StudentT((2,), scale=1.0, df=3.0)(torch.zeros(1, 2)).log_prob(torch.zeros(2))
        tensor(-2.0018)
    """

    measure = "density"

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        scale: float | str = "shared",
        df: float | str = "shared",
        min_scale: float = 1e-3,
        standardize: bool = False,
    ) -> None:
        super().__init__(event_shape, standardize)
        floor = check_positive("min_scale", min_scale)
        if not isinstance(df, str):
            df = check_number("df", df, above=1.0)
        self.df = Concentration("df", df, self.event_shape, initial=3.0, most=998.0)
        self.scale = Scale("scale", scale, self.event_shape, floor)
        num_features = 1 + self.scale.num_features + self.df.num_features
        self.feature_shape = torch.Size((num_features, *self.event_shape))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        dim = -1 - len(self.event_shape)
        df = self.df(features, dim)
        if isinstance(self.df.value, str):
            df = df + 2
        # The scale is the second feature; df, where it is a feature, is the last one.
        scale = self.scale(features.narrow(dim, 0, 1 + self.scale.num_features), dim)
        loc, scale = self.to_units(features.select(dim, 0), scale)
        return dist.StudentT(df, loc, scale).to_event(len(self.event_shape))

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values are finite."""
        check_finite_data(x, "Student-t")
