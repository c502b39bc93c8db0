"""The multinomial distribution of counts given their sum."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

from pyro_vae.distributions.stirling import log_factorial_excess, poisson_deviance
from pyro_vae.validation import check_size, describe_value

__all__ = ["Multinomial"]


class Multinomial(TorchDistribution):
    r"""A multinomial distribution over counts, given their sum.

    .. math:: \log p(x \mid n) = \log n! - \sum_i \log x_i! + \sum_i x_i \log \pi_i,
        \qquad n = \sum_i x_i, \quad \pi = \mathrm{softmax}(\mathrm{logits})

    A value is scored given its own sum, so values of different sums need no common total. ``total``
    is the sum of draws. This class uses the saddle-point form, which stays accurate in single
    precision for large counts.

    Arguments:
        logits: Unnormalized log probabilities, of shape ``(*batch, *event)``.
        total: The sum of a draw, a number of shape ``()`` or ``batch``.
        event_dim: The number of event dimensions.

    Example:
        >>> Multinomial(torch.zeros(2), torch.tensor(3.0)).log_prob(torch.tensor([1.0, 1.0]))
        tensor(-0.6931)
    """

    arg_constraints = {  # noqa: RUF012
        "total": constraints.nonnegative_integer,
        "logits": constraints.real,
    }
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        total: Tensor,
        event_dim: int = 1,
        *,
        validate_args: bool | None = None,
    ) -> None:
        event_dim = check_size("event_dim", event_dim, least=1)
        if logits.dim() < event_dim:
            raise ValueError(
                f"Expected logits of {event_dim} dimensions or more, got shape "
                f"{tuple(logits.shape)}"
            )
        shape = logits.shape
        batch, event = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
        if not isinstance(total, Tensor) or total.shape not in ((), batch):
            raise ValueError(
                f"Expected total to be a tensor of shape () or {tuple(batch)}, got "
                f"{describe_value(total)}"
            )
        self._log_probs = logits.flatten(len(batch)).log_softmax(-1)
        self.total = total.expand(batch)
        super().__init__(batch, event, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Non-negative integers."""
        return constraints.independent(constraints.nonnegative_integer, len(self.event_shape))

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "Multinomial":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(Multinomial, _instance)
        batch_shape = torch.Size(batch_shape)
        new._log_probs = self._log_probs.expand(*batch_shape, self._log_probs.shape[-1])
        new.total = self.total.expand(batch_shape)
        super(Multinomial, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def at_size(self, total: Tensor) -> "Multinomial":
        """Returns the distribution whose draws have another sum, of shape ``batch``."""
        total = total.expand(self.batch_shape)
        return Multinomial(self.logits, total, len(self.event_shape), validate_args=False)

    @property
    def logits(self) -> Tensor:
        """The normalized log probabilities, of shape ``(*batch, *event)``."""
        return self._log_probs.unflatten(-1, self.event_shape)

    @property
    def probs(self) -> Tensor:
        """The probabilities of an event, which sum to one over all event dimensions."""
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        """The mean counts of draws."""
        return self._spread(self.total) * self.probs

    @property
    def variance(self) -> Tensor:
        """The variances of the counts of draws."""
        return self.mean * (1 - self.probs)

    def _spread(self, total: Tensor) -> Tensor:
        """Returns numbers of shape ``batch`` with trailing dimensions for the event."""
        return total.reshape(*total.shape, *(1 for _ in self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability given the sum of the value, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        counts = value.flatten(value.dim() - len(self.event_shape))
        total = counts.sum(-1)
        # Independent Poisson counts, given their sum, are multinomial.
        size = total.clamp(min=torch.finfo(counts.dtype).tiny).unsqueeze(-1)
        log_mean = size.log() + self._log_probs
        terms = poisson_deviance(counts, size * self._log_probs.exp(), log_mean)
        terms = terms + log_factorial_excess(counts)
        return log_factorial_excess(total) - terms.sum(-1)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws counts, one element after the other, each binomial given those before."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            probs = self._log_probs.double().exp()
            # The share of each element among those not yet drawn.
            rest = probs.flip(-1).cumsum(-1).flip(-1).clamp(min=torch.finfo(probs.dtype).tiny)
            shares = (probs / rest).clamp(0, 1).expand(*shape[: -len(self.event_shape)], -1)
            left = self.total.double().round().expand(shares.shape[:-1]).clone()
            counts = torch.empty_like(shares)
            for index in range(shares.shape[-1] - 1):
                counts[..., index] = torch.binomial(left, shares[..., index].contiguous())
                left -= counts[..., index]
            counts[..., -1] = left
            return counts.to(self._log_probs.dtype).reshape(shape)
