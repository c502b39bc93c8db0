"""The negative binomial likelihood."""

from collections.abc import Sequence

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.likelihoods.core.counts import CountLikelihood
from pyro_vae.likelihoods.core.positive import Concentration

__all__ = ["NegativeBinomial"]


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
        >>> import torch
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

    def forward(self, features: Tensor, size: Tensor | None = None) -> TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        theta = self.inverse_dispersion(features, -1 - len(self.event_shape))
        mean = self.compute_mean(features, size)
        return self.to_rows(distributions.NegativeBinomial(mean, theta))
