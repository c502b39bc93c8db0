"""Log factorials and deviances that do not cancel, for densities of large counts."""

import math

import torch
from torch import Tensor

__all__ = [
    "log_factorial_excess",
    "log_quotient",
    "poisson_deviance",
    "stirling_error",
]

_SHIFT = 8
"""The number from which Stirling's series is used; its error there is below 1e-15."""

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
    large = a > _SHIFT
    # The branch that torch.where drops gets a harmless argument, so that its gradient is finite.
    small = torch.where(large, 1.0, a)
    shifted = small + _SHIFT
    inverse = 1 / torch.where(large, a, shifted)
    square = inverse**2
    coefficients = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
    series = torch.zeros_like(a)
    for coefficient in reversed(coefficients):
        series = coefficient + square * series
    series = inverse * series
    # Gamma's recurrence leads from small + 8 back to small, without lgamma and digamma, which are
    # slow. The product is that of 1 - j / (small + 8) for j from 1 to 7, in pairs of j and 8 - j.
    step = 1 / shifted
    square, pair = step**2, small * step
    product = (pair + 7 * square) * (pair + 12 * square) * (pair + 15 * square) * (1 - 4 * step)
    back = (small + 0.5) * (shifted.log() - small.log()) - _SHIFT - product.log()
    return torch.where(large, series, series + back)


def log_factorial_excess(count: Tensor) -> Tensor:
    r"""Returns :math:`\log x! - x \log x + x` for counts, which is 0 for a count of 0.

    Example:
        >>> log_factorial_excess(torch.tensor([0.0, 4.0]))
        tensor([0.0000, 1.6329])
    """
    positive = count > 0
    safe = torch.where(positive, count, 1.0)
    excess = stirling_error(safe) + 0.5 * safe.log() + _HALF_LOG_2PI
    return torch.where(positive, excess, 0.0)


def log_quotient(difference: Tensor, b: Tensor, far: Tensor) -> Tensor:
    r"""Returns :math:`\log (a / b)` of positive numbers, also where they are almost equal.

    Arguments:
        difference: :math:`a - b`.
        b: The denominator.
        far: :math:`\log a - \log b`, which is accurate elsewhere.

    Example:
        >>> log_quotient(torch.tensor(1e-12), torch.tensor(1.0), torch.tensor(0.0))
        tensor(1.0000e-12)
    """
    near = difference.abs() < 0.5 * b
    # The branch that torch.where drops gets a harmless argument, so that its gradient is finite.
    quotient = torch.where(near, difference, 0.0) / torch.where(near, b, 1.0)
    return torch.where(near, torch.log1p(quotient), far)


def poisson_deviance(count: Tensor, mean: Tensor, log_mean: Tensor | None = None) -> Tensor:
    r"""Returns :math:`x \log (x / \mu) - x + \mu`, half of the deviance of a Poisson distribution.

    Arguments:
        count: :math:`x`, not negative; not only integers.
        mean: :math:`\mu`.
        log_mean: Its logarithm, if the mean may underflow.

    Example:
        >>> poisson_deviance(torch.tensor([0.0, 3.0]), torch.tensor([2.0, 3.0]))
        tensor([2., 0.])
    """
    positive = count > 0
    x, mu = torch.where(positive, count, 1.0), torch.where(positive, mean, 1.0)
    log_mu = mu.log() if log_mean is None else torch.where(positive, log_mean, 0.0)
    return count * log_quotient(x - mu, mu, x.log() - log_mu) - (count - mean)
