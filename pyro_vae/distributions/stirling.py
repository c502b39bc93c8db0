"""Log factorials and deviances that do not cancel, for densities of large counts."""

import math

import torch
from torch import Tensor

__all__ = [
    "gamma_deviance",
    "log_factorial_excess",
    "log_quotient",
    "poisson_deviance",
    "stirling_error",
]

_SERIES_ABOVE = 10.0
"""The bound above which Stirling's series replaces ``lgamma``; its error there is below 1e-13."""

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def stirling_error(a: Tensor) -> Tensor:
    r"""Returns the error of Stirling's formula for positive numbers.

    .. math:: \log \Gamma(a + 1) - (a + \tfrac12) \log a + a - \tfrac12 \log 2 \pi

    References:
        | Fast and accurate computation of binomial probabilities (Loader, 2000)

    Example:
        >>> stirling_error(torch.tensor([1.0, 1e6]))
        tensor([8.1061e-02, 8.3333e-08])
    """
    large = a > _SERIES_ABOVE
    # The branch that torch.where drops gets a harmless argument, so that its gradient is finite.
    inverse = 1 / torch.where(large, a, _SERIES_ABOVE)
    square = inverse**2
    coefficients = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
    series = torch.zeros_like(a)
    for coefficient in reversed(coefficients):
        series = coefficient + square * series
    small = torch.where(large, 1.0, a)
    exact = torch.lgamma(small + 1) - (small + 0.5) * small.log() + small - _HALF_LOG_2PI
    return torch.where(large, inverse * series, exact)


def log_factorial_excess(count: Tensor) -> Tensor:
    r"""Returns :math:`\log x! - x \log x + x` for counts, which is 0 for a count of 0.

    Example:
        >>> log_factorial_excess(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])
    """
    positive = count > 0
    safe = torch.where(positive, count, 1.0)
    excess = stirling_error(safe) + 0.5 * safe.log() + _HALF_LOG_2PI
    return torch.where(positive, excess, 0.0)


def log_quotient(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    r"""Returns :math:`\log (a / b)` of positive numbers, accurate where they are almost equal.

    Arguments:
        a: The numerator.
        b: The denominator.
        difference: ``a - b``, which the caller may know more precisely than its rounded terms.

    Example:
        >>> log_quotient(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(1e-12))
        tensor(1.0000e-12)
    """
    near = difference.abs() < 0.5 * b
    return torch.where(
        near,
        torch.log1p(torch.where(near, difference, 0.0) / b),
        torch.where(near, 1.0, a).log() - torch.where(near, 1.0, b).log(),
    )


def poisson_deviance(count: Tensor, mean: Tensor) -> Tensor:
    r"""Returns :math:`x \log (x / \mu) - x + \mu`, half of the deviance of a Poisson distribution.

    Example:
        >>> poisson_deviance(torch.tensor([0.0, 3.0]), torch.tensor([2.0, 3.0]))
        tensor([2., 0.])
    """
    difference = count - mean
    safe = torch.where(count > 0, count, mean)
    return count * log_quotient(safe, mean, safe - mean) - difference


def gamma_deviance(ratio: Tensor) -> Tensor:
    r"""Returns :math:`r - 1 - \log r` for the ratio of a positive value to its mean.

    Example:
        >>> gamma_deviance(torch.tensor([1.0, 2.0]))
        tensor([0.0000, 0.3069])
    """
    return (ratio - 1) - log_quotient(ratio, torch.ones_like(ratio), ratio - 1)
