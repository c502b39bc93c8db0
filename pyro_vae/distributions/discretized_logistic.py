"""A logistic distribution, or a mixture, rounded to equidistant levels in the unit interval."""

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.types import _size

from pyro_vae.distributions.grid import Grid
from pyro_vae.validation import check_size

__all__ = ["DiscretizedLogistic"]

_MAX_CELLS = 2**20
"""The number of elements times levels that the moments hold in memory at once."""


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic distribution, or a mixture, rounded to :math:`L` levels of :math:`[0, 1]`.

    .. math::
        P(x = l / (L - 1)) = \sum_k \pi_k \left[ F_k(x + h) - F_k(x - h) \right],
        \qquad h = \frac{1}{2 (L - 1)}

    :math:`F_k` is the logistic distribution function of location :math:`\mu_k` and scale
    :math:`s_k`. The first level takes the mass below, and the last the mass above, so that the
    probabilities sum to one. Implementations that add a constant to the difference are wrong in the
    tails; this class uses logarithms throughout, and is exact to rounding.

    References:
        | Improved variational inference with inverse autoregressive flow (Kingma et al., 2016),
          https://arxiv.org/abs/1606.04934
        | PixelCNN++: improving the PixelCNN with discretized logistic mixture likelihood and other
          modifications (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Arguments:
        loc: The location :math:`\mu`, of any shape; of a mixture, ``(*batch, K)``.
        scale: The scale :math:`s`, positive, of a shape that broadcasts with ``loc``.
        levels: The number of levels :math:`L`.
        logits: Unnormalized log weights of a mixture, of a shape that broadcasts with ``loc``.

    Example:
        >>> import torch
        >>> d = DiscretizedLogistic(torch.tensor(0.5), torch.tensor(0.1), 3)
        >>> d.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
        tensor([0.0759, 0.8483, 0.0759])
    """

    has_rsample = False

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        levels: int = 256,
        logits: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.levels = check_size("levels", levels, least=2)
        self.logits = None if logits is None else logits.log_softmax(-1)
        shape = torch.broadcast_shapes(loc.shape, scale.shape)
        if self.logits is not None:
            shape = torch.broadcast_shapes(shape, self.logits.shape)
            self.logits = self.logits.expand(shape)
        self.loc, self.scale = loc.expand(shape), scale.expand(shape)
        batch_shape = shape if self.logits is None else shape[:-1]
        super().__init__(batch_shape, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """The constraints of the parameters; of the weights only in a mixture."""
        result = {"loc": constraints.real, "scale": constraints.positive}
        return result if self.logits is None else {**result, "logits": constraints.real_vector}

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels themselves."""
        return Grid(self.levels)

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "DiscretizedLogistic":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(DiscretizedLogistic, _instance)
        shape = torch.Size(batch_shape) + self.loc.shape[len(self.batch_shape) :]
        new.levels = self.levels
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        new.logits = None if self.logits is None else self.logits.expand(shape)
        super(DiscretizedLogistic, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        r"""The mean level, :math:`\sum_j P(l \ge j) / (L - 1)`."""
        total = torch.zeros((), dtype=self.loc.dtype, device=self.loc.device)
        for (above,) in self._split_tails(-1):
            total = total + above.sum(-1)
        return total / (self.levels - 1)

    @property
    def variance(self) -> Tensor:
        """The variance of the level, a sum of positive terms."""
        total = before = torch.zeros((), dtype=self.loc.dtype, device=self.loc.device)
        for below, above in self._split_tails(1, -1):
            # The covariance of [l >= i] and [l >= j], i <= j, is P(l < i) P(l >= j).
            sums = before.unsqueeze(-1) + below.cumsum(-1)
            total = total + (above * (2 * sums - below)).sum(-1)
            before = sums[..., -1]
        return total / (self.levels - 1) ** 2

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        level = (value * (self.levels - 1)).round()
        if self.logits is None:
            return self._score(level)
        return (self.logits + self._score(level.unsqueeze(-1))).logsumexp(-1)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws levels."""
        with torch.no_grad():
            sample_shape = torch.Size(sample_shape)
            shape = self._extended_shape(sample_shape)
            loc, scale = self.loc, self.scale
            if self.logits is not None:
                index = dist.Categorical(logits=self.logits).sample(sample_shape).unsqueeze(-1)
                loc, scale = (
                    values.expand(*shape, values.shape[-1]).gather(-1, index).squeeze(-1)
                    for values in (loc, scale)
                )
            # A uniform number of zero gives the first level.
            uniform = torch.rand(shape, dtype=loc.dtype, device=loc.device)
            draw = loc + scale * (uniform.log() - torch.log1p(-uniform))
            last = self.levels - 1
            return (draw * last).round().clamp(0, last) / last

    def _score(self, level: Tensor) -> Tensor:
        """Returns the log probability of levels 0, 1, ... for each component."""
        # In units of a level, the boundaries l +- 1/2 are exact, and are the same for neighbours.
        loc, scale = self.loc * (self.levels - 1), self.scale * (self.levels - 1)
        first, last = level <= 0, level >= self.levels - 1
        below = logsigmoid((level + 0.5 - loc) / scale)
        above = logsigmoid((loc - (level - 0.5)) / scale)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) without cancellation.
        inner = (-torch.expm1(-1 / scale)).log()
        return (
            torch.where(last, 0.0, below)
            + torch.where(first, 0.0, above)
            + torch.where(first | last, 0.0, inner)
        )

    def _split_tails(self, *signs: int) -> Iterator[list[Tensor]]:
        """Yields the masses below (1) or above (-1) the boundaries of levels, few at a time."""
        last = self.levels - 1
        loc, scale = (self.loc * last).unsqueeze(-1), (self.scale * last).unsqueeze(-1)
        boundaries = torch.arange(last, dtype=loc.dtype, device=loc.device) + 0.5
        for part in boundaries.split(max(1, _MAX_CELLS // max(1, loc.numel()))):
            distance = (part - loc) / scale
            masses = [torch.sigmoid(sign * distance) for sign in signs]
            if self.logits is not None:
                weights = self.logits.exp().unsqueeze(-1)
                masses = [(weights * mass).sum(-2) for mass in masses]
            yield masses
