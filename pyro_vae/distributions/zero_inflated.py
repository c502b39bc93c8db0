"""Counts with additional zeros."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.types import _size

__all__ = ["ZeroInflated"]


class ZeroInflated(TorchDistribution):
    r"""A mixture of a distribution over counts and the value zero.

    .. math:: p(x) = \pi \, [x = 0] + (1 - \pi) \, p_0(x), \qquad \pi = \sigma(\text{gate\_logits})

    Pyro's class evaluates its density less accurately after a draw, because the draw stores
    :math:`\pi`, which rounds to one. This class uses only the logits.

    Arguments:
        base_dist: :math:`p_0`, a distribution over counts without event dimensions.
        gate_logits: The logits of :math:`\pi`, of a shape that broadcasts to the batch shape.

    Example:
        >>> from pyro_vae.distributions import Poisson
        >>> d = ZeroInflated(Poisson(torch.tensor(2.0)), torch.tensor(0.0))
        >>> d.mean, d.log_prob(torch.tensor(0.0)).exp()
        (tensor(1.), tensor(0.5677))
    """

    arg_constraints = {"gate_logits": constraints.real}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        base_dist: TorchDistribution,
        gate_logits: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if base_dist.event_shape:
            raise ValueError(
                f"Expected base_dist without event dimensions, got event_shape="
                f"{tuple(base_dist.event_shape)}"
            )
        shape = torch.broadcast_shapes(base_dist.batch_shape, gate_logits.shape)
        self.base_dist: Any = base_dist.expand(shape)
        self.gate_logits = gate_logits.expand(shape)
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The support of the base distribution."""
        return self.base_dist.support

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "ZeroInflated":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(ZeroInflated, _instance)
        new.base_dist = self.base_dist.expand(torch.Size(batch_shape))
        new.gate_logits = self.gate_logits.expand(batch_shape)
        super(ZeroInflated, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The mean, with the additional zeros."""
        return torch.sigmoid(-self.gate_logits) * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """The variance, with the additional zeros."""
        zero, rest = torch.sigmoid(self.gate_logits), torch.sigmoid(-self.gate_logits)
        return rest * (self.base_dist.variance + zero * self.base_dist.mean**2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        counted = self.base_dist.log_prob(value)
        counted = counted + logsigmoid(-self.gate_logits)
        zero = torch.logaddexp(logsigmoid(self.gate_logits), counted)
        return torch.where(value == 0, zero, counted)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws counts."""
        with torch.no_grad():
            counts = self.base_dist.sample(torch.Size(sample_shape))
            return torch.where(
                torch.bernoulli(torch.sigmoid(self.gate_logits).expand(counts.shape)) > 0,
                0.0,
                counts,
            )
