"""A categorical distribution over equidistant levels in the unit interval."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

from pyro_vae.distributions.grid import Grid

__all__ = ["Levels"]


class Levels(TorchDistribution):
    r"""A categorical distribution over :math:`L` equidistant values of :math:`[0, 1]`.

    .. math:: P(x = l / (L - 1)) = \mathrm{softmax}(\mathrm{logits})_l

    A categorical distribution over grey levels, on the scale of encoders and of the other image
    likelihoods.

    Arguments:
        logits: Unnormalized log probabilities, of shape ``(*batch, L)``.

    Example:
        >>> import torch
        >>> Levels(torch.zeros(256)).log_prob(torch.tensor(17 / 255))
        tensor(-5.5452)
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    has_rsample = False

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits - logits.logsumexp(-1, keepdim=True)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def levels(self) -> int:
        """The number of levels."""
        return self.logits.shape[-1]

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels themselves."""
        return Grid(self.levels)

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> "Levels":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(Levels, _instance)
        new.logits = self.logits.expand(*batch_shape, self.levels)
        super(Levels, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The mean level."""
        grid = torch.linspace(0, 1, self.levels, dtype=self.logits.dtype, device=self.logits.device)
        return self.logits.exp() @ grid

    @property
    def variance(self) -> Tensor:
        """The variance of the level."""
        grid = torch.linspace(0, 1, self.levels, dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits.exp() * (grid - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        index = (value * (self.levels - 1)).round().long().unsqueeze(-1)
        shape = torch.broadcast_shapes(index.shape[:-1], self.logits.shape[:-1])
        logits = self.logits.expand(*shape, self.levels)
        return logits.gather(-1, index.expand(*shape, 1)).squeeze(-1)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws levels."""
        with torch.no_grad():
            sample_shape = torch.Size(sample_shape)
            shape = self._extended_shape(sample_shape)
            probs = self.logits.exp().reshape(-1, self.levels)
            draws = torch.multinomial(probs, torch.Size(sample_shape).numel(), replacement=True).T
            return draws.reshape(shape).to(self.logits.dtype) / (self.levels - 1)
