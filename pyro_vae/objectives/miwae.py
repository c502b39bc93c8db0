"""The mean of several importance-weighted bounds."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.importance_weighted import ImportanceWeighted
from pyro_vae.objectives.core.objective import Facts, RunOptions
from pyro_vae.objectives.iwae import softmax_derivative
from pyro_vae.validation import check_size

__all__ = ["MIWAE"]


class MIWAE(ImportanceWeighted):
    r"""The mean of M importance-weighted bounds of K samples each.

    .. math::
        \frac1M \sum_{m=1}^M \mathbb{E} \log \frac1K \sum_{k=1}^K w_{mk}

    This is the MIWAE of Rainforth et al. The model MIWAE of Mattei and Frellsen for missing values
    is trained by :class:`~pyro_vae.objectives.IWAE` on masked data, and imputes by
    :func:`pyro_vae.evaluate.impute`.

    The bound is that of K samples. The gradient of M times as many samples is less noisy, which
    benefits the encoder.

    References:
        | Tighter variational bounds are not necessarily better (Rainforth et al., 2018),
          https://arxiv.org/abs/1802.04537

    Arguments:
        num_particles: The total number of samples of each datum, M times K.
        groups: M, which divides ``num_particles``.
        estimator: As of :class:`~pyro_vae.objectives.ImportanceWeighted`.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``groups`` does not divide ``num_particles``, and as
            :class:`~pyro_vae.objectives.ImportanceWeighted` does.

    Example:
        >>> weights = torch.tensor([0.0, 0.0, 2.0, 2.0])
        >>> MIWAE(4, groups=2).bound(weights), MIWAE(4, groups=4).bound(weights)
        (tensor(1.), tensor(1.))
    """

    facts: ClassVar = Facts(
        "E mean_m log mean_k w_mk",
        "log p(x), below; as IWAE with K",
        "yes; `stl` is biased for K > 1",
        "no",
        "yes",
        "Rainforth et al. 2018",
    )

    def __init__(
        self,
        num_particles: int = 8,
        *,
        groups: int = 2,
        estimator: str = "standard",
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, estimator=estimator, **run)
        groups = check_size("groups", groups, least=1)
        if self.num_particles % groups:
            raise ValueError(
                f"Expected groups to divide num_particles, got {groups=}, {num_particles=}"
            )
        self.groups = groups

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the mean over groups of the logarithm of the mean weight in each group."""
        grouped = self._split_groups(log_weights)
        return (grouped.logsumexp(1) - math.log(grouped.shape[1])).mean(0)

    def slope(self, log_weights: Tensor) -> Tensor:
        """Returns the weights, normalized within each group, over M."""
        normalized = torch.softmax(self._split_groups(log_weights), 1)
        return (normalized / self.groups).reshape(log_weights.shape)

    def curvature(self, log_weights: Tensor) -> Tensor:
        """Returns w - w^2 of the weights normalized within each group, over M."""
        normalized = torch.softmax(self._split_groups(log_weights), 1)
        return (softmax_derivative(normalized) / self.groups).reshape(log_weights.shape)

    def _split_groups(self, log_weights: Tensor) -> Tensor:
        """Returns log weights of shape ``(groups, particles per group, *plates)``."""
        return log_weights.unflatten(0, (self.groups, -1))
