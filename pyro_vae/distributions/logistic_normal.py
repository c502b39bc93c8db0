"""The logistic-normal distribution on the simplex."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import Transform
from torch.types import _size

from pyro_vae.distributions.draws import attach_log, get_log
from pyro_vae.distributions.moments import estimate_moments, normal_points

__all__ = ["AdditiveSoftmax", "LogisticNormal"]


class AdditiveSoftmax(Transform):
    r"""The softmax of a vector and a final zero, the inverse of log ratios to the last element.

    .. math::
        z = \mathrm{softmax}(u_1, \dots, u_{K - 1}, 0), \qquad u_k = \log z_k - \log z_K, \qquad
        \log \left| \frac{\partial z}{\partial u} \right| = \sum_{k=1}^K \log z_k

    PyTorch's stick-breaking transform instead subtracts a cumulative sum from one, which loses the
    digits of small elements.

    Example:
        >>> AdditiveSoftmax()(torch.zeros(2))
        tensor([0.3333, 0.3333, 0.3333])
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AdditiveSoftmax)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        log_z = torch.cat([x, torch.zeros_like(x[..., :1])], -1).log_softmax(-1)
        return attach_log(log_z.exp().clamp(min=torch.finfo(log_z.dtype).tiny), log_z)

    def _inverse(self, y: Tensor) -> Tensor:
        log_y = get_log(y)
        return log_y[..., :-1] - log_y[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the sum of the log elements."""
        return get_log(y).sum(-1)

    def forward_shape(self, shape: _size) -> torch.Size:
        """Returns the shape of values, which have one more element."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: _size) -> torch.Size:
        """Returns the shape of log ratios."""
        return torch.Size((*shape[:-1], shape[-1] - 1))


class LogisticNormal(dist.TransformedDistribution):
    r"""The distribution of the softmax of independent normals and a final zero.

    .. math:: z = \mathrm{softmax}(u, 0), \qquad u_k \sim \mathcal{N}(\mu_k, \sigma_k^2)

    The density is by the first :math:`K - 1` elements. The KL to another logistic-normal is that of
    the normals. Mean and variance are estimated from 512 quasi-random points.

    References:
        | Logistic-normal distributions: some properties and uses (Aitchison and Shen, 1980),
          https://doi.org/10.1093/biomet/67.2.261

    Arguments:
        loc: :math:`\mu`, of shape ``(*batch, K - 1)``.
        scale: :math:`\sigma`, of this shape.

    Example:
        >>> LogisticNormal(torch.zeros(2), torch.ones(2)).rsample().sum().round(decimals=3)
        tensor(1.)
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        if not loc.dim() or not loc.shape[-1]:
            raise ValueError(f"Expected loc of shape (*batch, K - 1), got {tuple(loc.shape)}")
        base = dist.Normal(loc, scale, validate_args=validate_args).to_event(1)
        super().__init__(base, [AdditiveSoftmax()], validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: Any | None = None) -> "LogisticNormal":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(LogisticNormal, _instance)
        return super().expand(batch_shape, _instance=new)

    @property
    def loc(self) -> Tensor:
        """The means of the log ratios."""
        return self.base_dist.base_dist.loc

    @property
    def scale(self) -> Tensor:
        """The standard deviations of the log ratios."""
        return self.base_dist.base_dist.scale

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
        dim = self.loc.shape[-1]

        def transform(noise: Tensor) -> Tensor:
            noise = noise.reshape(-1, *(1 for _ in self.batch_shape), dim)
            return self.transforms[0](self.loc + self.scale * noise)

        return estimate_moments(transform, normal_points(dim, self.loc))
