"""The categorical likelihood over levels of grey."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.conditional import Likelihood
from pyro_vae.distributions import Levels
from pyro_vae.likelihoods.core.em import count_levels
from pyro_vae.likelihoods.core.support import check_levels_data
from pyro_vae.validation import check_shape, check_size

__all__ = ["Categorical"]


class Categorical(Likelihood):
    r"""A categorical likelihood over equidistant levels, for images of integer grey values.

    .. math:: \log p(x \mid z) = \sum_i \log \mathrm{softmax}(h_i(z))_{l_i},
        \qquad x_i = l_i / (L - 1)

    Data lie in :math:`[0, 1]`, as for the other image likelihoods: 8-bit values divided by 255.

    Arguments:
        event_shape: The shape of one datum.
        levels: The number of levels :math:`L`.

    Raises:
        ValueError: If there are fewer than two levels.

    Example:
        >>> Categorical((2,))(torch.zeros(256, 2)).log_prob(torch.tensor([0.0, 1.0]))
        tensor(-11.0904)
    """

    measure = "mass"

    def __init__(self, event_shape: Sequence[int], *, levels: int = 256) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.levels = check_size("levels", levels, least=2)
        self.feature_shape = torch.Size((self.levels, *self.event_shape))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, levels, *event_shape)``."""
        logits = features.movedim(-1 - len(self.event_shape), -1)
        return Levels(logits).to_event(len(self.event_shape))

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> dist.TorchDistribution:
        """Computes the M step, shrunk towards the level frequencies of all rows."""
        counts, frequencies = count_levels(
            responsibilities, (x * (self.levels - 1)).round(), self.levels
        )
        overall = (frequencies + 1) / (frequencies.sum(-1, keepdim=True) + self.levels)
        return Levels((counts + smoothing * overall).log(), validate_args=False)

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values lie on the grid of levels."""
        check_levels_data(x, self.levels, "categorical")
