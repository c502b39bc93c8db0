"""An autoregressive distribution over several one-hot variables."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.types import _size

from pyro_vae.distributions.blocks import repeat_support
from pyro_vae.distributions.one_hot import OneHot

__all__ = ["Autoregressive"]


class Autoregressive(TorchDistribution):
    r"""One-hot variables, each with probabilities that depend on those before it.

    .. math:: P(z) = \prod_v P(z_v \mid z_1, \dots, z_{v - 1})

    A value is scored in one pass of the network; a draw takes one pass for each variable. Mean and
    variance are sums over all codes, of which there may be at most a million.

    Arguments:
        network: Maps codes ``(*batch, dim)`` to logits of this shape; those of a variable depend
            on earlier ones only.
        zero: Zeros of shape ``(variables, categories)``, which give sizes, precision and device.
        batch_shape: The batch shape.

    Example:
        >>> p = Autoregressive(torch.zeros_like, torch.zeros(2, 3))
        >>> p.log_prob(torch.tensor([1.0, 0, 0, 0, 0, 1.0]))
        tensor(-2.1972)
    """

    arg_constraints = {"zero": constraints.independent(constraints.real, 2)}  # noqa: RUF012
    has_rsample = False
    has_enumerate_support = True

    def __init__(
        self,
        network: nn.Module | Any,
        zero: Tensor,
        batch_shape: _size = torch.Size(),  # noqa: B008
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.network, self.zero = network, zero
        event = torch.Size((zero.numel(),))
        super().__init__(torch.Size(batch_shape), event, validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "Autoregressive":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(Autoregressive, _instance)
        new.network, new.zero = self.network, self.zero
        super(Autoregressive, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """One-hot blocks."""
        return repeat_support(constraints.one_hot, self.zero.shape[0])

    @property
    def mean(self) -> Tensor:
        """The probabilities of each category, summed over all codes."""
        codes = self.enumerate_support(expand=False).reshape(-1, *self.event_shape)
        probs = self._condition(codes).log_prob(codes).exp()
        return (probs @ codes).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The variance of each element."""
        return self.mean * (1 - self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self._condition(value).log_prob(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def _condition(self, value: Tensor) -> OneHot:
        """Returns the distribution of each variable given the values of those before it."""
        return OneHot(self.network(value).unflatten(-1, self.zero.shape), validate_args=False)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws codes, variable by variable."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            value = torch.zeros(shape, dtype=self.zero.dtype, device=self.zero.device)
            categories = self.zero.shape[1]
            for variable in range(self.zero.shape[0]):
                block = slice(variable * categories, (variable + 1) * categories)
                value[..., block] = self._condition(value).sample()[..., block]
            return value

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Returns all codes, as :meth:`OneHot.enumerate_support` does."""
        logits = self.zero.expand(*self.batch_shape, *self.zero.shape)
        return OneHot(logits, validate_args=False).enumerate_support(expand)
