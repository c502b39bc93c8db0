"""The gamma distribution, accurate for large concentrations."""

import math

import pyro.distributions as dist
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions.stirling import poisson_deviance, stirling_error

__all__ = ["Gamma"]


class Gamma(dist.Gamma):
    r"""A gamma distribution over positive numbers.

    .. math:: p(x) = \frac{\beta^k}{\Gamma(k)} x^{k-1} e^{-\beta x}

    PyTorch's class subtracts terms of the size :math:`k \log k`, which are inaccurate in single
    precision for a large concentration :math:`k`. This class uses the saddle-point form.

    Arguments:
        concentration: :math:`k`, positive.
        rate: :math:`\beta`, positive; the mean is :math:`k / \beta`.

    Example:
        >>> import torch
        >>> Gamma(torch.tensor(1e6), torch.tensor(1e6)).log_prob(torch.tensor(1.0))
        tensor(5.9888)
    """

    # At zero the density is 0 or infinite, or has no limit in k.
    support = constraints.positive  # type: ignore[assignment]

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        k = self.concentration
        normalizer = 0.5 * (k / (2 * math.pi)).log() - stirling_error(k)
        return normalizer - value.log() - poisson_deviance(k, value * self.rate)
