"""The base class of bounds that are functions of importance weights."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.gradient_estimators import (
    GradientWeights,
    doubly_reparameterize,
    weighted_surrogate,
)
from pyro_vae.objectives.core.importance_weights import Weights, compute_weights, find_global_sites
from pyro_vae.objectives.core.objective import Objective, RunOptions, Values, check_choice
from pyro_vae.objectives.core.sites import AnyTrace, Pair
from pyro_vae.objectives.core.terms import average_runs, group_by_site, rates_per_dimension

__all__ = ["ImportanceWeighted", "finite_or_zero", "log_mean_exp"]


class ImportanceWeighted(Objective):
    r"""A bound for each datum that is a function B of its log importance weights.

    .. math::
        \log w_{nk} = \log p(x_n, z_{nk}) - \log q(z_{nk} \mid x_n), \qquad
        \mathcal{L} = \sum_n s_n\, \mathbb{E}\, B(\log w_{n1}, \dots, \log w_{nK})

    The scale :math:`s_n = N / B` of a subsampled plate is outside of B, and each value of B depends
    on one datum only.

    **Global latents.** A latent site g outside of the plates, or of some of them, is sampled once
    for all particles. Given g the data are independent, so that

    .. math::
        \log p(x) \ge \mathbb{E}_{q(g)} \Big[ \log \frac{p(g)}{q(g)}
        + \sum_n \log p(x_n \mid g) \Big]
        \ge \mathbb{E}_{q(g)} \Big[ \log \frac{p(g)}{q(g)}
        + \sum_n s_n\, \mathbb{E}\, B(\log w_{n \cdot} \mid g) \Big]

    wherever B is a bound for one datum. This requires that g does not depend on the samples of a
    datum in guide and model. A global site after such a sample raises an error.

    **Joint guides.** A guide that samples all latents jointly and has only point masses within the
    plates, such as ``AutoMultivariateNormal``, makes the whole batch one datum. Each particle is
    then a separate draw. If a plate scales the batch, all particles are the same draw, and a
    warning is raised.

    **Estimators of the gradient** by the parameters of the guide. With
    :math:`a_k = \partial B / \partial \log w_k` and
    :math:`h_k = \partial^2 B / \partial (\log w_k)^2`,

    - ``"standard"``: the derivative of B through samples and densities;
    - ``"stl"`` (sticking the landing): without the derivative of log q by its parameters at a
      fixed sample, which is :math:`\sum_k a_k\, \partial_z \log w_k\, \partial_\phi z_k`. Unbiased
      where the weights are equal, as at K = 1; biased otherwise;
    - ``"dreg"`` (doubly reparameterized): that derivative is itself reparameterized, by
      :math:`\mathbb{E}_q[f\, \partial_\phi \log q] = \mathbb{E}_q[\partial_z f\, \partial_\phi z]`
      with :math:`f = a_k`, which gives
      :math:`\sum_k (a_k - h_k)\, \partial_z \log w_k\, \partial_\phi z_k`: unbiased.

    The last two have zero variance where the guide is the posterior. The estimator does not affect
    the parameters of the model, point masses and global latents, which keep the standard gradient.
    Both need a support that does not depend on parameters, and log q at a given sample, for which a
    normalizing flow has to be inverted. Other sites raise an error.

    **Nested plates.** A datum is an element of the innermost plate of latent sites. Sites outside
    of it are global, and do not benefit from more particles; to weight them too, move the inner
    dimension into the event.

    References:
        | Sticking the landing (Roeder, Wu and Duvenaud, 2017), https://arxiv.org/abs/1703.09194
        | Doubly reparameterized gradient estimators for Monte Carlo objectives (Tucker et al.,
          2018), https://arxiv.org/abs/1810.04152

    Arguments:
        num_particles: The number of samples of each datum.
        estimator: ``"standard"``, ``"stl"`` or ``"dreg"``.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If an argument is out of range; when called, if a latent site of the guide is
            not reparameterized, a global site comes after a local one, or the sites of a datum
            have different scales.
    """

    estimators: ClassVar[tuple[str, ...]] = ("standard", "stl", "dreg")

    def __init__(
        self,
        num_particles: int,
        *,
        estimator: str = "standard",
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, **run)
        self.estimator = check_choice("estimator", estimator, self.estimators)

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns B for log weights of shape ``(particles, *plates)``, of shape ``plates``."""

    @abstractmethod
    def slope(self, log_weights: Tensor) -> Tensor:
        """Returns the derivative of B by each log weight."""

    @abstractmethod
    def curvature(self, log_weights: Tensor) -> Tensor:
        """Returns the second derivative of B by each log weight alone."""

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the bound, summed over the data, as a scalar tensor."""
        surrogate = torch.is_grad_enabled() and self._has_surrogate_gradient()
        pairs, dim = self._run_particles(model, guide, args, kwargs, detach=surrogate)
        weights = self._compute_weights(pairs, dim)
        loss = -weights.scale * self.bound(weights.log_weights).sum()
        if surrogate:
            loss = loss.detach() - weights.scale * self._surrogate_gradient(weights, pairs)
        return loss if weights.global_loss is None else loss + weights.global_loss

    def values(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Values:
        """Returns the bound, its weights and its terms for each datum."""
        pairs, dim = self._run_particles(model, guide, args, kwargs)
        weights = self._compute_weights(pairs, dim)
        bound = self.bound(weights.log_weights) if weights.global_loss is None else None
        by_dimension = [rates_per_dimension(pair, closed=False) for pair in pairs]
        rates = average_runs([group_by_site(terms, None, dim) for terms in by_dimension])
        return Values(bound, weights.log_likelihood, weights.rate, weights.log_weights, rates)

    def _find_shared_sites(self, guide_trace: AnyTrace) -> frozenset[str]:
        return find_global_sites(guide_trace)

    def _compute_weights(self, pairs: list[Pair], dim: int | None) -> Weights:
        weights = compute_weights(pairs, dim)
        if weights.global_loss is not None and self._has_guide_bound():
            raise ValueError(
                f"Expected no latent site outside of the data plates for {type(self).__name__} "
                f"with separate bounds for model and guide, got one: it enters both bounds, and "
                f"would be trained by neither. Use IWAE or MIWAE"
            )
        return weights

    def _has_guide_bound(self) -> bool:
        """Whether the guide is trained by a different bound than the model."""
        return False

    def _has_surrogate_gradient(self) -> bool:
        """Whether the gradient differs from the derivative of the bound."""
        return self.estimator != "standard" or self._has_guide_bound()

    def _gradient_weights(self, log_weights: Tensor) -> GradientWeights:
        slope = self.slope(log_weights)
        if self.estimator == "dreg":
            return doubly_reparameterize(slope, self.curvature(log_weights))
        return GradientWeights(slope, slope)

    def _keeps_score(self) -> bool:
        """Whether the derivative of log q by its parameters is kept."""
        return self.estimator == "standard"

    def _surrogate_gradient(self, weights: Weights, pairs: list[Pair]) -> Tensor:
        """Returns zero, with the gradient of the bound by the chosen estimator."""
        with torch.no_grad():
            gradient_weights = self._gradient_weights(weights.log_weights)
        return weighted_surrogate(gradient_weights, weights, pairs, score=self._keeps_score())


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Returns the logarithm of the mean weight over the first dimension."""
    return log_weights.logsumexp(0) - math.log(log_weights.shape[0])


def finite_or_zero(shift: Tensor) -> Tensor:
    """Returns shifts of log weights, with zeros in place of infinite ones."""
    return torch.where(shift.isinf(), 0.0, shift)
