"""Normalizing flows, whose transforms come from zuko."""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.types import _size

from pyro_vae.distributions.draws import Draw
from pyro_vae.distributions.moments import estimate_moments, normal_points

__all__ = ["Flow"]


class Flow(TorchDistribution):
    r"""A normalizing flow: an invertible map between a vector and standard normal noise.

    .. math::
        z = \mu + \sigma \odot T(\epsilon \mid c) \quad \text{(generative)} \qquad \text{or} \qquad
        \epsilon = T\!\left(\frac{z - \mu}{\sigma} \,\middle|\, c\right), \qquad
        \epsilon \sim \mathcal{N}(0, I)

    An autoregressive :math:`T` takes one pass, and its inverse one pass for each dimension. A
    generative flow draws in one pass, and scores its last draw at no cost; other values take the
    inverse. If not generative, it scores in one pass, and draws by the inverse.

    Mean and variance have no closed form. They are estimated from 512 quasi-random points.

    Arguments:
        transform: A lazy transform of zuko, called with the context.
        loc: :math:`\mu`, of shape ``(*batch, dim)``.
        scale: :math:`\sigma`, of this shape.
        context: :math:`c`, of shape ``(*batch, features)``, or ``None``.
        generative: Whether :math:`T` maps noise to values.

    Example:
        >>> from pyro_vae.networks.flow import build_flow
        >>> Flow(build_flow(3), torch.zeros(3), torch.ones(3)).sample((5,)).shape
        torch.Size([5, 3])
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    _last_draw: Draw | None = None

    def __init__(
        self,
        transform: nn.Module,
        loc: Tensor,
        scale: Tensor,
        context: Tensor | None = None,
        *,
        generative: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.transform = transform
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.context = context
        self.generative = generative
        batch = self.loc.shape[:-1]
        if context is not None:
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
        super().__init__(batch, self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> "Flow":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(Flow, _instance)
        batch_shape = torch.Size(batch_shape)
        new.transform, new.context, new.generative = self.transform, self.context, self.generative
        new.loc = self.loc.expand(*batch_shape, *self.event_shape)
        new.scale = self.scale.expand(*batch_shape, *self.event_shape)
        super(Flow, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """An estimate of the mean."""
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        """An estimate of the variance."""
        return self._moments[1]

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        dim = self.event_shape[0]

        def transform(noise: Tensor) -> Tensor:
            shape = noise.reshape(len(noise), *(1 for _ in self.batch_shape), dim)
            return self._generate(shape.expand(len(noise), *self.batch_shape, dim))[0]

        return estimate_moments(transform, normal_points(dim, self.loc))

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws differentiably; a generative flow stores the density of the draw."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        value, log_prob = self._generate(noise)
        self._last_draw = None if log_prob is None else Draw.remember(value, log_prob)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        if self._last_draw is not None and self._last_draw.is_unchanged(value):
            log_prob = self._last_draw.other
            # A draw without gradient is a constant, whose density still depends on parameters.
            if log_prob.requires_grad or not torch.is_grad_enabled():
                return log_prob
        transform = self.transform(self.context)
        unit = (value - self.loc) / self.scale
        if self.generative:
            noise = transform.inv(unit)
            log_det = -transform.call_and_ladj(noise)[1]
        else:
            noise, log_det = transform.call_and_ladj(unit)
        return self._score(noise, log_det)

    def _generate(self, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Maps noise to values, and returns their density if it costs no inverse."""
        transform = self.transform(self.context)
        if not self.generative:
            return self.loc + self.scale * transform.inv(noise), None
        unit, log_det = transform.call_and_ladj(noise)
        return self.loc + self.scale * unit, self._score(noise, -log_det)

    def _score(self, noise: Tensor, log_det: Tensor) -> Tensor:
        constant = self.event_shape[0] * math.log(2 * math.pi)
        log_base = -0.5 * (noise.square().sum(-1) + constant)
        return log_base + log_det - self.scale.log().sum(-1)
