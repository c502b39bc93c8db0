"""The multinomial likelihood."""

from collections.abc import Sequence

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.likelihoods.core.counts import CountLikelihood

__all__ = ["Multinomial"]


class Multinomial(CountLikelihood):
    r"""A multinomial likelihood, for counts given the sum of their row.

    .. math:: \log p(x \mid z, n) = \log n! + \sum_i x_i \log \rho_i(z) - \log x_i!,
        \qquad n = \sum_i x_i

    The shares :math:`\rho` sum to one over all elements. The evidence is conditional on the sum of
    the row: it can be compared only with evidence that is too. Single values cannot be missing.
    Draws have the median sum of the training rows.

    References:
        | Variational autoencoders for collaborative filtering (Liang et al., 2018),
          https://arxiv.org/abs/1802.05814

    Arguments:
        event_shape: The shape of one datum.

    Example:
        >>> import torch
        >>> Multinomial((2,))(torch.zeros(1, 2)).log_prob(torch.tensor([1.0, 1.0])).exp()
        tensor(0.5000)
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape, "row_sum")
        # Unlike counts with the row sum as size factor, it is normalized over rows of one sum.
        self.condition = "row sum"

    def forward(self, features: Tensor) -> TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, 1, *event_shape)``."""
        log_probs = self.compute_mean(features, None).log()
        return distributions.Multinomial(
            log_probs, self.reference_size.round(), len(self.event_shape)
        )

    def extra_repr(self) -> str:
        """Shows the shape."""
        return f"event_shape={tuple(self.event_shape)}"
