"""The zero-inflated negative binomial likelihood."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.likelihoods.core.counts import CountLikelihood
from pyro_vae.likelihoods.core.positive import SOURCES, Concentration
from pyro_vae.validation import check_choice

__all__ = ["ZeroInflatedNegativeBinomial"]

_INITIAL_GATE = -2.0
"""The logit of a zero at the start: most zeros are then explained by the counts."""


class ZeroInflatedNegativeBinomial(CountLikelihood):
    r"""A zero-inflated negative binomial likelihood, for counts with additional zeros.

    .. math:: p(x \mid z) = \prod_i \pi_i \, [x_i = 0] +
        (1 - \pi_i) \, \mathrm{NB}(x_i \mid \mu_i(z), \theta_i)

    Mean, inverse dispersion and size factor are those of :class:`NegativeBinomial`. The probability
    :math:`\pi` of an additional zero is learned, one for all elements (``"shared"``) or for each
    (``"element"``), or is an output of the decoder (``"network"``, as in scvi-tools).

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018),
          https://www.nature.com/articles/s41592-018-0229-2

    Arguments:
        event_shape: The shape of one datum.
        inverse_dispersion: A number, ``"shared"``, ``"element"`` or ``"network"``.
        zero_inflation: ``"shared"``, ``"element"`` or ``"network"``.
        size_factor: None, ``"row_sum"`` or ``"covariate"``, as of :class:`Poisson`.

    Raises:
        ValueError: If an argument is none of these.

    Example:
        >>> import torch
        >>> part = ZeroInflatedNegativeBinomial((2,), zero_inflation="shared")
        >>> part(torch.zeros(1, 2)).log_prob(torch.tensor([0.0, 1.0])).exp().detach()
        tensor(0.1232)
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        inverse_dispersion: float | str = "element",
        zero_inflation: str = "network",
        size_factor: str | None = None,
    ) -> None:
        gate_features = int(check_choice("zero_inflation", zero_inflation, SOURCES) == "network")
        dispersion = Concentration(
            "inverse_dispersion", inverse_dispersion, event_shape, initial=1.0, most=1e8
        )
        super().__init__(event_shape, size_factor, 1 + gate_features + dispersion.num_features)
        self.inverse_dispersion = dispersion
        self.zero_inflation = zero_inflation
        if zero_inflation != "network":
            shape = () if zero_inflation == "shared" else self.event_shape
            self.gate_logits = nn.Parameter(torch.full(shape, _INITIAL_GATE))

    def forward(self, features: Tensor, size: Tensor | None = None) -> TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        dim = -1 - len(self.event_shape)
        theta = self.inverse_dispersion(features, dim)
        if self.zero_inflation == "network":
            gate = features.select(dim, 1) + _INITIAL_GATE
        else:
            gate = self.gate_logits
        counts = distributions.NegativeBinomial(self.compute_mean(features, size), theta)
        return self.to_rows(distributions.ZeroInflated(counts, gate))
