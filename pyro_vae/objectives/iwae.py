"""The importance-weighted bound."""

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.gradient_estimators import GradientWeights, doubly_reparameterize
from pyro_vae.objectives.core.importance_weighted import ImportanceWeighted, log_mean_exp
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_scalar

__all__ = ["IWAE"]


class IWAE(ImportanceWeighted):
    r"""The importance-weighted bound of each datum.

    .. math::
        \mathcal{L}_K = \sum_n s_n\, \mathbb{E} \log \frac1K \sum_{k=1}^K
        \frac{p(x_n, z_{nk})}{q(z_{nk} \mid x_n)}

    It is the ELBO at K = 1 and rises with K to the evidence.
    :class:`pyro.infer.RenyiELBO` has the scale :math:`s_n` inside of the logarithm, which raises
    the weights to that power and exceeds the evidence.

    With ``estimator="dreg"``, ``dreg_alpha`` mixes in the wake-phase update of reweighted
    wake-sleep. The weight of the path of a particle is
    :math:`\alpha \tilde w_k + (1 - 2 \alpha) \tilde w_k^2`, with :math:`\tilde w` the normalized
    weights. It is unbiased for the bound at 0, half of ``"stl"`` at 1/2, and only the wake-phase
    update at 1, which minimizes KL(p, q).

    References:
        | Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2015),
          https://arxiv.org/abs/1509.00519
        | Doubly reparameterized gradient estimators for Monte Carlo objectives (Tucker et al.,
          2018), https://arxiv.org/abs/1810.04152

    Arguments:
        num_particles: The number of samples K of each datum.
        estimator: As of :class:`~pyro_vae.objectives.ImportanceWeighted`.
        dreg_alpha: The share of the wake-phase update, within [0, 1]; 0 without ``"dreg"``.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: As :class:`~pyro_vae.objectives.ImportanceWeighted` does.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae = VAE((1, 8, 8), 2)
        >>> IWAE(7).values(vae.model, vae.guide, torch.ones(5, 1, 8, 8)).log_weights.shape
        torch.Size([7, 5])
    """

    facts: ClassVar = Facts(
        "E log mean_k w_k",
        "log p(x), below; tighter as K grows",
        "yes; `stl` is biased for K > 1",
        "no",
        "yes",
        "Burda et al. 2015",
    )

    def __init__(
        self,
        num_particles: int = 5,
        *,
        estimator: str = "standard",
        dreg_alpha: float | Tensor = 0.0,
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, estimator=estimator, **run)
        self.dreg_alpha = check_scalar("dreg_alpha", dreg_alpha, least=0.0, most=1.0)
        if estimator != "dreg" and bool(dreg_alpha):
            raise ValueError(
                f"Expected dreg_alpha to be 0 without estimator='dreg', got {dreg_alpha}"
            )

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the logarithm of the mean weight."""
        return log_mean_exp(log_weights)

    def slope(self, log_weights: Tensor) -> Tensor:
        """Returns the normalized weights."""
        return torch.softmax(log_weights, 0)

    def curvature(self, log_weights: Tensor) -> Tensor:
        """Returns w - w^2 of the normalized weights w."""
        return softmax_derivative(self.slope(log_weights))

    def _gradient_weights(self, log_weights: Tensor) -> GradientWeights:
        if self.estimator != "dreg":
            return super()._gradient_weights(log_weights)
        slope, curvature = self.slope(log_weights), self.curvature(log_weights)
        return doubly_reparameterize(slope, curvature, self.dreg_alpha)


def softmax_derivative(normalized: Tensor) -> Tensor:
    """Returns w - w^2, the derivative of each softmax weight w by its own logit.

    The product form keeps full precision near 0 and near 1.
    """
    return normalized * (1 - normalized)
