"""Renyi's variational bound."""

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.importance_weighted import (
    ImportanceWeighted,
    finite_or_zero,
    log_mean_exp,
)
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_scalar
from pyro_vae.objectives.iwae import softmax_derivative

__all__ = ["Renyi"]

_TINY = 1e-6
"""The least distance of alpha from 1, where the formula has a removable singularity."""


class Renyi(ImportanceWeighted):
    r"""Renyi's variational bound of each datum.

    .. math::
        \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \mathbb{E} \log \frac1K \sum_k w_k^{1 - \alpha}

    It is the ELBO at :math:`\alpha = 1`, IWAE at 0, and the largest :math:`\log w_k` at
    :math:`-\infty` (VR-max). For a finite number of samples it is a lower bound on the evidence if
    :math:`\alpha \ge 0`; for negative :math:`\alpha` it may exceed the evidence.

    References:
        | Renyi divergence variational inference (Li and Turner, 2016),
          https://arxiv.org/abs/1602.02311

    Arguments:
        num_particles: The number of samples K of each datum.
        alpha: Any number, or minus infinity.
        estimator: As of :class:`~pyro_vae.objectives.ImportanceWeighted`. ``"dreg"`` weights a path
            by :math:`\alpha \tilde w_k + (1 - \alpha) \tilde w_k^2`, with :math:`\tilde w` the
            normalized :math:`w^{1 - \alpha}`. It is not defined at minus infinity, where the
            largest weight has no second derivative.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``alpha`` is not a number or is positive infinity, if ``estimator`` is not
            defined for it, and as :class:`~pyro_vae.objectives.ImportanceWeighted` does.

    Example:
        >>> weights = torch.tensor([0.0, 2.0])
        >>> [round(Renyi(2, alpha=a).bound(weights).item(), 3) for a in (1, 0.5, 0, -float("inf"))]
        [1.0, 1.24, 1.434, 2.0]
    """

    facts: ClassVar = Facts(
        "E log mean_k w_k^(1 - a) / (1 - a)",
        "log p(x), below, for a >= 0",
        "yes; `stl` is biased for K > 1 unless a = 1",
        "no",
        "yes",
        "Li and Turner 2016",
    )

    def __init__(
        self,
        num_particles: int = 5,
        *,
        alpha: float | Tensor = 0.5,
        estimator: str = "standard",
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, estimator=estimator, **run)
        self.alpha = check_scalar("alpha", alpha, infinite=not isinstance(alpha, Tensor))
        if self._is_alpha(float("inf")):
            raise ValueError("Expected alpha to be a number or minus infinity, got inf")
        if self._is_alpha(-float("inf")) and estimator == "dreg":
            raise ValueError(
                "Expected estimator to be 'standard' or 'stl' with alpha=-inf, got 'dreg': the "
                "largest weight has no second derivative"
            )

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the logarithm of the power mean of the weights."""
        if self._is_alpha(1.0):
            return log_weights.mean(0)
        if self._is_alpha(-float("inf")):
            return log_weights.amax(0)
        exponent = self._exponent(log_weights)
        if isinstance(self.alpha, Tensor):
            # A captured graph cannot branch on a value, so both cases are computed.
            near = exponent.abs() < _TINY
            exponent = torch.where(near, _TINY, exponent)
            return torch.where(near, log_weights.mean(0), self._power_mean(log_weights, exponent))
        return self._power_mean(log_weights, exponent)

    def _power_mean(self, log_weights: Tensor, exponent: Tensor) -> Tensor:
        """Returns the logarithm of the power mean for an exponent that is not zero."""
        shift = torch.where(exponent > 0, log_weights.amax(0), log_weights.amin(0)).detach()
        shift = finite_or_zero(shift)
        powers = exponent * (log_weights - shift)
        # Near alpha = 1 the mean is one plus a small excess, which expm1 and log1p keep precise. If
        # few of many weights dominate, the mean is near zero, and its logarithm is precise instead.
        excess = torch.expm1(powers).mean(0)
        near_one = torch.log1p(excess.clamp(min=-0.5))
        return shift + torch.where(excess > -0.5, near_one, log_mean_exp(powers)) / exponent

    def slope(self, log_weights: Tensor) -> Tensor:
        """Returns the normalized powers of the weights."""
        if self._is_alpha(-float("inf")):
            largest = log_weights.argmax(0, keepdim=True)
            return torch.zeros_like(log_weights).scatter(0, largest, 1.0)
        return torch.softmax(self._exponent(log_weights) * log_weights, 0)

    def curvature(self, log_weights: Tensor) -> Tensor:
        """Returns (1 - alpha) (w - w^2) of the normalized powers w."""
        return self._exponent(log_weights) * softmax_derivative(self.slope(log_weights))

    def _is_alpha(self, value: float) -> bool:
        """Whether alpha is a number that equals a value within the tolerance."""
        if isinstance(self.alpha, Tensor):
            return False
        return self.alpha == value or abs(self.alpha - value) < _TINY

    def _exponent(self, log_weights: Tensor) -> Tensor:
        """Returns 1 - alpha as a scalar tensor."""
        if isinstance(self.alpha, Tensor):
            return 1 - self.alpha.to(log_weights)
        return log_weights.new_full((), 1 - self.alpha)
