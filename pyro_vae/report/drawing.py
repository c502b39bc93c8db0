"""Axes and arrays for the figures of a report."""

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.vae.vae import VAE

__all__ = ["create_axes", "get_figure", "is_image", "sample_rows", "shorten_text", "to_numpy"]

_MAX_TEXT = 24


def create_axes(width: float, height: float) -> Axes:
    """Creates the axes of a figure outside Matplotlib's global state."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def get_figure(ax: Axes) -> Figure:
    """Returns the figure of axes."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def is_image(event_shape: torch.Size) -> bool:
    """Whether data of a shape are images."""
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[0] in (1, 3))


def sample_rows(vae: VAE, count: int, covariates: Tensor | None, mean: bool) -> Tensor:
    """Returns samples from the model, with the covariates of the first held-out rows."""
    if covariates is None:
        return vae.sample(count, mean=mean)
    return vae.sample(1, covariates=covariates[:count], mean=mean).squeeze(0)


def to_numpy(x: Tensor) -> Any:
    """Returns a tensor as an array."""
    return x.detach().cpu().numpy()


def shorten_text(text: str) -> str:
    """Returns at most so many characters of a text as the page has room for."""
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
