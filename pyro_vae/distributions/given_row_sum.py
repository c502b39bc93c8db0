"""Counts whose means are shares of the row's own sum."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

from pyro_vae.distributions.negative_binomial import NegativeBinomial
from pyro_vae.distributions.poisson import Poisson
from pyro_vae.distributions.zero_inflated import ZeroInflated

__all__ = ["GivenRowSum"]


class GivenRowSum(TorchDistribution):
    r"""Independent counts with means in proportion to a size factor, which is the row's sum.

    .. math:: \log p(x \mid s), \qquad s = \sum_i x_i

    :meth:`log_prob` scores each row with its own sum as size factor. This is a density of counts at
    a fixed size factor, not a normalized density over rows of all sums, because the factor is
    computed from the row. Draws and moments use the size factor ``reference``.

    Arguments:
        unit: The distribution at size factor 1: Poisson, negative binomial or a zero-inflated one,
            with all event dimensions independent.
        reference: The size factor of draws, of shape ``()``.

    Example:
        >>> unit = Poisson(torch.tensor([0.25, 0.75])).to_event(1)
        >>> d = GivenRowSum(unit, torch.tensor(8.0))
        >>> d.mean, d.log_prob(torch.tensor([1.0, 3.0])) == d.at_size(
        ...     torch.tensor(4.0)
        ... ).log_prob(torch.tensor([1.0, 3.0]))
        (tensor([2., 6.]), tensor(True))
    """

    arg_constraints = {"reference": constraints.positive}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self, unit: TorchDistribution, reference: Tensor, *, validate_args: bool | None = None
    ) -> None:
        if not isinstance(unit, dist.Independent) or unit.batch_shape + unit.event_shape != (
            unit.base_dist.batch_shape
        ):
            raise ValueError(f"Expected unit to be independent counts, .to_event(n), got {unit}")
        self.unit = unit
        self.reference = reference
        super().__init__(unit.batch_shape, unit.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Non-negative integers."""
        return constraints.independent(constraints.nonnegative_integer, len(self.event_shape))

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "GivenRowSum":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(GivenRowSum, _instance)
        new.unit = self.unit.expand(torch.Size(batch_shape))
        new.reference = self.reference
        super(GivenRowSum, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def at_size(self, size: Tensor) -> TorchDistribution:
        """Returns the distribution at a size factor that broadcasts with the batch shape."""
        # A row of zeros has mean zero, whose logarithm has no finite gradient.
        return _scale_mean(self.unit, size.clamp(min=1e-8))

    @property
    def mean(self) -> Tensor:
        """The mean at the reference size."""
        return self.at_size(self.reference).mean

    @property
    def variance(self) -> Tensor:
        """The variance at the reference size."""
        return self.at_size(self.reference).variance

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability at the size factor of each value, in nats."""
        size = value.flatten(value.dim() - len(self.event_shape)).sum(-1)
        return self.at_size(size).log_prob(value)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws counts at the reference size."""
        return self.at_size(self.reference).sample(torch.Size(sample_shape))


def _scale_mean(d: Any, size: Tensor) -> Any:
    """Returns a distribution of counts with its mean multiplied by a size factor."""
    if isinstance(d, dist.Independent):
        ndims = d.reinterpreted_batch_ndims
        size = size.reshape(*size.shape, *(1 for _ in range(ndims)))
        return _scale_mean(d.base_dist, size).to_event(ndims)
    if isinstance(d, ZeroInflated):
        return ZeroInflated(_scale_mean(d.base_dist, size), d.gate_logits, validate_args=False)
    if isinstance(d, NegativeBinomial):
        return NegativeBinomial(d.mean * size, d.inverse_dispersion, validate_args=d._validate_args)
    if isinstance(d, Poisson):
        return Poisson(d.rate * size, validate_args=d._validate_args)
    raise ValueError(f"Expected unit to be Poisson, NegativeBinomial or ZeroInflated, got {d}")
