"""Minimization of the rate under a constraint on the distortion."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.additive import Additive
from pyro_vae.objectives.core.batch_means import compute_batch_means
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_scalar
from pyro_vae.objectives.core.terms import compute_terms

__all__ = ["GECO"]

_MULTIPLIER_RANGE = 1e-6, 1e6
"""The bounds of the multiplier."""


class GECO(Additive):
    r"""The rate, minimized where the distortion is at most a target.

    The loss is the Lagrangian of that problem, with :math:`C = D - \kappa` the constraint on the
    batch's mean distortion D,

    .. math::
        N \Big( \frac1B \sum_n \mathrm{KL}_n + \lambda\, C \Big), \qquad
        \bar C \leftarrow \alpha \bar C + (1 - \alpha) C, \qquad
        \lambda \leftarrow \lambda\, e^{\nu \bar C}

    The multiplier :math:`\lambda` grows while the moving average :math:`\bar C` is above zero and
    shrinks below it. It is updated after each loss that is computed with gradients enabled.
    :meth:`state_dict` contains it, and :func:`pyro_vae.fit` saves it with its checkpoints.

    **Batch dependence.** The gradient at a fixed :math:`\lambda` is that of a sum over data. The
    multiplier follows the distortion of the batches; its variance vanishes as B grows.

    References:
        | Taming VAEs (Rezende and Viola, 2018), https://arxiv.org/abs/1810.00597

    Arguments:
        num_particles: The number of samples for each datum.
        target: :math:`\kappa`, the distortion -E log p(x given z) to reach, in nats per datum.
        step_size: :math:`\nu`, the change of :math:`\log \lambda` per nat of :math:`\bar C`.
            The excess of all steps before the target is reached accumulates there, and has to be
            undone afterwards; one over that sum is about right.
        momentum: :math:`\alpha`, within [0, 1].
        multiplier: The initial :math:`\lambda`.
        analytic: As of :class:`~pyro_vae.objectives.ELBO`.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Attributes:
        multiplier: The current :math:`\lambda`, a scalar tensor.
        average: The current :math:`\bar C`, in nats per datum; NaN before the first step.

    Raises:
        ValueError: If an argument is out of range; when called, as
            :class:`~pyro_vae.objectives.Capacity` does.

    Example:
        >>> from pyro_vae import VAE
        >>> vae, x = VAE((1, 8, 8), 2), torch.ones(5, 1, 8, 8)
        >>> objective = GECO(target=10.0)
        >>> loss = objective.differentiable_loss(vae.model, vae.guide, x)
        >>> bool(objective.average > 0), bool(objective.multiplier > 1)
        (True, True)
    """

    facts: ClassVar = Facts(
        "-KL - l (D - target), l raised while D > target",
        "none",
        "yes, of the Lagrangian at the current l",
        "where available; `analytic=True` requires it",
        "yes at a fixed l; l follows the batches",
        "Rezende and Viola 2018",
    )

    def __init__(
        self,
        num_particles: int = 1,
        *,
        target: float | Tensor,
        step_size: float = 1e-4,
        momentum: float = 0.99,
        multiplier: float = 1.0,
        analytic: bool | None = None,
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, analytic=analytic, **run)
        self.target = check_scalar("target", target)
        self.step_size = check_scalar("step_size", step_size, least=0.0)
        self.momentum = check_scalar("momentum", momentum, least=0.0, most=1.0)
        least, most = _MULTIPLIER_RANGE
        initial = check_scalar("multiplier", multiplier, least=least, most=most)
        self.multiplier = torch.as_tensor(initial, dtype=torch.get_default_dtype())
        self.average = torch.full_like(self.multiplier, float("nan"))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns the Lagrangian, summed over the data, as a scalar tensor."""
        pairs, _ = self._run_particles(model, guide, args, kwargs)
        terms = [compute_terms(pair, self.analytic) for pair in pairs]
        batch = compute_batch_means(terms, pairs, self.num_particles)
        if self.multiplier.device != batch.size.device:
            self.multiplier = self.multiplier.to(batch.size.device)
            self.average = self.average.to(batch.size.device)
        excess = batch.distortion - self.target
        # Cloned, because it is updated in place before the backward pass.
        loss = batch.size * (batch.rate + self.multiplier.clone() * excess)
        if torch.is_grad_enabled():
            self._update(torch.where(batch.size > 0, excess.detach(), torch.nan))
        return loss

    @torch.no_grad()
    def _update(self, excess: Tensor) -> None:
        """Updates the average and the multiplier in place, as a captured step requires."""
        excess = excess.to(self.average.dtype)
        average = self.momentum * self.average + (1 - self.momentum) * excess
        average = torch.where(self.average.isnan(), excess, average)
        # A loss that is not finite, or of an empty batch, must not affect later steps.
        finite = excess.isfinite()
        self.average.copy_(torch.where(finite, average, self.average))
        multiplier = self.multiplier * torch.exp(self.step_size * self.average)
        multiplier = multiplier.clamp(*_MULTIPLIER_RANGE)
        self.multiplier.copy_(torch.where(finite, multiplier, self.multiplier))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the multiplier and the moving average."""
        return {"multiplier": self.multiplier.clone(), "average": self.average.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the multiplier and the moving average."""
        self.multiplier.copy_(state["multiplier"])
        self.average.copy_(state["average"])
