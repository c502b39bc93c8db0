"""The ELBO with a target capacity for the rate."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.additive import Additive
from pyro_vae.objectives.core.batch_means import compute_batch_means
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_scalar
from pyro_vae.objectives.core.terms import compute_terms

__all__ = ["Capacity"]


class Capacity(Additive):
    r"""The ELBO with the rate pulled towards a capacity C, which a schedule may raise.

    .. math::
        \sum_n s_n\, \mathbb{E}_q[\log p(x_n \mid z_n)]
        - \gamma\, N\, \Big| \frac1B \sum_n \mathrm{KL}_n - C \Big|

    with :math:`\mathrm{KL}_n` the sum over the latent sites of a datum, and :math:`N = \sum_n s_n`
    over the data with an unmasked latent site. A batch without such data has a loss of zero.

    **Batch dependence.** The absolute value is taken of the mean over the batch, as in the paper,
    and not of each datum. The mean of a batch varies about that of the data, so the expected
    penalty is larger for smaller batches. The excess vanishes as B grows, at the rate
    :math:`B^{-1/2}` where the mean is at C and much faster elsewhere.

    References:
        | Understanding disentangling in beta-VAE (Burgess et al., 2018),
          https://arxiv.org/abs/1804.03599

    Arguments:
        num_particles: The number of samples for each datum.
        capacity: C, in nats per datum.
        gamma: :math:`\gamma`, the weight of the penalty.
        analytic: As of :class:`~pyro_vae.objectives.ELBO`.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``capacity`` or ``gamma`` is negative; when called, as
            :class:`~pyro_vae.objectives.ELBO` does, and if a latent site is outside of the
            data plates, latent sites have different scales, or a plate is sequential.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae, x = VAE((1, 8, 8), 2), torch.ones(5, 1, 8, 8)
        >>> objective = Capacity(capacity=2.0, gamma=100.0)
        >>> objective.differentiable_loss(vae.model, vae.guide, x).requires_grad
        True
    """

    facts: ClassVar = Facts(
        "E log p(x given z) - g abs(mean KL - C)",
        "none",
        "yes, on batches of that size",
        "where available; `analytic=True` requires it",
        "no: depends on the batch's mean KL",
        "Burgess et al. 2018",
    )

    def __init__(
        self,
        num_particles: int = 1,
        *,
        capacity: float | Tensor = 25.0,
        gamma: float | Tensor = 10.0,
        analytic: bool | None = None,
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, analytic=analytic, **run)
        self.capacity = check_scalar("capacity", capacity, least=0.0)
        self.gamma = check_scalar("gamma", gamma, least=0.0)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the objective, summed over the data, as a scalar tensor."""
        pairs, _ = self._run_particles(model, guide, args, kwargs)
        terms = [compute_terms(pair, self.analytic) for pair in pairs]
        batch = compute_batch_means(terms, pairs, self.num_particles)
        penalty = self.gamma * (batch.rate - self.capacity).abs()
        return batch.size * (batch.distortion + penalty)
