"""The negative binomial likelihood."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.likelihoods.core.counts import CountLikelihood
from pyro_vae.likelihoods.core.em import sum_rows
from pyro_vae.likelihoods.core.positive import Concentration

__all__ = ["NegativeBinomial"]

_DISPERSIONS = (1e-3, 1e6)
"""The range of inverse dispersions of a mixture."""

_BISECTIONS = 40


class NegativeBinomial(CountLikelihood):
    r"""A negative binomial likelihood, for counts that vary more than Poisson counts.

    .. math:: p(x \mid z) = \prod_i \mathrm{NB}(x_i \mid \mu_i(z), \theta_i), \qquad
        \operatorname{Var}(x_i) = \mu_i + \mu_i^2 / \theta_i

    The mean :math:`\mu` is that of :class:`Poisson`, with the same choices of ``size_factor``. The
    inverse dispersion :math:`\theta` is

    - a number: fixed;
    - ``"shared"``: learned, one for all elements;
    - ``"element"``: learned, one for each element (scvi-tools' ``"gene"``);
    - ``"network"``: an output of the decoder (scvi-tools' ``"gene-cell"``).

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
          https://www.nature.com/articles/s41592-018-0229-2

    Arguments:
        event_shape: The shape of one datum.
        inverse_dispersion: As above.
        size_factor: None, ``"row_sum"`` or ``"covariate"``, as of :class:`Poisson`.

    Raises:
        ValueError: If an argument is none of these.

    Example:
        >>> part = NegativeBinomial((2,), inverse_dispersion=1.0)
        >>> part(torch.zeros(1, 2)).log_prob(torch.tensor([0.0, 1.0])).exp()
        tensor(0.1250)
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        inverse_dispersion: float | str = "element",
        size_factor: str | None = None,
    ) -> None:
        dispersion = Concentration(
            "inverse_dispersion", inverse_dispersion, event_shape, initial=1.0, most=1e8
        )
        super().__init__(event_shape, size_factor, 1 + dispersion.num_features)
        self.inverse_dispersion = dispersion

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> TorchDistribution | None:
        """Computes the M step; the components share the inverse dispersion of each element.

        The mean does not depend on it. Its derivative of the log likelihood changes sign once.
        """
        if self.size_factor is not None:
            return None
        mean = self.average_components(responsibilities, x, smoothing)
        value = self.inverse_dispersion.value
        if isinstance(value, float):
            return distributions.NegativeBinomial(mean, mean.new_full((), value))
        size, total = sum_rows(responsibilities, x)
        low, high = (torch.full_like(mean[0], math.log(bound)) for bound in _DISPERSIONS)
        for _ in range(_BISECTIONS):
            theta = ((low + high) / 2).exp()
            inner = torch.digamma(x + theta) - torch.digamma(theta)
            slope = inner.nansum(0) + (
                size * (torch.log(theta / (theta + mean)) + 1)
                - (total + size * theta) / (theta + mean)
            ).sum(0)
            if value == "shared":
                slope = slope.sum().expand_as(slope)
            low, high = (
                torch.where(slope > 0, theta.log(), low), torch.where(slope > 0, high, theta.log())
            )  # fmt: skip
        return distributions.NegativeBinomial(mean, ((low + high) / 2).exp())

    def forward(self, features: Tensor, size: Tensor | None = None) -> TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        theta = self.inverse_dispersion(features, -1 - len(self.event_shape))
        mean = self.compute_mean(features, size)
        return self.to_rows(distributions.NegativeBinomial(mean, theta))
