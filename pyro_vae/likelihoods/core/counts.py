"""The base of likelihoods for counts: their means and size factors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.conditional import Likelihood
from pyro_vae.distributions import GivenRowSum
from pyro_vae.likelihoods.core.em import count_columns, sum_rows
from pyro_vae.likelihoods.core.positive import MAX_LOG, bound_softly, format_part
from pyro_vae.validation import check_choice, check_shape

__all__ = ["CountLikelihood"]

SIZE_FACTORS = (None, "row_sum", "covariate")


class CountLikelihood(Likelihood):
    r"""A likelihood of independent counts with mean :math:`\mu_i(z)`.

    Without a size factor, :math:`\mu_i = m_i e^{h_i}`, where :math:`h` are features of the decoder
    and :math:`m_i` is the mean count of element :math:`i` in the training rows. With a size factor
    :math:`s`, :math:`\mu_i = s \, m_i e^{h_i} / \sum_j m_j e^{h_j}`. Features are softly bounded to
    :math:`|h| < 20`.

    Arguments:
        event_shape: The shape of one datum.
        size_factor: None, ``"row_sum"`` or ``"covariate"``.
        num_features: The number of features for each element.
    """

    measure = "mass"
    is_count = True

    log_mean: Tensor
    reference_size: Tensor
    started: Tensor

    def __init__(
        self, event_shape: Sequence[int], size_factor: str | None, num_features: int = 1
    ) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.size_factor = check_choice("size_factor", size_factor, SIZE_FACTORS)
        self.uses_size_factor = self.size_factor == "covariate"
        self.condition = "row-sum size factor" if self.size_factor == "row_sum" else None
        self.feature_shape = torch.Size((num_features, *self.event_shape))
        self.register_buffer("log_mean", torch.zeros(self.event_shape))
        self.register_buffer("reference_size", torch.tensor(float(self.event_shape.numel())))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets the mean counts, and the size of draws to the median sum of rows, once.

        Arguments:
            x: Training rows, with NaN for missing values.
        """
        if self.started:
            return
        rows = x.double().flatten(1)
        missing = rows.isnan()
        rows = rows[~missing.all(1)]
        if self.condition is not None and bool(rows.isnan().any()):
            raise ValueError(
                f"Expected complete rows, whose sums are known, for size_factor="
                f"{self.size_factor!r}, got {int(rows.isnan().any(1).sum())} with missing values"
            )
        # Half a count keeps the logarithm finite for elements without any count.
        mean = (rows.nansum(0) + 0.5) / (rows.isfinite().sum(0) + 0.5)
        self.log_mean.copy_(mean.log().reshape(self.event_shape))
        if len(rows):
            self.reference_size.copy_(rows.nansum(1).median().clamp(min=1.0))
        self.started.fill_(True)

    def compute_mean(self, features: Tensor, size: Tensor | None) -> Tensor:
        """Returns the mean counts, at size factor 1 if it is the row sum."""
        event_dim = len(self.event_shape)
        log_mean = bound_softly(features.select(-1 - event_dim, 0), MAX_LOG) + self.log_mean
        if self.size_factor is None:
            return log_mean.exp()
        mean = log_mean.flatten(-event_dim).softmax(-1).unflatten(-1, self.event_shape)
        if size is None:
            return mean
        return mean * size.reshape(*size.shape, *(1 for _ in range(event_dim)))

    def average_components(self, responsibilities: Tensor, x: Tensor, smoothing: float) -> Tensor:
        """Returns the mean counts of the components of a mixture, shrunk towards those of all."""
        size, total = sum_rows(responsibilities, x)
        # A mean of zero would give other rows no density.
        overall = (x.nansum(0) + 0.5) / (count_columns(x) + 0.5)
        return (total + smoothing * overall) / (size + smoothing)

    def to_rows(self, elements: Any) -> Any:
        """Returns the distribution of rows, from that of their elements."""
        rows = elements.to_event(len(self.event_shape))
        return GivenRowSum(rows, self.reference_size) if self.size_factor == "row_sum" else rows

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values are non-negative integers."""
        valid = (x >= 0) & (x == x.floor()) & x.isfinite()
        if not bool(valid.all()):
            raise ValueError(
                f"Expected x to be counts (non-negative integers) for a "
                f"{type(self).__name__} likelihood, got {x[~valid][0].item():.4g}: a table of "
                f"counts is not standardized (data.standardize=false)"
            )

    __repr__ = format_part

    def extra_repr(self) -> str:
        """Shows the shape and the size factor."""
        shown = "" if self.size_factor is None else f", size_factor={self.size_factor!r}"
        return f"event_shape={tuple(self.event_shape)}{shown}"
