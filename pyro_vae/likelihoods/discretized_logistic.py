"""The discretized logistic likelihood."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.conditional import Likelihood
from pyro_vae.likelihoods.core.positive import Scale, format_part
from pyro_vae.likelihoods.core.support import check_levels_data
from pyro_vae.validation import check_positive, check_shape, check_size

__all__ = ["DiscretizedLogistic"]

_LOC_UNIT = 0.5
"""The unit of locations: features from -1 to 1 cover the range."""

_SCALE_UNIT = 0.25
"""The unit of scales: features of zero give nearly the standard deviation of the uniform."""


class DiscretizedLogistic(Likelihood):
    r"""A discretized logistic likelihood, or a mixture, for images of integer grey values.

    .. math::
        p(x \mid z) = \prod_i \sum_k \pi_{ik} \left[ F_{ik}(x_i + h) - F_{ik}(x_i - h) \right],
        \qquad x_i = \frac{l_i}{L - 1}, \quad h = \frac{1}{2 (L - 1)}

    :math:`F_{ik}` is the logistic distribution function of location :math:`\mu_{ik}(z)` and scale
    :math:`s_{ik}`. Black takes the mass below, and white the mass above. Unlike a categorical
    likelihood, it uses the order of the levels, and needs a few features for each element.

    Data lie in :math:`[0, 1]`, as for the other image likelihoods: 8-bit values divided by 255.
    The location is :math:`(k - 1/2) / K + f_{ik} / 2` for feature :math:`f_{ik}` of the
    :math:`k`-th of :math:`K` components. It is unbounded, and thus an element can be certainly
    black or white at any scale. The scale is

    - a number: fixed;
    - ``"shared"``: learned, one for all elements and components;
    - ``"element"``: learned, one for each element;
    - ``"network"``: an output of the decoder, for each element and component.

    A learned scale is a quarter of a softplus, plus ``min_scale``. Both are in units of the range
    of the data.

    References:
        | Improved variational inference with inverse autoregressive flow (Kingma et al., 2016),
          https://arxiv.org/abs/1606.04934
        | PixelCNN++: improving the PixelCNN with discretized logistic mixture likelihood and other
          modifications (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Arguments:
        event_shape: The shape of one datum.
        levels: The number of levels :math:`L`.
        components: The number of components :math:`K` of each element.
        scale: As above.
        min_scale: The lower bound of a learned scale, which bounds the gradient. At a tenth of the
            distance of two levels, one level can take 98.7 % of the mass.

    Raises:
        ValueError: If a size is out of range, ``scale`` is none of these, or a scale is not
            positive.

    Example:
        >>> d = DiscretizedLogistic((2,), levels=3)(torch.zeros(2, 2))
        >>> d.base_dist.log_prob(torch.tensor([0.5, 1.0])).exp()
        tensor([0.6175, 0.1913])
    """

    measure = "mass"

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        levels: int = 256,
        components: int = 1,
        scale: float | str = "network",
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.levels = check_size("levels", levels, least=2)
        self.components = check_size("components", components, least=1)
        floor = check_positive("min_scale", min_scale)
        self.scale = Scale("scale", scale, self.event_shape, floor, _SCALE_UNIT)
        # Locations, weights and scales.
        self.num_kinds = 1 + (self.components > 1) + self.scale.num_features
        self.feature_shape = torch.Size((self.num_kinds * self.components, *self.event_shape))

    def forward(self, features: Tensor) -> TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        event_dim = len(self.event_shape)
        features = features.unflatten(-1 - event_dim, (self.num_kinds, self.components))
        features = features.movedim(-1 - event_dim, -1)
        dim = -2 - event_dim
        scale = self.scale(features, dim)
        if not self.scale.num_features:
            scale = scale.unsqueeze(-1)
        order = torch.arange(self.components, dtype=features.dtype, device=features.device)
        loc = (order + 0.5) / self.components + _LOC_UNIT * features.select(dim, 0)
        if self.components == 1:
            logits, loc, scale = None, loc.squeeze(-1), scale.squeeze(-1)
        else:
            logits = features.select(dim, 1)
        base = distributions.DiscretizedLogistic(loc, scale, self.levels, logits)
        return base.to_event(event_dim)

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values lie on the grid of levels."""
        check_levels_data(x, self.levels, "discretized logistic")

    __repr__ = format_part

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"{super().extra_repr()}, levels={self.levels}, components={self.components}"
