"""The beta likelihood."""

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.conditional import Likelihood
from pyro_vae.likelihoods.core.positive import MAX_LOG, Concentration, bound_softly, format_part
from pyro_vae.validation import check_number, check_shape

__all__ = ["Beta"]


class Beta(Likelihood):
    r"""A beta likelihood, for data strictly between zero and one, such as rates and shares.

    .. math:: p(x \mid z) = \prod_i \mathrm{Beta}(x_i \mid \phi_i \mu_i(z), \phi_i (1 - \mu_i(z))),
        \qquad \operatorname{Var}(x_i) = \mu_i (1 - \mu_i) / (1 + \phi_i)

    The decoder's features are logits of the mean :math:`\mu`, softly bounded to :math:`|h| < 20`.
    The concentration :math:`\phi` is a positive number (fixed), ``"shared"`` (learned, one for all
    elements), ``"element"`` (learned, one for each) or ``"network"`` (an output of the decoder).

    Arguments:
        event_shape: The shape of one datum.
        concentration: As above.
        max_concentration: The upper bound of a learned concentration, without which the density of
            data on a manifold is unbounded.

    Raises:
        ValueError: If ``concentration`` is none of these, or the bound is out of range.

    Example:
        >>> Beta((2,), concentration=4.0)(torch.zeros(1, 2)).log_prob(torch.tensor([0.5, 0.5]))
        tensor(0.8109)
    """

    measure = "density"
    fill_value = 0.5

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        concentration: float | str = "shared",
        max_concentration: float = 1e6,
    ) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.concentration = Concentration(
            "concentration",
            concentration,
            self.event_shape,
            initial=2.0,
            most=check_number("max_concentration", max_concentration, above=2.0),
        )
        num_features = 1 + self.concentration.num_features
        self.feature_shape = torch.Size((num_features, *self.event_shape))

    def forward(self, features: Tensor) -> TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        dim = -1 - len(self.event_shape)
        total = self.concentration(features, dim)
        logits = bound_softly(features.select(dim, 0), MAX_LOG)
        a, b = total * torch.sigmoid(logits), total * torch.sigmoid(-logits)
        return distributions.Beta(a, b).to_event(len(self.event_shape))

    __repr__ = format_part

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values lie strictly between zero and one."""
        valid = (x > 0) & (x < 1)
        if not bool(valid.all()):
            raise ValueError(
                f"Expected x to lie strictly between 0 and 1 for a beta likelihood, got "
                f"{x[~valid][0].item():.4g}"
            )
