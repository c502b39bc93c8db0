"""Figures of the effect of covariates on images."""

import re

import torch

from pyro_vae import evaluate, plots, report
from pyro_vae.data import Covariate, Data
from pyro_vae.networks import eval_mode
from pyro_vae.report.drawing import create_axes, get_figure, to_numpy
from pyro_vae.report.trained_run import TrainedRun

__all__ = ["draw_levels", "draw_transfers", "find_categories"]

_MAX_LEVELS = 10


@torch.no_grad()
def draw_levels(run: TrainedRun, column: Covariate) -> report.Figure:
    """Draws samples for each level of a covariate, with the same z in each column."""
    vae, levels, encoding = run.vae, column.levels[:_MAX_LEVELS], run.data.covariate_columns
    covariates = run.data.test.covariates
    assert covariates is not None
    assert encoding is not None
    z = vae.prior_distribution(covariates[:10]).expand(torch.Size((len(covariates[:10]),))).sample()
    with eval_mode(vae):
        rows = [
            vae.decode(z, encoding.replace(covariates[: len(z)], {column.name: level})).mean
            for level in levels
        ]
    size = create_axes(5.6, 0.56 * len(levels) + 0.2)
    ax = plots.images(to_numpy(torch.cat(rows)), columns=len(z), ax=size)
    caption = (
        f"Samples for each level of {column.name}, from top to bottom: {', '.join(levels)}. Each "
        f"column has the same z, drawn from the prior."
    )
    name = f"levels_{_to_file_name(column.name)}.png"
    return report.Figure(name, f"Samples by {column.name}", caption, get_figure(ax))


@torch.no_grad()
def draw_transfers(run: TrainedRun, column: Covariate) -> report.Figure:
    """Draws held-out data and their reconstructions under each level of a covariate."""
    x, mask, covariates = run.data.test.batch(slice(8))
    assert covariates is not None
    assert run.data.covariate_columns is not None
    levels = column.levels[:_MAX_LEVELS]
    rows = [x] + [
        evaluate.transfer(
            run.vae, x, covariates,
            to=run.data.covariate_columns.replace(covariates, {column.name: level}), mask=mask,
        )
        for level in levels
    ]  # fmt: skip
    images = torch.stack(rows, 1).flatten(0, 1)
    size = create_axes(0.56 * len(rows) + 0.2, 0.56 * len(x) + 0.2)
    ax = plots.images(to_numpy(images), columns=len(rows), ax=size)
    caption = (
        f"Held-out data (left), and their reconstructions with the embedding held fixed and "
        f"{column.name} set to {', '.join(levels)}."
    )
    name = f"transfer_{_to_file_name(column.name)}.png"
    return report.Figure(name, f"The effect of {column.name}", caption, get_figure(ax))


def find_categories(data: Data) -> list[Covariate]:
    """Returns the categorical covariates of a data set."""
    columns = () if data.covariate_columns is None else data.covariate_columns.columns
    return [column for column in columns if column.kind == "categorical"]


def _to_file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "covariate"
