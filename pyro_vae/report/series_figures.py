"""Figures of series."""

from torch import Tensor

from pyro_vae import plots, report
from pyro_vae.report.drawing import create_axes, get_figure, sample_rows, to_numpy
from pyro_vae.vae.vae import VAE

__all__ = ["draw_series_reconstructions", "draw_series_samples", "is_series"]

_ROWS = 6
_MAX_FEATURES, _MIN_STEPS = 4, 8


def is_series(vae: VAE) -> bool:
    """Whether data have the shape ``(length, features)`` with few features."""
    shape = vae.event_shape
    return len(shape) == 2 and shape[1] <= _MAX_FEATURES and shape[0] >= _MIN_STEPS


def draw_series_reconstructions(
    vae: VAE, x: Tensor, mask: Tensor | None, covariates: Tensor | None
) -> report.Figure:
    """Draws held-out series and their reconstructions."""
    x, observed = x[:_ROWS], None if mask is None else mask[:_ROWS]
    own = None if covariates is None else covariates[:_ROWS]
    means = vae.reconstruct(x, covariates=own, mask=observed)
    ax = plots.series(
        to_numpy(x[..., 0]),
        to_numpy(means[..., 0]),
        mask=None if observed is None else to_numpy(observed[..., 0]),
        ax=create_axes(5.6, 4.4),
    )
    caption = (
        f"{len(x)} held-out series (dots), and the mean of p(x given z) at the mean of q(z given "
        f"x) (lines), which goes on after a series ends."
    )
    return report.Figure("reconstructions.png", "Reconstructions", caption, get_figure(ax))


def draw_series_samples(vae: VAE, covariates: Tensor | None) -> report.Figure:
    """Draws the means of series from the model."""
    means = sample_rows(vae, _ROWS, covariates, mean=True)
    ax = plots.series(to_numpy(means[..., 0]), ax=create_axes(5.6, 4.4))
    caption = "Means of p(x given z) for z drawn from the prior, without the encoder."
    return report.Figure("samples.png", "Samples", caption, get_figure(ax))
