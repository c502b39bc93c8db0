"""A mixture of the ELBO and the importance-weighted bound."""

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.importance_weighted import ImportanceWeighted, log_mean_exp
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_scalar
from pyro_vae.objectives.iwae import softmax_derivative

__all__ = ["CIWAE"]


class CIWAE(ImportanceWeighted):
    r"""The combined importance-weighted bound, between the ELBO and IWAE.

    .. math::
        \beta\, \mathbb{E} \frac1K \sum_k \log w_k
        + (1 - \beta)\, \mathbb{E} \log \frac1K \sum_k w_k

    References:
        | Tighter variational bounds are not necessarily better (Rainforth et al., 2018),
          https://arxiv.org/abs/1802.04537

    Arguments:
        num_particles: The number of samples K of each datum.
        beta: The weight of the ELBO, within [0, 1].
        estimator: As of :class:`~pyro_vae.objectives.ImportanceWeighted`.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``beta`` is out of range, and as
            :class:`~pyro_vae.objectives.ImportanceWeighted` does.

    Example:
        >>> weights = torch.tensor([0.0, 2.0])
        >>> CIWAE(2, beta=0.5).bound(weights) == (CIWAE(2, beta=1).bound(weights)
        ...     + CIWAE(2, beta=0).bound(weights)) / 2
        tensor(True)
    """

    facts: ClassVar = Facts(
        "b E mean_k log w_k + (1 - b) E log mean_k w_k",
        "log p(x), below",
        "yes; `stl` is biased for K > 1, b < 1",
        "no",
        "yes",
        "Rainforth et al. 2018",
    )

    def __init__(
        self,
        num_particles: int = 5,
        *,
        beta: float | Tensor = 0.5,
        estimator: str = "standard",
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, estimator=estimator, **run)
        self.beta = check_scalar("beta", beta, least=0.0, most=1.0)

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the mean of both bounds, weighted by beta."""
        elbo, iwae = log_weights.mean(0), log_mean_exp(log_weights)
        if not isinstance(self.beta, Tensor) and self.beta == 0:
            # Zero times the ELBO is NaN if a weight is zero.
            return iwae
        return self.beta * elbo + (1 - self.beta) * iwae

    def slope(self, log_weights: Tensor) -> Tensor:
        """Returns the mean of equal and normalized weights, weighted by beta."""
        equal = 1 / log_weights.shape[0]
        return self.beta * equal + (1 - self.beta) * torch.softmax(log_weights, 0)

    def curvature(self, log_weights: Tensor) -> Tensor:
        """Returns the curvature of the importance-weighted bound, times 1 - beta."""
        return (1 - self.beta) * softmax_derivative(torch.softmax(log_weights, 0))
