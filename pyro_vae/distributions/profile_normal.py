"""A normal distribution whose scale is the best for the values that it scores."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import MaskedDistribution, TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

__all__ = ["ProfileNormal"]


class ProfileNormal(TorchDistribution):
    r"""A normal with the scale that maximizes the likelihood of the values given to ``log_prob``.

    .. math:: \sigma^{*2} = \max(\mathrm{floor}^2, \mathrm{mean}\,(x - \mu)^2)

    The mean runs over everything scored in one call, so that this is a training objective, not a
    density: at evaluation a fixed scale must take its place. Where the floor does not bind, the
    gradient is that of :math:`\tfrac{D}{2} \log \mathrm{MSE}`.

    References:
        | Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis and
          Levine, 2021), https://arxiv.org/abs/2006.13202

    Arguments:
        loc: The mean, of any shape.
        scale: The scale that ``sample`` uses, a scalar.
        floor: The least scale.
        observe: Called with each :math:`\sigma^{*2}`, detached, that is found.
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
        validate_args: bool | None = None,
    ) -> None:
        self.loc = loc
        self.scale = scale
        self.floor = floor
        self.observe = observe
        self.weight: Tensor | None = None
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "ProfileNormal":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(ProfileNormal, _instance)
        new.loc = self.loc.expand(batch_shape)
        new.scale, new.floor, new.observe = self.scale, self.floor, self.observe
        new.weight = self.weight
        super(ProfileNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def mask(self, mask: Tensor | bool) -> MaskedDistribution:
        """Masks the log density, and keeps what is masked out of the scale too."""
        new = self.expand(self.batch_shape)
        new.weight = torch.as_tensor(mask, device=self.loc.device).to(self.loc.dtype)
        return MaskedDistribution(new, torch.as_tensor(mask, device=self.loc.device))

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance that ``sample`` uses."""
        return self.scale.expand(self.loc.shape) ** 2

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density under the best scale for ``value``, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        error = (value - self.loc) ** 2
        if self.weight is None:
            best = error.mean()
        else:
            weight = self.weight.expand(error.shape)
            best = (error * weight).sum() / weight.sum().clamp(min=1)
        best = best.clamp(min=self.floor**2)
        if self.observe is not None:
            self.observe(best.detach())
        return -0.5 * (error / best + torch.log(2 * torch.pi * best))

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws with the fixed scale."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise
