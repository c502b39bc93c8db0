"""Figures of observed counts beside generated ones."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from pyro_vae import plots, report
from pyro_vae.networks import eval_mode
from pyro_vae.report.drawing import create_axes, get_figure, to_numpy
from pyro_vae.report.trained_run import TrainedRun

__all__ = ["draw_counts", "is_given_sum"]

_ROWS = 2000
"""The most rows that are compared."""


def draw_counts(run: TrainedRun) -> list[Callable[[], report.Figure]]:
    """Returns functions that draw variances, zeros and row sums of data and model."""
    # Drawn once, with the first figure.
    generate = cache(partial(_generate, run))
    return [partial(draw, run, generate) for draw in (_draw_variances, _draw_zeros, _draw_sums)]


@torch.no_grad()
def _generate(run: TrainedRun) -> Tensor:
    """Returns a generated row for each held-out row, with its covariates and its size factor."""
    x, _, covariates = run.data.test.batch(slice(_ROWS))
    with eval_mode(run.vae):
        prior = run.vae.prior_distribution(covariates).expand(torch.Size((len(x),)))
        p = run.vae.decode(prior.sample(), covariates)
        if is_given_sum(run):
            p = p.at_size(x.flatten(1).sum(1))
        return p.sample()


def _get_observed(run: TrainedRun) -> Tensor:
    return run.data.test.batch(slice(_ROWS)).x


def is_given_sum(run: TrainedRun) -> bool:
    """Whether the likelihood takes the sum of a row as given."""
    return getattr(run.vae.likelihood, "condition", None) is not None


def _draw_variances(run: TrainedRun, generate: Callable[[], Tensor]) -> report.Figure:
    ax = create_axes(4.8, 4.4)
    series = {"observed": _get_observed(run), "generated": generate()}
    for (name, x), color in zip(series.items(), (plots.BLUE, plots.ORANGE), strict=True):
        mean, variance = x.flatten(1).mean(0), x.flatten(1).var(0)
        shown = (mean > 0) & (variance > 0)
        ax.scatter(
            to_numpy(mean[shown]), to_numpy(variance[shown]), s=8, alpha=0.6, linewidths=0,
            color=color, label=name,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log")
    ax.legend(frameon=False)
    plots.tidy_axes(ax, xlabel="mean", ylabel="variance")
    caption = "Mean and variance of each element over rows, in held-out and in generated data."
    return report.Figure("variances.png", "Mean and variance", caption, get_figure(ax))


def _draw_zeros(run: TrainedRun, generate: Callable[[], Tensor]) -> report.Figure:
    shares = ((x.flatten(1) == 0).double().mean(0) for x in (_get_observed(run), generate()))
    ax = plots.agreement(*map(to_numpy, shares), ax=create_axes(4.8, 4.4))
    ax.set(xlabel="observed share of zeros", ylabel="generated share of zeros")
    caption = "The share of zeros of each element, in held-out and in generated data."
    return report.Figure("zeros.png", "Zeros", caption, get_figure(ax))


def _draw_sums(run: TrainedRun, generate: Callable[[], Tensor]) -> report.Figure:
    sums = (x.flatten(1).sum(1) for x in (_get_observed(run), generate()))
    observed, generated = map(to_numpy, sums)
    values = {"observed": observed, "generated": generated}
    ax = plots.histograms(values, ax=create_axes(5.6, 3.2))
    ax.set_xlabel("sum of a row")
    caption = "The sums of held-out rows, and those of as many generated rows."
    if is_given_sum(run):
        caption += " Generated rows have the sums of held-out rows as size factors."
    return report.Figure("row_sums.png", "Row sums", caption, get_figure(ax))
