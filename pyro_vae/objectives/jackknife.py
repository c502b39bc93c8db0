"""The jackknife of the importance-weighted bound."""

import itertools
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.importance_weighted import ImportanceWeighted, Shares, finite_or_zero
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_choice
from pyro_vae.objectives.iwae import spread
from pyro_vae.objectives.miwae import MIWAE
from pyro_vae.validation import check_size

__all__ = ["Jackknife"]

_MOST_SUBSETS = 10_000
"""The number of subsets of particles above which the request is taken for a mistake."""


class Jackknife(ImportanceWeighted):
    r"""The importance-weighted bound, its bias in K reduced by the jackknife.

    .. math::
        \sum_{j=0}^m c_j\, \frac{1}{\binom{K}{j}} \sum_{|S| = K - j}
        \mathbb{E} \log \frac{1}{K - j} \sum_{k \in S} w_k, \qquad
        c_j = (-1)^j \frac{(K - j)^m}{(m - j)!\, j!}

    The gap to the evidence falls from order 1 / K to order 1 / K^(m + 1), but the estimate is no
    longer a bound: it may exceed the evidence, and by any amount where few weights dominate. A
    guide that maximizes it makes its weights uneven without end. Therefore only the model is
    trained by it, through log p, and the guide by a bound through samples and log q, as the
    author's own code does. With ``guide_bound="iwae"`` weights may still become so uneven that the
    model runs away; ``"jackknife"`` trains both by the sum above. These two are for comparisons,
    or guides with nothing to learn. The loss is minus the sum in any case.

    References:
        | Debiasing evidence approximations: on importance-weighted autoencoders and jackknife
          variational inference (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb

    Arguments:
        num_particles: The number of samples K of each datum.
        order: m, at least 1 and below K.
        guide_bound: What the guide maximizes: ``"elbo"``, ``"iwae"`` with K samples, or
            ``"jackknife"``.
        estimator: As of :class:`~pyro_vae.objectives.ImportanceWeighted`, for the guide.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``order`` is not within its range or leads to too many subsets, and as
            :class:`~pyro_vae.objectives.ImportanceWeighted` does; when called, if data share a
            site and the guide has a bound of its own.

    Example:
        >>> round(Jackknife(2, order=1).bound(torch.tensor([0.0, 2.0])).item(), 3)
        1.868
    """

    facts: ClassVar = Facts(
        "model: sum_j c_j E log mean_k w_k over subsets of K - j; guide: ELBO, IWAE or the same",
        "none; bias of order 1 / K^(m + 1)",
        "of each part's own; `stl` is biased for K > 1 unless the guide's is the ELBO",
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
        self._bound_of_guide = MIWAE(num_particles, groups=groups, estimator=estimator)
        self.levels = self._make_levels()

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the sum over orders of the mean bound of all subsets of that size."""
        # The factors, which are large and sum to one, would magnify the rounding of a common part.
        largest = finite_or_zero(log_weights.amax(0)).detach()
        total = torch.zeros_like(largest)
        for factor, subsets in self.levels:
            chosen = (log_weights - largest)[subsets.to(log_weights.device)]
            level = chosen.logsumexp(1).mean(0) - math.log(subsets.shape[1])
            total = total + factor * level
        return largest + total

    def slope(self, log_weights: Tensor) -> Tensor:
        """Returns the normalized weights of all subsets, gathered by particle."""
        return self._gathered(log_weights, lambda normalized: normalized)

    def curvature(self, log_weights: Tensor) -> Tensor:
        """Returns w - w^2 of the normalized weights of all subsets, gathered by particle."""
        return self._gathered(log_weights, spread)

    def _bounds_apart(self) -> bool:
        return self.guide_bound != "jackknife"

    def _weigh_paths(self, log_weights: Tensor) -> Shares:
        shares = super()._weigh_paths(log_weights)
        if not self._bounds_apart():
            return shares
        return shares._replace(path=self._bound_of_guide._weigh_paths(log_weights).path)

    def _gathered(self, log_weights: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns a function of the normalized weights of each subset, summed by particle."""
        total = torch.zeros_like(log_weights)
        for factor, subsets in self.levels:
            rows = subsets.to(log_weights.device)
            values = function(torch.softmax(log_weights[rows], 1)) * (factor / len(subsets))
            total = total.index_add(0, rows.flatten(), values.flatten(0, 1))
        return total

    def _make_levels(self) -> list[tuple[float, Tensor]]:
        """Returns for each order its factor, and its subsets of particles, one a row."""
        size, order = self.num_particles, self.order
        return [
            (
                (-1) ** j * (size - j) ** order / math.factorial(order - j) / math.factorial(j),
                torch.tensor(list(itertools.combinations(range(size), size - j))),
            )
            for j in range(order + 1)
        ]
