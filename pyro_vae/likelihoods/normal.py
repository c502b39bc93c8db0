"""The normal likelihood."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine import get_mask
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.distributions import ProfileNormal
from pyro_vae.likelihoods.core.em import average_columns, count_columns, sum_rows
from pyro_vae.likelihoods.core.support import check_finite_data
from pyro_vae.likelihoods.core.units import UnitLikelihood
from pyro_vae.validation import check_number, check_positive, describe_value

__all__ = ["Normal"]

_KINDS = ("shared", "element", "network", "optimal")


class Normal(UnitLikelihood):
    r"""A normal likelihood, for real data.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2)

    The scale :math:`\sigma` is

    - a number: fixed;
    - ``"shared"``: learned, one for all elements;
    - ``"element"``: learned, one for each element;
    - ``"network"``: an output of the decoder;
    - ``"optimal"``: in training, the closed-form optimum for each batch: the root mean square
      error (the sigma-VAE) of the observed elements; in evaluation mode, that of the training
      data, which :meth:`pyro_vae.VAE.calibrate` sets. Before that, it is a running average.
      The VAE's ``mask=``, ``pyro.poutine.mask`` around the likelihood, and ``mask`` of the
      distribution exclude elements; ``pyro.poutine.scale`` does not weight them.

    References:
        | Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis and
          Levine, 2021), https://arxiv.org/abs/2006.13202

    Arguments:
        event_shape: The shape of one datum.
        scale: As above.
        min_scale: The lower bound of the scale, without which the density of data on a manifold is
            unbounded.
        momentum: The weight of a batch in the running average of ``scale="optimal"``.
        standardize: Whether the decoder's outputs are in units of the training rows' mean and
            standard deviation, for data that are not standardized.

    Raises:
        ValueError: If ``scale`` is not one of these or does not fit ``standardize``, or a scale is
            not positive.

    Example:
        >>> Normal((2,), scale=1.0)(torch.zeros(1, 2)).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    measure = "density"

    variance: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        scale: float | str = "shared",
        min_scale: float = 1e-3,
        momentum: float = 0.1,
        standardize: bool = False,
    ) -> None:
        super().__init__(event_shape, standardize)
        event_shape = self.event_shape
        self.scale = _check_scale(scale)
        if self.standardize and self.scale == "optimal":
            raise ValueError(
                "Expected standardize=False with scale='optimal', whose optimum is that of all "
                "elements together, got True: standardize the data, or use scale='element'"
            )
        self.feature_shape = torch.Size((2 if self.scale == "network" else 1, *event_shape))
        self.min_scale = check_positive("min_scale", min_scale)
        self.momentum = check_number("momentum", momentum, above=0.0, most=1.0)
        if self.scale in ("shared", "element"):
            self.raw_scale = nn.Parameter(torch.zeros(() if scale == "shared" else event_shape))
        elif scale == "optimal":
            self.register_buffer("variance", torch.ones(()))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        dim = -1 - len(self.event_shape)
        loc = features.select(dim, 0)
        if self.scale == "optimal" and self.training:
            base = ProfileNormal(
                loc,
                self.variance.sqrt(),
                floor=self.min_scale,
                observe=self._update_average,
                observed=self._read_site_mask(),
            )
        else:
            base = dist.Normal(*self.to_units(loc, self._compute_scale(features, dim)))
        return base.to_event(len(self.event_shape))

    def _read_site_mask(self) -> Tensor | bool | None:
        # Handlers mask a site after its distribution is built, which therefore lacks their masks.
        mask = get_mask()
        if isinstance(mask, Tensor):
            return mask[(..., *(None,) * len(self.event_shape))]
        return None if mask is None or mask else False

    def _compute_scale(self, features: Tensor, dim: int) -> Tensor:
        if self.scale == "network":
            return softplus(features.select(dim, 1)) + self.min_scale
        if self.scale == "optimal":
            return self.variance.sqrt()
        if isinstance(self.scale, float):
            return torch.full((), self.scale, dtype=features.dtype, device=features.device)
        return softplus(self.raw_scale) + self.min_scale

    def _update_average(self, variance: Tensor) -> None:
        """Moves the running average of the best variance towards that of a batch."""
        self.variance.add_(self.momentum * (variance.to(self.variance.dtype) - self.variance))

    @torch.no_grad()
    def calibrate(self, variance: Tensor) -> None:
        """Sets the variance of ``scale="optimal"`` to the mean square error of training data."""
        if self.scale == "optimal":
            self.variance.copy_(variance.clamp(min=self.min_scale**2))

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> dist.TorchDistribution:
        """Computes the M step, means shrunk towards the mean of all rows."""
        size, total = sum_rows(responsibilities, x)
        overall, count = average_columns(x), count_columns(x)
        means = (total + smoothing * overall) / (size + smoothing)
        unit = self.unit_scale.double().flatten() if self.standardize else x.new_ones(())
        if isinstance(self.scale, float):
            return dist.Normal(means, self.scale * unit, validate_args=False)
        squares = sum_rows(responsibilities, x**2)[1]
        error = (squares - 2 * means * total + size * means**2).clamp(min=0)
        if self.scale in ("shared", "optimal"):
            variance = (error / unit**2).sum() / count.sum() * unit**2
        elif self.scale == "element":
            variance = error.sum(0) / count.clamp(min=1)
        else:
            spread = ((x - overall) ** 2).nansum(0) / (count - 1).clamp(min=1)
            variance = (error + smoothing * spread) / (size + smoothing)
        scale = torch.maximum(variance.sqrt(), self.min_scale * unit.to(variance))
        return dist.Normal(means, scale, validate_args=False)

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` unless all values are finite."""
        check_finite_data(x, "normal")

    def extra_repr(self) -> str:
        """Shows the shape and the kind of scale."""
        return f"{super().extra_repr()}, scale={self.scale!r}"


def _check_scale(scale: Any) -> float | str:
    if isinstance(scale, str) and scale in _KINDS:
        return scale
    try:
        return check_positive("scale", scale)
    except ValueError:
        raise ValueError(
            f"Expected scale to be positive or one of {_KINDS}, got {describe_value(scale)}"
        ) from None
