"""The jackknife estimate of the importance-weighted bound."""

import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.gradient_estimators import GradientWeights
from pyro_vae.objectives.core.importance_weighted import (
    ImportanceWeighted,
    finite_or_zero,
)
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_choice
from pyro_vae.objectives.iwae import softmax_derivative
from pyro_vae.objectives.miwae import MIWAE
from pyro_vae.validation import check_size

__all__ = ["Jackknife"]

_MOST_SUBSETS = 10_000
"""The largest number of subsets of particles; more are probably a mistake."""


class Jackknife(ImportanceWeighted):
    r"""The importance-weighted bound with its bias in K reduced by the jackknife.

    .. math::
        \sum_{j=0}^m c_j\, \frac{1}{\binom{K}{j}} \sum_{|S| = K - j}
        \mathbb{E} \log \frac{1}{K - j} \sum_{k \in S} w_k, \qquad
        c_j = (-1)^j \frac{(K - j)^m}{(m - j)!\, j!}

    The gap to the evidence falls from order 1 / K to order 1 / K^(m + 1), but the estimate is no
    longer a bound. It may exceed the evidence by any amount if few weights dominate, and a guide
    that maximizes it makes its weights ever more uneven. Therefore it trains only the model,
    through log p; a bound trains the guide, through samples and log q, as in the author's code.
    With ``guide_bound="iwae"`` weights may still become so uneven that the model diverges;
    ``"jackknife"`` trains both by the sum above. These two are for comparisons, or for guides
    without parameters. The loss is always minus the sum.

    References:
        | Debiasing evidence approximations: on importance-weighted autoencoders and jackknife
          variational inference (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb

    Arguments:
        num_particles: The number of samples K of each datum.
        order: m, at least 1 and below K.
        guide_bound: The objective of the guide: ``"elbo"``, ``"iwae"`` with K samples, or
            ``"jackknife"``.
        estimator: As of :class:`~pyro_vae.objectives.ImportanceWeighted`, for the guide.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``order`` is out of range or leads to too many subsets, and as
            :class:`~pyro_vae.objectives.ImportanceWeighted` does; when called, if a site is global
            and the guide has a separate bound.

    Example:
        >>> round(Jackknife(2, order=1).bound(torch.tensor([0.0, 2.0])).item(), 3)
        1.868
    """

    facts: ClassVar = Facts(
        "model: sum_j c_j E log mean_k w_k over subsets of K - j; guide: ELBO, IWAE or the same",
        "none; bias of order 1 / K^(m + 1)",
        "yes, of each part's bound; `stl` is biased for K > 1 unless the guide's is the ELBO",
        "no",
        "yes",
        "Nowozin 2018",
    )

    def __init__(
        self,
        num_particles: int = 8,
        *,
        order: int = 1,
        guide_bound: str = "elbo",
        estimator: str = "standard",
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, estimator=estimator, **run)
        num_particles, order = self.num_particles, check_size("order", order, least=1)
        if order >= num_particles:
            raise ValueError(
                f"Expected order to be below num_particles, got {order=}, {num_particles=}"
            )
        subsets = sum(math.comb(num_particles, j) for j in range(order + 1))
        if subsets > _MOST_SUBSETS:
            raise ValueError(
                f"Expected order and num_particles to make at most {_MOST_SUBSETS} subsets, got "
                f"{subsets} for {order=}, {num_particles=}"
            )
        self.order = order
        self.guide_bound = check_choice("guide_bound", guide_bound, ("elbo", "iwae", "jackknife"))
        groups = num_particles if guide_bound == "elbo" else 1
        self._guide_objective = MIWAE(num_particles, groups=groups, estimator=estimator)
        self.levels = self._build_levels()

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the weighted sum over subset sizes of the mean bound of all subsets."""
        # The factors are large and sum to one, and would amplify the rounding of a common shift.
        largest = finite_or_zero(log_weights.amax(0)).detach()
        total = torch.zeros_like(largest)
        for factor, subsets in self.levels:
            selected = (log_weights - largest)[subsets.to(log_weights.device)]
            level = selected.logsumexp(1).mean(0) - math.log(subsets.shape[1])
            total = total + factor * level
        return largest + total

    def slope(self, log_weights: Tensor) -> Tensor:
        """Returns the normalized weights of all subsets, summed by particle."""
        return self._sum_over_subsets(log_weights, lambda normalized: normalized)

    def curvature(self, log_weights: Tensor) -> Tensor:
        """Returns w - w^2 of the normalized weights of all subsets, summed by particle."""
        return self._sum_over_subsets(log_weights, softmax_derivative)

    def _has_guide_bound(self) -> bool:
        return self.guide_bound != "jackknife"

    def _gradient_weights(self, log_weights: Tensor) -> GradientWeights:
        weights = super()._gradient_weights(log_weights)
        if not self._has_guide_bound():
            return weights
        return weights._replace(path=self._guide_objective._gradient_weights(log_weights).path)

    def _sum_over_subsets(
        self, log_weights: Tensor, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Returns the sum by particle of a function of the normalized weights of each subset."""
        total = torch.zeros_like(log_weights)
        for factor, subsets in self.levels:
            rows = subsets.to(log_weights.device)
            values = function(torch.softmax(log_weights[rows], 1)) * (factor / len(subsets))
            total = total.index_add(0, rows.flatten(), values.flatten(0, 1))
        return total

    def _build_levels(self) -> list[tuple[float, Tensor]]:
        """Returns the factor and the subsets of particles, one per row, of each subset size."""
        size, order = self.num_particles, self.order
        return [
            (
                (-1) ** j * (size - j) ** order / math.factorial(order - j) / math.factorial(j),
                torch.tensor(list(itertools.combinations(range(size), size - j))),
            )
            for j in range(order + 1)
        ]
