"""The negative binomial distribution by mean and inverse dispersion."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.types import _size

from pyro_vae.distributions.stirling import log_factorial_excess, log_quotient, stirling_error

__all__ = ["NegativeBinomial"]


class NegativeBinomial(TorchDistribution):
    r"""A negative binomial distribution over counts, a gamma mixture of Poisson distributions.

    .. math::
        p(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}
        \left(\frac{\theta}{\theta + \mu}\right)^\theta
        \left(\frac{\mu}{\theta + \mu}\right)^x, \qquad
        \operatorname{Var}(x) = \mu + \mu^2 / \theta

    The parameters have scvi-tools' names: mean :math:`\mu` and inverse dispersion :math:`\theta`.
    As :math:`\theta` grows, it becomes a Poisson distribution. The classes of PyTorch and Pyro
    subtract terms of the size :math:`(x + \theta) \log (x + \theta)`, whose rounding errors reach
    several nats in single precision. This class uses the saddle-point form.

    References:
        | Fast and accurate computation of binomial probabilities (Loader, 2000)

    Arguments:
        mean: :math:`\mu`, positive, of any shape.
        inverse_dispersion: :math:`\theta`, positive, of a shape that broadcasts with the mean.

    Example:
        >>> NegativeBinomial(torch.tensor(3.0), torch.tensor(1.0)).log_prob(torch.tensor(0.0))
        tensor(-1.3863)
    """

    arg_constraints = {  # noqa: RUF012
        "mean": constraints.positive,
        "inverse_dispersion": constraints.positive,
    }
    support = constraints.nonnegative_integer
    has_rsample = False

    def __init__(
        self, mean: Tensor, inverse_dispersion: Tensor, *, validate_args: bool | None = None
    ) -> None:
        # The base class defines a property of this name, which has no setter.
        self._mean, self.inverse_dispersion = broadcast_all(mean, inverse_dispersion)
        # Terms of the dispersion alone are computed once for all rows that share it.
        self._shared = torch.as_tensor(inverse_dispersion).to(self._mean)
        super().__init__(self._mean.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "NegativeBinomial":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(NegativeBinomial, _instance)
        new._mean = self._mean.expand(batch_shape)
        new.inverse_dispersion = self.inverse_dispersion.expand(batch_shape)
        new._shared = self._shared
        super(NegativeBinomial, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        r"""The mean :math:`\mu`."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        r"""The variance :math:`\mu + \mu^2 / \theta`."""
        return self.mean + self.mean**2 / self.inverse_dispersion

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        mean, theta = self.mean, self.inverse_dispersion
        total = theta + value
        # The deviance of a binomial of theta and x among theta + x, with means that sum to it.
        log_ratio = (theta + mean).log() - total.log()
        deviance = theta * log_quotient(mean - value, total, log_ratio)
        positive = value > 0
        x, mu = torch.where(positive, value, 1.0), torch.where(positive, mean, 1.0)
        difference = (x - mu) * (theta / (theta + x))
        far = x.log() - mu.log() + torch.where(positive, log_ratio, 0.0)
        deviance = deviance + value * log_quotient(difference, mu, far)
        normalizer = (
            stirling_error(total) - stirling_error(self._shared) - 0.5 * (value / theta).log1p()
        )
        return normalizer - deviance - log_factorial_excess(value)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws counts: a rate from a gamma distribution, then a Poisson count."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            theta = self.inverse_dispersion.expand(shape)
            return torch.poisson(torch._standard_gamma(theta) * (self.mean / theta))
