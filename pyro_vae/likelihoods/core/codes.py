"""Likelihoods of codes 0, 1, ...: columns of categories and of ordered levels."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.conditional import Likelihood
from pyro_vae.likelihoods.core.em import count_levels
from pyro_vae.likelihoods.core.positive import format_part
from pyro_vae.validation import check_shape, check_size

__all__ = ["BinaryCodes", "CategoricalCodes", "OrdinalCodes"]

_MIN_STEP = 1e-3
"""The least distance of two thresholds, which keeps each level possible."""


class _Codes(Likelihood):
    """The base of likelihoods of codes.

    Arguments:
        event_shape: The shape of one datum, ``(n,)``.
        levels: The number of levels.
    """

    measure = "mass"

    started: Tensor

    def __init__(self, event_shape: Sequence[int], levels: int) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.levels = check_size("levels", levels, least=2)
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets the frequencies of levels from training rows, once; NaN marks missing values."""
        if self.started:
            return
        level = torch.arange(self.levels, dtype=x.dtype, device=x.device)
        # Half a count keeps the logarithm of a level without rows finite.
        counts = (x.unsqueeze(-1) == level).double().sum(0) + 0.5
        self.start_from(counts / counts.sum(-1, keepdim=True))
        self.started.fill_(True)

    def start_from(self, frequencies: Tensor) -> None:
        """Starts from the frequencies of levels, ``(n, levels)``."""
        raise NotImplementedError

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> dist.TorchDistribution:
        """Computes the M step, shrunk towards the frequencies of all rows.

        The components of ordered levels are free categorical distributions.
        """
        counts, frequencies = count_levels(responsibilities, x, self.levels)
        overall = (frequencies + 1) / (frequencies.sum(-1, keepdim=True) + self.levels)
        return dist.Categorical(probs=counts + smoothing * overall)

    __repr__ = format_part

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"event_shape={tuple(self.event_shape)}, levels={self.levels}"


class BinaryCodes(_Codes):
    r"""A Bernoulli likelihood of codes 0 and 1.

    .. math:: P(x_i = 1 \mid z) = \sigma(h_i(z) + \operatorname{logit} f_i)

    The frequencies :math:`f` are those of the training rows.

    Arguments:
        event_shape: The shape of one datum, ``(n,)``.
    """

    logit: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape, 2)
        self.feature_shape = torch.Size((1, *self.event_shape))
        self.register_buffer("logit", torch.zeros(self.event_shape))

    def start_from(self, frequencies: Tensor) -> None:
        """Sets the frequencies of ones."""
        self.logit.copy_(frequencies[..., 1].logit())

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, 1, n)``."""
        return dist.Bernoulli(logits=features.squeeze(-2) + self.logit).to_event(1)


class CategoricalCodes(_Codes):
    r"""A categorical likelihood of codes.

    .. math:: \log p(x \mid z) = \sum_i \log \mathrm{softmax}(h_i(z) + \log f_i)_{x_i}

    The frequencies :math:`f` are those of the training rows.

    Arguments:
        event_shape: The shape of one datum, ``(n,)``.
        levels: The number of levels.
    """

    log_frequency: Tensor

    def __init__(self, event_shape: Sequence[int], *, levels: int) -> None:
        super().__init__(event_shape, levels)
        self.feature_shape = torch.Size((self.levels, *self.event_shape))
        self.register_buffer("log_frequency", torch.zeros(*self.event_shape, self.levels))

    def start_from(self, frequencies: Tensor) -> None:
        """Sets the frequencies of levels."""
        self.log_frequency.copy_(frequencies.log())

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, levels, n)``."""
        return dist.Categorical(logits=features.mT + self.log_frequency).to_event(1)


class OrdinalCodes(_Codes):
    r"""A likelihood of ordered levels by cumulative logits, the proportional odds model.

    .. math:: P(x_i \ge k \mid z) = \sigma(h_i(z) - \tau_{ik}), \qquad \tau_{i1} < \tau_{i2} < \dots

    The thresholds :math:`\tau` are learned. They start where :math:`h = 0` gives the frequencies
    of the training rows.

    References:
        | Regression models for ordinal data (McCullagh, 1980),
          https://doi.org/10.1111/j.2517-6161.1980.tb01109.x

    Arguments:
        event_shape: The shape of one datum, ``(n,)``.
        levels: The number of levels.
    """

    def __init__(self, event_shape: Sequence[int], *, levels: int) -> None:
        super().__init__(event_shape, levels)
        self.feature_shape = torch.Size((1, *self.event_shape))
        self.first_threshold = nn.Parameter(torch.zeros(self.event_shape))
        self.raw_steps = nn.Parameter(torch.zeros(*self.event_shape, self.levels - 2))

    def start_from(self, frequencies: Tensor) -> None:
        """Sets the thresholds from the frequencies of levels."""
        above = frequencies.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        thresholds = -above.logit()
        steps = (thresholds.diff(dim=-1) - _MIN_STEP).clamp(min=_MIN_STEP)
        self.first_threshold.copy_(thresholds[..., 0])
        # The inverse of softplus.
        self.raw_steps.copy_(steps + (-torch.expm1(-steps)).log())

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, 1, n)``."""
        steps = softplus(self.raw_steps) + _MIN_STEP
        thresholds = (
            self.first_threshold.unsqueeze(-1)
            + torch.cat([torch.zeros_like(steps[..., :1]), steps.cumsum(-1)], -1)
            if self.levels > 2
            else self.first_threshold.unsqueeze(-1)
        )
        margin = features.squeeze(-2).unsqueeze(-1) - thresholds
        above, below = logsigmoid(margin), logsigmoid(-margin)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)) without cancellation.
        inner = above[..., :-1] + below[..., 1:] + (-torch.expm1(-steps)).log()
        logits = torch.cat([below[..., :1], inner, above[..., -1:]], -1)
        return dist.Categorical(logits=logits).to_event(1)
