"""One or several one-hot variables as one vector: exact, and straight-through."""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

from pyro_vae.distributions.blocks import repeat_support

__all__ = ["OneHot", "StraightThroughOneHot", "check_logits"]

_MAX_CODES = 2**20
"""The most codes that are enumerated."""


class OneHot(TorchDistribution):
    r"""Independent categorical variables, each as a one-hot block of one vector.

    .. math:: P(z) = \prod_v \prod_c \pi_{vc}^{z_{vc}}, \qquad \pi_v = \mathrm{softmax}(h_v)

    Its :meth:`enumerate_support` returns all codes, for enumeration by Pyro.

    Arguments:
        logits: Unnormalized log probabilities, of shape ``(*batch, variables, categories)``.

    Raises:
        ValueError: If the logits have another shape.

    Example:
        >>> OneHot(torch.zeros(2, 3)).log_prob(torch.tensor([1.0, 0, 0, 0, 0, 1.0]))
        tensor(-2.1972)
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 2)}  # noqa: RUF012
    has_rsample = False
    has_enumerate_support = True

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        check_logits(logits)
        # A finite bound, because the product of zero and minus infinity is not a number.
        self.logits = logits.log_softmax(-1).clamp(min=torch.finfo(logits.dtype).min)
        event = torch.Size((logits.shape[-2] * logits.shape[-1],))
        super().__init__(logits.shape[:-2], event, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> "OneHot":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(OneHot, _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(*batch_shape, *self.logits.shape[-2:])
        super(OneHot, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """One-hot blocks."""
        return repeat_support(constraints.one_hot, self.logits.shape[-2])

    @property
    def probs(self) -> Tensor:
        """The probabilities, of the shape of the logits."""
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        """The probabilities, as one vector."""
        return self.probs.flatten(-2)

    @property
    def mode(self) -> Tensor:
        """The most probable code."""
        return _encode(self.logits.argmax(-1), self.logits)

    @property
    def variance(self) -> Tensor:
        """The variance of each element."""
        return self.mean * (1 - self.mean)

    def entropy(self) -> Tensor:
        """Returns the entropy, in nats."""
        return -(self.probs * self.logits).sum((-2, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability, in nats.

        It is linear in the value. A straight-through gradient of a linear function is exact.
        """
        if self._validate_args:
            self._validate_sample(value)
        blocks = value.unflatten(-1, self.logits.shape[-2:])
        return (blocks * self.logits).sum((-2, -1))

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws codes."""
        with torch.no_grad():
            count = torch.Size(sample_shape).numel()
            probs = self.probs.reshape(-1, self.logits.shape[-1])
            index = torch.multinomial(probs, count, replacement=True).T
            shape = self._extended_shape(sample_shape)[:-1] + self.logits.shape[-2:-1]
            return _encode(index.reshape(shape), self.logits)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Returns all codes, of shape ``(codes, *batch, dim)``, or with batches of size 1.

        Raises:
            ValueError: If there are more than a million.
        """
        variables, categories = self.logits.shape[-2:]
        if variables * math.log(categories) > math.log(_MAX_CODES):
            raise ValueError(
                f"Expected at most {_MAX_CODES:,} codes to enumerate, got {categories} to the "
                f"power {variables}"
            )
        axis = torch.arange(categories, device=self.logits.device)
        codes = torch.cartesian_prod(*[axis] * variables).reshape(-1, variables)
        values = _encode(codes, self.logits)
        values = values.reshape(-1, *(1 for _ in self.batch_shape), *self.event_shape)
        return values.expand(-1, *self.batch_shape, -1) if expand else values


class StraightThroughOneHot(OneHot):
    r"""One-hot variables whose draws have the gradients of their probabilities.

    .. math:: z = \mathrm{onehot}(c) + \pi - \mathrm{stop}(\pi), \qquad c \sim \pi

    Draws are exact and are scored by their probabilities. Their gradients are biased, except for
    functions that are linear in z, such as the KL to another :class:`OneHot` of one call.

    References:
        | Estimating or propagating gradients through stochastic neurons for conditional computation
          (Bengio, Léonard and Courville, 2013), https://arxiv.org/abs/1308.3432

    Arguments:
        logits: Unnormalized log probabilities, of shape ``(*batch, variables, categories)``.

    Example:
        >>> StraightThroughOneHot(torch.zeros(2, 3)).rsample().sum().round(decimals=3)
        tensor(2.)
    """

    has_rsample = True
    # Pyro would sum over codes without their probabilities, because draws have gradients.
    has_enumerate_support = False

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "StraightThroughOneHot":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(StraightThroughOneHot, _instance)
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws codes, with the gradients of their probabilities."""
        return self.sample(sample_shape) + (self.mean - self.mean.detach())


def check_logits(logits: Tensor) -> None:
    """Raises a ``ValueError`` unless logits have variables and categories."""
    if logits.dim() < 2 or 0 in logits.shape[-2:]:
        raise ValueError(
            f"Expected logits of shape (*batch, variables, categories), got {tuple(logits.shape)}"
        )


def _encode(index: Tensor, like: Tensor) -> Tensor:
    """Returns codes ``(*shape, variables)`` as vectors ``(*shape, variables * categories)``."""
    axis = torch.arange(like.shape[-1], device=like.device)
    return (index.unsqueeze(-1) == axis).to(like.dtype).flatten(-2)
