"""What all bounds have in common that are made of importance weights."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.closed_form_kl import rates_per_dimension
from pyro_vae.objectives.core.importance_weights import Weights, outer_sites, weigh
from pyro_vae.objectives.core.objective import Objective, RunOptions, Values, check_choice
from pyro_vae.objectives.core.pathwise import along_samples, value_free
from pyro_vae.objectives.core.sites import AnyTrace, Pair
from pyro_vae.objectives.core.terms import average, gather

__all__ = ["ImportanceWeighted", "finite_or_zero", "log_mean_exp"]


class Shares(NamedTuple):
    r"""How much of a gradient each particle has, each ``(particles, *plates)``.

    Attributes:
        density: The weight of the derivative of log p by the parameters of the model.
        path: The weight of the derivative of log w by the sample.
    """

    density: Tensor
    path: Tensor


class ImportanceWeighted(Objective):
    r"""A bound for each datum that is a function B of its log importance weights.

    .. math::
        \log w_{nk} = \log p(x_n, z_{nk}) - \log q(z_{nk} \mid x_n), \qquad
        \mathcal{L} = \sum_n s_n\, \mathbb{E}\, B(\log w_{n1}, \dots, \log w_{nK})

    The scale :math:`s_n = N / B` of a subsampled plate stands outside of B, and nothing from
    another datum enters.

    **Sites that data share.** A latent site g outside of the plates, or of some of them, is drawn
    once for all particles. Given g the data are independent, so that

    .. math::
        \log p(x) \ge \mathbb{E}_{q(g)} \Big[ \log \frac{p(g)}{q(g)}
        + \sum_n \log p(x_n \mid g) \Big]
        \ge \mathbb{E}_{q(g)} \Big[ \log \frac{p(g)}{q(g)}
        + \sum_n s_n\, \mathbb{E}\, B(\log w_{n \cdot} \mid g) \Big]

    wherever B is a bound for one datum. It takes g to be independent of the samples of a datum
    in guide and model, and so a shared site that comes after such a sample is refused.

    **Joint guides.** A guide that draws all latent variables jointly and has point masses alone
    within the plates, such as ``AutoMultivariateNormal``, makes the whole batch one datum. Each
    particle is a draw of its own. Where a plate scales the batch, all particles are the same draw,
    and a warning says so.

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

    The last two have no variance where the guide is the posterior. Parameters of the model get
    the same gradient under all, and so do point masses and the sites that data share, which keep
    the standard one. Both need a support that no parameter moves, and log q at a given sample,
    for which a normalizing flow has to be inverted. Sites without either are refused.

    **Nested plates.** A datum is an element of the innermost plate of latent sites. What stands
    outside of it is shared, and gains nothing from more particles; to weigh it too, put
    the inner dimension into the event.

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
            not reparameterized, if a site outside of the data plates comes after one within, or
            if the sites of a datum are scaled differently.
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
        weighed = torch.is_grad_enabled() and self._weighs_paths()
        pairs, dim = self._run(model, guide, args, kwargs, cut=weighed)
        weights = self._weigh(pairs, dim)
        loss = -weights.scale * self.bound(weights.log_weights).sum()
        if weighed:
            loss = loss.detach() - weights.scale * self._gradient(weights, pairs)
        return loss if weights.outer is None else loss + weights.outer

    def values(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Values:
        """Returns the bound, its weights and its terms for each datum."""
        pairs, dim = self._run(model, guide, args, kwargs)
        weights = self._weigh(pairs, dim)
        bound = self.bound(weights.log_weights) if weights.outer is None else None
        by_dimension = [rates_per_dimension(pair, closed=False) for pair in pairs]
        rates = average([gather(terms, None, dim) for terms in by_dimension])
        return Values(bound, weights.log_likelihood, weights.rate, weights.log_weights, rates)

    def _shared(self, guide_trace: AnyTrace) -> frozenset[str]:
        return outer_sites(guide_trace)

    def _weigh(self, pairs: list[Pair], dim: int | None) -> Weights:
        """Returns the weights of each datum, and what data share."""
        weights = weigh(pairs, dim)
        if weights.outer is not None and self._bounds_apart():
            raise ValueError(
                f"Expected no latent site outside of the data plates for {type(self).__name__} "
                f"with a bound for the model and another for the guide, got one: it has a part in "
                f"both, and would be trained by neither. Use IWAE or MIWAE"
            )
        return weights

    def _bounds_apart(self) -> bool:
        """Tells whether the guide is trained by another bound than the model."""
        return False

    def _weighs_paths(self) -> bool:
        """Tells whether the gradient is another than the derivative of the bound."""
        return self.estimator != "standard" or self._bounds_apart()

    def _weigh_paths(self, log_weights: Tensor) -> Shares:
        """Returns the weights of the gradient."""
        slope = self.slope(log_weights)
        if self.estimator == "dreg":
            return Shares(slope, slope - self.curvature(log_weights))
        return Shares(slope, slope)

    def _keeps_score(self) -> bool:
        """Tells whether the derivative of log q by its parameters is kept."""
        return self.estimator == "standard"

    def _gradient(self, weights: Weights, pairs: list[Pair]) -> Tensor:
        """Returns zero, whose gradient is that of the bound by the chosen estimator."""
        with torch.no_grad():
            shares = self._weigh_paths(weights.log_weights)
        gradient = along_samples((shares.path * weights.log_weights).sum(), pairs)
        gradient = gradient + (shares.density * value_free(weights.log_p)).sum()
        if self._keeps_score():
            gradient = gradient - (shares.path * value_free(weights.log_q)).sum()
        return gradient


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Returns the logarithm of the mean weight over the first dimension."""
    return log_weights.logsumexp(0) - math.log(log_weights.shape[0])


def finite_or_zero(shift: Tensor) -> Tensor:
    """Returns log weights to shift others by, zero in place of the infinite ones."""
    return torch.where(shift.isinf(), 0.0, shift)
