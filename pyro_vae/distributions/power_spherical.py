"""The power spherical distribution and the uniform distribution on the sphere."""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

__all__ = ["PowerSpherical", "UniformSphere"]


class PowerSpherical(TorchDistribution):
    r"""The power spherical distribution on the unit sphere of :math:`\mathbb{R}^d`.

    .. math::
        p(z) = \frac{(1 + \mu^\top z)^\kappa}{2^{\alpha + \beta} \pi^\beta\,
        \Gamma(\alpha) / \Gamma(\alpha + \beta)}, \qquad
        \beta = \tfrac{d - 1}{2}, \quad \alpha = \beta + \kappa

    It has the shape of a von Mises-Fisher distribution, but its draws need no rejection and have
    gradients. The density is by the area of the sphere.

    References:
        | The power spherical distribution (De Cao and Aziz, 2020),
          https://arxiv.org/abs/2006.04437

    Arguments:
        loc: :math:`\mu`, of shape ``(*batch, d)`` and length 1, with d of at least 2.
        concentration: :math:`\kappa`, of shape ``batch``, not negative.

    Example:
        >>> q = PowerSpherical(torch.tensor([0.0, 1.0]), torch.tensor(50.0))
        >>> q.rsample().norm().round(decimals=3)
        tensor(1.)
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.sphere,
        "concentration": constraints.nonnegative,
    }
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor, *, validate_args: bool | None = None
    ) -> None:
        if loc.shape[-1:].numel() < 2:
            raise ValueError(f"Expected loc of at least 2 dimensions, got shape {tuple(loc.shape)}")
        batch = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*batch, loc.shape[-1])
        self.concentration = concentration.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "PowerSpherical":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(PowerSpherical, _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(*batch_shape, *self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        super(PowerSpherical, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def _alpha_beta(self) -> tuple[Tensor, float]:
        r"""The parameters of the beta distribution of :math:`(1 + \mu^\top z) / 2`."""
        beta = (self.event_shape[0] - 1) / 2
        # Differences of gamma functions of a large concentration cancel in single precision.
        return self.concentration.double() + beta, beta

    @property
    def mean(self) -> Tensor:
        """The mean, which lies within the sphere."""
        alpha, beta = self._alpha_beta
        return self.loc * ((alpha - beta) / (alpha + beta)).to(self.loc).unsqueeze(-1)

    @property
    def mode(self) -> Tensor:
        """The direction."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each element."""
        alpha, beta = self._alpha_beta
        size = alpha + beta
        mean = (alpha - beta) / size
        square = 4 * alpha * beta / (size**2 * (size + 1)) + mean**2
        across = (1 - square) / (2 * beta)
        along = (square - mean**2 - across).to(self.loc).unsqueeze(-1)
        return along * self.loc**2 + across.to(self.loc).unsqueeze(-1)

    def entropy(self) -> Tensor:
        """Returns the differential entropy, in nats."""
        alpha, beta = self._alpha_beta
        log_distance = math.log(2) + torch.digamma(alpha) - torch.digamma(alpha + beta)
        return (self._log_normalizer() - (alpha - beta) * log_distance).to(self.loc)

    def _log_normalizer(self) -> Tensor:
        """Returns the log integral of the unnormalized density, in double precision."""
        alpha, beta = self._alpha_beta
        gammas = torch.lgamma(alpha) - torch.lgamma(alpha + beta)
        return (alpha + beta) * math.log(2) + beta * math.log(math.pi) + gammas

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density by area, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        # 1 + mu z without cancellation opposite of mu, where it vanishes.
        distance = 0.5 * (self.loc + value).square().sum(-1)
        tiny = torch.finfo(value.dtype).tiny
        log_distance = distance.clamp(min=tiny).log()
        log_normalizer = self._log_normalizer()
        return (self.concentration.double() * log_distance.double() - log_normalizer).to(self.loc)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws differentiably."""
        shape = self._extended_shape(sample_shape)
        alpha, beta = self._alpha_beta
        # Both shares, because one minus a share near one loses its digits.
        parameters = torch.stack([alpha, torch.full_like(alpha, beta)], -1)
        shares = torch.distributions.Dirichlet(
            parameters.expand(*shape[:-1], 2), validate_args=False
        ).rsample()
        along = (shares[..., 0] - shares[..., 1]).to(self.loc).unsqueeze(-1)
        across = 2 * (shares[..., 0] * shares[..., 1]).clamp(min=1e-30).sqrt()
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        # Unlike a reflection that maps an axis to the mean, a projection is smooth for all means.
        tangent = _normalize(noise - (noise * self.loc).sum(-1, keepdim=True) * self.loc)
        return _normalize(along * self.loc + across.to(self.loc).unsqueeze(-1) * tangent)


class UniformSphere(TorchDistribution):
    r"""The uniform distribution on the unit sphere of :math:`\mathbb{R}^d`.

    .. math:: p(z) = \frac{\Gamma(d / 2)}{2 \pi^{d / 2}}

    Arguments:
        zero: Zeros of shape ``(*batch, d)``, with d of at least 2, which give shape, precision and
            device.

    Example:
        >>> UniformSphere(torch.zeros(3)).log_prob(torch.tensor([0.0, 0.0, 1.0]))
        tensor(-2.5310)
    """

    arg_constraints = {"zero": constraints.real_vector}  # noqa: RUF012
    support = constraints.sphere
    has_rsample = True

    def __init__(self, zero: Tensor, *, validate_args: bool | None = None) -> None:
        if zero.shape[-1:].numel() < 2:
            raise ValueError(
                f"Expected zero of at least 2 dimensions, got shape {tuple(zero.shape)}"
            )
        self.zero = zero
        super().__init__(zero.shape[:-1], zero.shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "UniformSphere":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(UniformSphere, _instance)
        batch_shape = torch.Size(batch_shape)
        new.zero = self.zero.expand(*batch_shape, *self.event_shape)
        super(UniformSphere, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Zero, the centre of the sphere."""
        return torch.zeros_like(self.zero)

    @property
    def variance(self) -> Tensor:
        """The variance of each element, 1 / d."""
        return torch.full_like(self.zero, 1 / self.event_shape[0])

    @property
    def log_area(self) -> float:
        """The log area of the sphere."""
        half = self.event_shape[0] / 2
        return math.log(2) + half * math.log(math.pi) - math.lgamma(half)

    def entropy(self) -> Tensor:
        """Returns the log area, in nats."""
        return torch.full_like(self.zero[..., 0], self.log_area)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density by area, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return torch.zeros_like((self.zero + value)[..., 0]) - self.log_area

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws directions."""
        shape = self._extended_shape(sample_shape)
        return _normalize(torch.randn(shape, dtype=self.zero.dtype, device=self.zero.device))


def _normalize(value: Tensor) -> Tensor:
    return value / value.norm(dim=-1, keepdim=True)
