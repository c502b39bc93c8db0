"""A normal distribution whose scale is optimal for the scored values."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Independent, MaskedDistribution, TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

__all__ = ["ProfileNormal"]


class _Maskable:
    """A profile normal, or a wrapper that passes masks on to it."""

    def mask(self, mask: Tensor | bool) -> MaskedDistribution:
        """Masks the log density, and excludes hidden elements from the scale."""
        return _ProfileMasked(_counting(self, mask), mask)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """Reinterprets rightmost batch dimensions as event dimensions."""
        d: Any = super().to_event(reinterpreted_batch_ndims)  # type: ignore[misc]
        if type(d) is Independent:
            return _ProfileEvent(d.base_dist, d.reinterpreted_batch_ndims)
        return d


class ProfileNormal(_Maskable, TorchDistribution):
    r"""A normal with the scale that maximizes the likelihood of the argument of ``log_prob``.

    .. math:: \sigma^{*2} = \max(\mathrm{floor}^2, \mathrm{mean}\,(x - \mu)^2)

    The mean is over all observed elements of one call. This is therefore a training objective, not
    a density: use a fixed scale for evaluation. Above the floor, the gradient is that of
    :math:`\tfrac{D}{2} \log \mathrm{MSE}`.

    Elements hidden by :meth:`mask` or excluded by ``observed`` are not observed. Every other
    element has weight one, whatever the scale of its site. Without observed elements
    :math:`\sigma^*` is ``scale``.

    References:
        | Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis and
          Levine, 2021), https://arxiv.org/abs/2006.13202

    Arguments:
        loc: The mean, of any shape.
        scale: The scale that ``sample`` uses, a scalar.
        floor: The lower bound of the scale.
        observe: A callback for each :math:`\sigma^{*2}`, detached.
        observed: True for observed elements, broadcastable to ``loc``; ``None`` for all.
    """

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        *,
        floor: float = 1e-3,
        observe: Callable[[Tensor], None] | None = None,
        observed: Tensor | bool | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc = loc
        self.scale = scale
        self.floor = floor
        self.observe = observe
        self.observed = None if observed is None else self._as_mask(observed)
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "ProfileNormal":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(ProfileNormal, _instance)
        new.loc = self.loc.expand(batch_shape)
        new.scale, new.floor, new.observe = self.scale, self.floor, self.observe
        new.observed = self.observed
        super(ProfileNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def counting(self, mask: Tensor | bool) -> "ProfileNormal":
        """Returns the distribution whose scale excludes elements that ``mask`` hides."""
        new = self.expand(self.batch_shape)
        observed = self._as_mask(mask)
        new.observed = observed if self.observed is None else self.observed & observed
        return new

    def _as_mask(self, mask: Tensor | bool) -> Tensor:
        return torch.as_tensor(mask, device=self.loc.device).bool()

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance that ``sample`` uses."""
        return self.scale.expand(self.loc.shape) ** 2

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density under the optimal scale for ``value``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        error = (value - self.loc) ** 2
        variance = self._average_observed(error).clamp(min=self.floor**2)
        if self.observe is not None:
            self.observe(variance.detach())
        return -0.5 * (error / variance + torch.log(2 * torch.pi * variance))

    def _average_observed(self, error: Tensor) -> Tensor:
        if self.observed is None:
            return error.mean()
        error, observed = torch.broadcast_tensors(error, self.observed)
        count = observed.sum()
        # Hidden elements may be NaN, which a product with zero would not remove.
        total = torch.where(observed, error, 0.0).sum()
        return torch.where(count > 0, total / count.clamp(min=1), self.scale.to(error) ** 2)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws with the fixed scale."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise


class _ProfileMasked(_Maskable, MaskedDistribution):
    pass


class _ProfileEvent(_Maskable, Independent):  # type: ignore[override]
    pass


def _counting(d: Any, mask: Tensor | bool) -> Any:
    """Returns a wrapped profile normal whose scale excludes masked elements of its batch."""
    if isinstance(d, _ProfileMasked):
        return _ProfileMasked(_counting(d.base_dist, mask), d._mask)
    if isinstance(d, _ProfileEvent):
        ndims = d.reinterpreted_batch_ndims
        if isinstance(mask, Tensor):
            mask = mask[(..., *(None,) * ndims)]
        return _ProfileEvent(_counting(d.base_dist, mask), ndims)
    return d.counting(mask)
