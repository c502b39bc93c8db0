"""The beta distribution, accurate for large concentrations."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.types import _size

from pyro_vae.distributions.stirling import log_quotient, stirling_error

__all__ = ["Beta"]


class _OpenInterval(constraints.Constraint):
    """The numbers strictly between 0 and 1."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


class Beta(dist.Beta):
    r"""A beta distribution over the open unit interval.

    .. math:: p(x) = \frac{\Gamma(a + b)}{\Gamma(a) \Gamma(b)} x^{a-1} (1 - x)^{b-1}

    PyTorch's class subtracts terms of the size :math:`(a + b) \log (a + b)`, which are inaccurate
    in single precision for large concentrations. This class uses the saddle-point form. Its draws
    never round to 0 or 1.

    Arguments:
        concentration1: :math:`a`, positive.
        concentration0: :math:`b`, positive.

    Example:
        >>> import torch
        >>> Beta(torch.tensor(1e6), torch.tensor(1e6)).log_prob(torch.tensor(0.5))
        tensor(7.0285)
    """

    support = _OpenInterval()  # type: ignore[assignment]

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        a, b = self.concentration1, self.concentration0
        total = a + b
        normalizer = stirling_error(total) - stirling_error(a) - stirling_error(b)
        normalizer = normalizer + 0.5 * (a.log() + b.log() - (2 * math.pi * total).log())
        complement = 1 - value
        # a / (a + b) - x, without the rounding error of the quotient.
        difference = (a * complement - b * value) / total
        log_x, log_y, log_total = value.log(), torch.log1p(-value), total.log()
        deviance = a * log_quotient(difference, value, a.log() - log_total - log_x)
        deviance = deviance + b * log_quotient(-difference, complement, b.log() - log_total - log_y)
        return normalizer - deviance - log_x - log_y

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draws differentiably."""
        shape = self._extended_shape(torch.Size(sample_shape))
        a, b = (c.expand(shape) for c in (self.concentration1, self.concentration0))
        draw = torch.sigmoid(_draw_log_gamma(a) - _draw_log_gamma(b))
        info = torch.finfo(draw.dtype)
        return draw.clamp(info.tiny, 1 - info.eps / 2)


def _draw_log_gamma(concentration: Tensor) -> Tensor:
    """Draws the logarithm of a gamma variable, which itself would underflow."""
    info = torch.finfo(concentration.dtype)
    uniform = torch.rand_like(concentration).clamp(min=info.tiny)
    draw = torch._standard_gamma(concentration + 1).clamp(min=info.tiny)
    return draw.log() + uniform.log() / concentration
