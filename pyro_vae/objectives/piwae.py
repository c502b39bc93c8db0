"""One bound for the model, another for the guide."""

from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae.objectives.core.gradient_estimators import GradientWeights
from pyro_vae.objectives.core.importance_weighted import log_mean_exp
from pyro_vae.objectives.core.objective import Facts
from pyro_vae.objectives.miwae import MIWAE

__all__ = ["PIWAE"]


class PIWAE(MIWAE):
    r"""The partially importance-weighted bound: IWAE for the model, MIWAE for the guide.

    Parameters get the gradient of

    .. math::
        \mathbb{E} \log \frac{1}{MK} \sum_{m, k} w_{mk} \quad \text{through } \log p, \qquad
        \frac1M \sum_m \mathbb{E} \log \frac1K \sum_k w_{mk} \quad
        \text{through samples and } \log q,

    so a decoder is trained by the tighter bound, and an encoder by the less noisy gradient. The
    loss is minus the first. The encoder inside of a VampPrior is part of log p.

    References:
        | Tighter variational bounds are not necessarily better (Rainforth et al., 2018),
          https://arxiv.org/abs/1802.04537

    Arguments:
        num_particles: The total number of samples of each datum, M times K.
        groups: M, which divides ``num_particles``.
        estimator: As of :class:`~pyro_vae.objectives.ImportanceWeighted`, for the guide.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: As :class:`~pyro_vae.objectives.MIWAE` does; when called, if a site is global.

    Example:
        >>> weights = torch.tensor([0.0, 0.0, 2.0, 2.0])
        >>> PIWAE(4, groups=2).bound(weights)
        tensor(1.4338)
    """

    facts: ClassVar = Facts(
        "model: E log mean_mk w_mk; guide: E mean_m log mean_k w_mk",
        "log p(x), below",
        "yes, of each part's bound; `stl` is biased for K > 1",
        "no",
        "yes",
        "Rainforth et al. 2018",
    )

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the logarithm of the mean of all weights."""
        return log_mean_exp(log_weights)

    def _has_guide_bound(self) -> bool:
        return True

    def _gradient_weights(self, log_weights: Tensor) -> GradientWeights:
        path = super()._gradient_weights(log_weights).path
        return GradientWeights(torch.softmax(log_weights, 0), path)
