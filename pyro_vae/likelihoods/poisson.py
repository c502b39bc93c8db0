"""The Poisson likelihood."""

from collections.abc import Sequence

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.likelihoods.core.counts import CountLikelihood

__all__ = ["Poisson"]


class Poisson(CountLikelihood):
    r"""A Poisson likelihood, for counts.

    .. math:: \log p(x \mid z) = \sum_i x_i \log \mu_i(z) - \mu_i(z) - \log x_i!

    Without a size factor, :math:`\mu_i = m_i e^{h_i(z)}`, where :math:`m_i` is the mean count in
    the training rows (1 until :meth:`pyro_vae.VAE.initialize`). With a size factor :math:`s`,
    :math:`\mu_i = s \, \rho_i(z)` with shares :math:`\rho` that sum to one. ``size_factor`` is

    - ``None``: there is none;
    - ``"row_sum"``: the sum of the row. The evidence is then conditional on it: it cannot be
      compared with that of another choice. Draws use the median sum of the training rows;
    - ``"covariate"``: data, the last column of the covariates, which the networks do not see.

    Arguments:
        event_shape: The shape of one datum.
        size_factor: As above.

    Raises:
        ValueError: If an argument is none of these.

    Example:
        >>> import torch
        >>> Poisson((2,))(torch.zeros(1, 2)).log_prob(torch.tensor([0.0, 1.0]))
        tensor(-2.)
    """

    def __init__(self, event_shape: Sequence[int], *, size_factor: str | None = None) -> None:
        super().__init__(event_shape, size_factor)

    def forward(self, features: Tensor, size: Tensor | None = None) -> TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, 1, *event_shape)``."""
        return self.to_rows(distributions.Poisson(self.compute_mean(features, size)))

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> TorchDistribution | None:
        """Computes the M step, means shrunk towards the mean of all rows."""
        if self.size_factor is not None:
            return None
        means = self.average_components(responsibilities, x, smoothing)
        return distributions.Poisson(means, validate_args=False)
