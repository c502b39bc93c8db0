"""The rate minimized under a constraint on the distortion."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.additive import Additive
from pyro_vae.objectives.core.batch_means import mean_terms
from pyro_vae.objectives.core.objective import Facts, RunOptions, check_scalar

__all__ = ["GECO"]

_LIMITS = 1e-6, 1e6
"""Between what the multiplier stays."""


class GECO(Additive):
    r"""The rate, minimized where the distortion is at most a target.

    The loss is the Lagrangian of that problem, with :math:`C = D - \kappa` the constraint on the
    batch's mean distortion D,

    .. math::
        N \Big( \frac1B \sum_n \mathrm{KL}_n + \lambda\, C \Big), \qquad
        \bar C \leftarrow \alpha \bar C + (1 - \alpha) C, \qquad
        \lambda \leftarrow \lambda\, e^{\nu \bar C}

    The multiplier :math:`\lambda` grows while the moving average :math:`\bar C` is above zero and
    shrinks below it. It is updated each time that a loss is computed with gradients enabled, after
    it has been used, and belongs to :meth:`state_dict`, which
    :func:`pyro_vae.fit` keeps with its checkpoints.

    **Batch dependence.** The gradient at a given :math:`\lambda` is that of a sum over data. The
    multiplier follows the distortion of the batches seen; its scatter vanishes as B grows.

    References:
        | Taming VAEs (Rezende and Viola, 2018), https://arxiv.org/abs/1810.00597

    Arguments:
        num_particles: The number of samples for each datum.
        target: :math:`\kappa`, the distortion -E log p(x given z) to reach, in nats per datum.
        step_size: :math:`\nu`, by how much a nat of :math:`\bar C` changes :math:`\log \lambda`.
            The excess of all steps adds up there before the target is reached, and has to be paid
            back after: one over that sum is about right.
        momentum: :math:`\alpha`, within [0, 1].
        multiplier: The first :math:`\lambda`.
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
        "of the Lagrangian at the current l",
        "where there is one; `analytic=True` everywhere",
        "at a given l; l follows the batches",
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
        first = check_scalar("multiplier", multiplier, least=_LIMITS[0], most=_LIMITS[1])
        self.multiplier = torch.as_tensor(first, dtype=torch.get_default_dtype())
        self.average = torch.full_like(self.multiplier, float("nan"))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns the Lagrangian, summed over the data, as a scalar tensor."""
        pairs, _ = self._run(model, guide, args, kwargs)
        batch = mean_terms([self._terms(pair) for pair in pairs], pairs, self.num_particles)
        if self.multiplier.device != batch.size.device:
            self.multiplier = self.multiplier.to(batch.size.device)
            self.average = self.average.to(batch.size.device)
        excess = batch.distortion - self.target
        # Copied, for it is updated in place before it is needed on the way back.
        loss = batch.size * (batch.rate + self.multiplier.clone() * excess)
        if torch.is_grad_enabled():
            self._update(torch.where(batch.size > 0, excess.detach(), torch.nan))
        return loss

    @torch.no_grad()
    def _update(self, excess: Tensor) -> None:
        """Moves the average and the multiplier, in place, so that a captured step does too."""
        excess = excess.to(self.average.dtype)
        moved = self.momentum * self.average + (1 - self.momentum) * excess
        moved = torch.where(self.average.isnan(), excess, moved)
        # A loss that is not finite, or of no data, must not outlast its step.
        finite = excess.isfinite()
        self.average.copy_(torch.where(finite, moved, self.average))
        grown = self.multiplier * torch.exp(self.step_size * self.average)
        self.multiplier.copy_(torch.where(finite, grown.clamp(*_LIMITS), self.multiplier))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns multiplier and moving average."""
        return {"multiplier": self.multiplier.clone(), "average": self.average.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes multiplier and moving average over."""
        self.multiplier.copy_(state["multiplier"])
        self.average.copy_(state["average"])
