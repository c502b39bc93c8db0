"""Relaxed one-hot variables: the concrete or Gumbel-softmax distribution."""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

from pyro_vae.distributions.blocks import repeat_support
from pyro_vae.distributions.draws import attach_log, get_log
from pyro_vae.distributions.moments import estimate_moments, uniform_points
from pyro_vae.distributions.one_hot import check_logits

__all__ = ["RelaxedOneHot"]


class RelaxedOneHot(TorchDistribution):
    r"""Independent concrete variables, each as a block of one vector.

    .. math::
        z = \mathrm{softmax}((h + g) / \tau), \quad g \sim \mathrm{Gumbel}(0, 1), \qquad
        p(z) = (C - 1)!\; \tau^{C - 1}
        \prod_c \frac{\pi_c z_c^{-\tau - 1}}{\sum_b \pi_b z_b^{-\tau}}

    Each block is in a simplex. As :math:`\tau` goes to zero it becomes a one-hot vector. This
    density has no KL to the probabilities of one-hot vectors. Elements of a draw that underflow are
    the smallest normal number; the draw remembers their logarithms, by which the distributions of
    this package score it. Mean and variance are estimated from 512 quasi-random points.

    References:
        | The concrete distribution (Maddison, Mnih and Teh, 2016),
          https://arxiv.org/abs/1611.00712
        | Categorical reparameterization with Gumbel-softmax (Jang, Gu and Poole, 2016),
          https://arxiv.org/abs/1611.01144

    Arguments:
        temperature: :math:`\tau`, a scalar.
        logits: Unnormalized log probabilities, of shape ``(*batch, variables, categories)``.

    Raises:
        ValueError: If the temperature is not a scalar, or the logits have another shape.

    Example:
        >>> RelaxedOneHot(torch.tensor(0.5), torch.zeros(2, 3)).rsample().sum().round(decimals=3)
        tensor(2.)
    """

    arg_constraints = {  # noqa: RUF012
        "temperature": constraints.positive,
        "logits": constraints.independent(constraints.real, 2),
    }
    has_rsample = True

    def __init__(
        self, temperature: Tensor | float, logits: Tensor, *, validate_args: bool | None = None
    ) -> None:
        check_logits(logits)
        temperature = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device)
        if temperature.dim():
            raise ValueError(
                f"Expected temperature to be a scalar, got shape {tuple(temperature.shape)}"
            )
        self.temperature = temperature
        self.logits = logits.log_softmax(-1)
        event = torch.Size((logits.shape[-2] * logits.shape[-1],))
        super().__init__(logits.shape[:-2], event, validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: TorchDistribution | None = None
    ) -> "RelaxedOneHot":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(RelaxedOneHot, _instance)
        batch_shape = torch.Size(batch_shape)
        new.temperature = self.temperature
        new.logits = self.logits.expand(*batch_shape, *self.logits.shape[-2:])
        super(RelaxedOneHot, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Blocks in simplices."""
        return repeat_support(constraints.simplex, self.logits.shape[-2])

    @property
    def probs(self) -> Tensor:
        """The probabilities of the largest elements, of the shape of the logits."""
        return self.logits.exp()

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
        shape = self.logits.shape[-2:]

        def transform(points: Tensor) -> Tensor:
            return self._relax(points.reshape(-1, *(1 for _ in self.batch_shape), *shape))

        return estimate_moments(transform, uniform_points(shape.numel(), self.logits))

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008
        """Draws differentiably."""
        shape = self._extended_shape(sample_shape)[:-1] + self.logits.shape[-2:]
        points = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        limits = torch.finfo(points.dtype)
        return self._relax(points.clamp(limits.tiny, 1 - limits.eps))

    def _relax(self, points: Tensor) -> Tensor:
        """Maps uniform noise to values."""
        gumbels = -torch.log(-torch.log(points))
        log_values = ((self.logits + gumbels) / self.temperature).log_softmax(-1)
        values = log_values.exp().clamp(min=torch.finfo(log_values.dtype).tiny)
        return attach_log(values.flatten(-2), log_values.flatten(-2))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density by the first coordinates of each simplex, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_value = get_log(value).unflatten(-1, self.logits.shape[-2:])
        categories = self.logits.shape[-1]
        score = self.logits - self.temperature * log_value
        terms = score - score.logsumexp(-1, keepdim=True) - log_value
        constant = math.lgamma(categories) + (categories - 1) * self.temperature.log()
        return (terms.sum(-1) + constant).sum(-1)
