"""The figures of a report."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae import evaluate, plots, report
from pyro_vae.collapse import ACTIVE_VARIANCE
from pyro_vae.data.sparse_rows import take_rows
from pyro_vae.distributions.blocks import contains_means, find_centre, is_real_vector
from pyro_vae.evaluate.evidence import evidence_by_particles
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.report.count_figures import draw_counts
from pyro_vae.report.covariate_figures import draw_levels, draw_transfers, find_categories
from pyro_vae.report.drawing import create_axes, get_figure, is_image, sample_rows, to_numpy
from pyro_vae.report.latents import Latents
from pyro_vae.report.series_figures import (
    draw_series_reconstructions,
    draw_series_samples,
    is_series,
)
from pyro_vae.report.table_content import ColumnFit, draw_table
from pyro_vae.report.trained_run import TrainedRun
from pyro_vae.vae.vae import VAE

__all__ = ["draw_figures"]

_PROPOSAL_ROWS = 50
_PROPOSAL_VALUES = 50_000
"""The most values of the rows whose evidence is drawn, if these are at least ten rows."""

_FEW_EPOCHS = 10
_STEPS = 8
_SMALL_IMAGE = 32
"""The largest side of an image of which ten fit in a row."""

_ROWS, _COLUMNS = 6, 11
"""The most rows and columns of a figure of categories."""

_PARTICLES = (1, 3, 10, 30, 100, 300, 1000)


def draw_figures(
    run: TrainedRun, metrics: dict[str, Any], latents: Latents, fits: Sequence[ColumnFit] = ()
) -> list[report.Figure]:
    """Returns the figures of a run; those of images only if the data are images.

    Arguments:
        run: The run.
        metrics: Its metrics.
        latents: The embeddings of its held-out rows.
        fits: The columns of a table.
    """
    vae, (x, mask, _, covariates) = run.vae, run.data.test
    means = latents.means
    kl = metrics["kl_per_dimension"]
    draws: list[Callable[[], report.Figure]] = []
    if is_series(vae):
        draws.append(partial(draw_series_reconstructions, vae, x, mask, covariates))
        draws.append(partial(draw_series_samples, vae, covariates))
    elif is_image(vae.event_shape):
        draws.append(partial(_draw_reconstructions, vae, x, mask, covariates))
        draws.append(partial(_draw_samples, vae, covariates))
        real = is_real_vector(getattr(vae.posterior, "support", None))
        if real:
            draws.append(partial(_draw_traversals, vae, means, kl, covariates))
        elif _has_categories(vae):
            draws.append(partial(_draw_categories, vae, x, mask, covariates))
        if len(x) > 1:
            draws.append(partial(_draw_interpolations, vae, x, mask, covariates))
        if vae.latent_dim == 2 and covariates is None and real:
            draws.append(partial(_draw_manifold, vae))
        for column in find_categories(run.data):
            draws.append(partial(draw_levels, run, column))
            draws.append(partial(draw_transfers, run, column))
    if getattr(vae.likelihood, "is_count", False) and mask is None:
        draws += draw_counts(run)
    if fits:
        draws += draw_table(run, list(fits))
    if vae.event_shape == (2,):
        draws.append(partial(_draw_plane, vae, x, covariates))
    draws.append(partial(_draw_latent, run, latents))
    if latents.has_tsne:
        draws.append(partial(_draw_tsne, latents))
    if kl is not None:
        draws.append(partial(draw_rates, kl, find_active_units(vae, x, covariates, mask)))
    proposals = partial(_draw_proposals, run, metrics["log_evidence_particles"])
    return _draw_all([*draws, partial(_draw_curves, run), proposals])


def _draw_all(draws: Sequence[Callable[[], report.Figure]]) -> list[report.Figure]:
    figures = []
    with Progress("drawing", len(draws), "figures") as progress:
        for draw in draws:
            figures.append(draw())
            progress.advance()
    return figures


def _draw_reconstructions(
    vae: VAE, x: Tensor, mask: Tensor | None, covariates: Tensor | None
) -> report.Figure:
    """Draws held-out data above their reconstructions."""
    count = 10 if max(x.shape[-2:]) <= _SMALL_IMAGE else 6
    ax = create_axes(8, 1.9 if count == 10 else 2.8)
    first = None if covariates is None else covariates[:count]
    observed = None if mask is None else mask[:count]
    reconstructions = vae.reconstruct(x[:count], covariates=first, mask=observed)
    plots.reconstructions(to_numpy(x[:count]), to_numpy(reconstructions), ax=ax)
    caption = (
        f"Held-out data (top), and the mean of p(x given z) at the {_name_centre(vae)} of "
        f"q(z given x)."
    )
    return report.Figure("reconstructions.png", "Reconstructions", caption, get_figure(ax))


def _draw_samples(vae: VAE, covariates: Tensor | None) -> report.Figure:
    images = sample_rows(vae, 40, covariates, mean=True)
    ax = plots.samples(to_numpy(images), ax=create_axes(5.6, 3.6))
    caption = "Means of p(x given z) for z drawn from the prior, without the encoder."
    if covariates is not None:
        caption += " The covariates are those of held-out rows."
    return report.Figure("samples.png", "Samples", caption, get_figure(ax))


def _name_centre(vae: VAE) -> str:
    support = getattr(vae.posterior, "support", None)
    return "mean" if contains_means(support) else "mode"


def _name_path(vae: VAE) -> str:
    support = getattr(vae.posterior, "support", None)
    if contains_means(support):
        return "line between"
    discrete = getattr(support, "is_discrete", False)
    return "line through mixtures of" if discrete else "arc between"


def _draw_interpolations(
    vae: VAE, x: Tensor, mask: Tensor | None, covariates: Tensor | None
) -> report.Figure:
    """Draws the decoder's means on straight lines between embeddings of held-out data."""
    count = min(5, len(x) // 2)
    start, end = slice(count), slice(count, 2 * count)
    decoded = vae.interpolate(
        x[start], x[end], _STEPS,
        covariates=None if covariates is None else covariates[start],
        mask=None if mask is None else (mask[start], mask[end]),
    )  # fmt: skip
    ax = create_axes(5.6, 0.62 * count + 0.2)
    ax = plots.images(to_numpy(decoded.transpose(0, 1).flatten(0, 1)), columns=_STEPS, ax=ax)
    caption = f"Means of p(x given z) on the {_name_path(vae)} the embeddings of two held-out data."
    if covariates is not None:
        caption += " The covariates are those of the left one."
    return report.Figure("interpolations.png", "Interpolations", caption, get_figure(ax))


@torch.no_grad()
def _draw_traversals(
    vae: VAE, means: Tensor, kl: list[float] | None, covariates: Tensor | None
) -> report.Figure:
    """Draws traversals of the dimensions with the highest rate."""
    importance = means.var(0).cpu() if kl is None else torch.tensor(kl)
    order = importance.argsort(descending=True)[:6]
    values = torch.linspace(-3, 3, 11, dtype=means.dtype, device=means.device)
    z = means[0].repeat(len(order), len(values), 1)
    for row, dimension in enumerate(order):
        z[row, :, dimension] = values
    with eval_mode(vae):
        decoded = vae.decode(z.flatten(0, 1), None if covariates is None else covariates[:1]).mean
    height = 0.2 + 5.6 / len(values) * len(order)
    ax = plots.images(to_numpy(decoded), columns=len(values), ax=create_axes(5.6, height))
    caption = (
        f"The embedding of the first held-out datum with one dimension varied from -3 to 3. Rows: "
        f"dimensions {', '.join(str(int(d) + 1) for d in order)}, in order of decreasing rate."
    )
    return report.Figure("traversals.png", "Traversals", caption, get_figure(ax))


def _has_categories(vae: VAE) -> bool:
    """Whether z consists of one-hot vectors or of shares."""
    support = getattr(vae.posterior, "support", None)
    return support in (constraints.one_hot, constraints.simplex)


@torch.no_grad()
def _draw_categories(
    vae: VAE, x: Tensor, mask: Tensor | None, covariates: Tensor | None
) -> report.Figure:
    """Draws the decoder's mean for each category of the first variables, the others fixed."""
    first = None if covariates is None else covariates[:1]
    variables = getattr(vae.posterior, "variables", 1)
    with eval_mode(vae):
        q = vae.encode(take_rows(x, slice(1)), first, None if mask is None else mask[:1])
        centre = find_centre(q, vae.posterior.support)[0].unflatten(-1, (variables, -1))
        categories = centre.shape[1]
        rows = min(variables, _ROWS)
        z = centre.repeat(rows, categories, 1, 1)
        for row in range(rows):
            z[row, :, row] = torch.eye(categories, dtype=z.dtype, device=z.device)
        z = z[:, :_COLUMNS] if rows > 1 else z[:, : _ROWS * _COLUMNS]
        decoded = vae.decode(z.flatten(-2).flatten(0, 1), first).mean
    columns = z.shape[1] if rows > 1 else min(_COLUMNS, z.shape[1])
    height = 0.2 + 5.6 / columns * -(-len(decoded) // columns)
    ax = plots.images(to_numpy(decoded), columns=columns, ax=create_axes(5.6, height))
    caption = (
        f"Means of p(x given z) for {z.shape[1]} of {categories} categories of z."
        if variables == 1
        else f"Means of p(x given z) for {z.shape[1]} categories of the first {rows} of "
        f"{variables} variables, one a row; the others are those of the first held-out datum."
    )
    return report.Figure("categories.png", "Categories", caption, get_figure(ax))


@torch.no_grad()
def _draw_manifold(vae: VAE, side: int = 15) -> report.Figure:
    """Draws the decoder's means over the plane of a two-dimensional latent."""
    quantiles = torch.linspace(0.02, 0.98, side)
    values = torch.special.ndtri(quantiles).to(next(vae.parameters()))
    z = torch.stack(torch.meshgrid(-values, values, indexing="ij"), -1).flip(-1)
    with eval_mode(vae):
        decoded = vae.decode(z.flatten(0, 1)).mean
    ax = plots.images(to_numpy(decoded), columns=side, ax=create_axes(5.6, 5.6))
    caption = "Means of p(x given z) over the plane of z, at quantiles of a standard normal."
    return report.Figure("manifold.png", "Manifold", caption, get_figure(ax))


def _draw_plane(vae: VAE, x: Tensor, covariates: Tensor | None) -> report.Figure:
    """Draws two-dimensional data and as many samples from the model."""
    points = torch.cat(
        [take_rows(x, slice(None)), sample_rows(vae, len(x), covariates, mean=False)]
    )
    kinds = ["data"] * len(x) + ["model"] * len(x)
    ax = plots.latent(to_numpy(points), kinds, ax=create_axes(5.6, 4.4))
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    legend = ax.get_legend()
    assert legend is not None
    legend.set_title("")
    caption = "Held-out data, and as many samples from the model."
    return report.Figure("plane.png", "Data and samples", caption, get_figure(ax))


def _draw_latent(run: TrainedRun, latents: Latents) -> report.Figure:
    """Draws embeddings, projected to two principal components if they have more dimensions."""
    ax = plots.latent(to_numpy(latents.means), latents.labels, ax=create_axes(5.6, 4.4))
    caption = f"Posterior {_name_centre(run.vae)}s of held-out data"
    if latents.labels is not None:
        caption += ", coloured by label"
        if run.data.covariates is None:
            caption += ". The model was trained without labels"
    caption += "."
    return report.Figure("latent.png", "Latent space", caption, get_figure(ax))


def _draw_tsne(latents: Latents) -> report.Figure:
    """Draws embeddings by t-SNE, which preserves neighbourhoods."""
    flat, labels = latents.tsne, latents.labels
    ax = plots.latent(
        flat, None if labels is None else labels[: len(flat)], ax=create_axes(5.6, 4.4)
    )
    ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2")
    caption = (
        f"{len(flat):,} embeddings projected by t-SNE: neighbourhoods are meaningful, "
        f"distances are not."
    )
    return report.Figure("tsne.png", "Latent space by t-SNE", caption, get_figure(ax))


def find_active_units(
    vae: VAE, x: Tensor, covariates: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    """Returns a mask of the active dimensions over rows with observed values, as in the metrics."""
    if mask is not None:
        observed = mask.flatten(1).any(1)
        x, mask = x[observed], mask[observed]
        covariates = None if covariates is None else covariates[observed]
    if len(x) < 2:
        return None
    return evaluate.active_units(vae, x, covariates=covariates, mask=mask).cpu()


def draw_rates(kl: list[float], active: Tensor | None) -> report.Figure:
    """Draws the rate of each dimension, with the active ones highlighted."""
    ax = plots.rates(kl, active=active, ax=create_axes(5.6, 3.2))
    caption = (
        f"KL of each dimension's marginal, in nats. A dimension is active if its posterior mean "
        f"varies over the data by more than {ACTIVE_VARIANCE:g} in variance, in units of the "
        f"prior's where z is bounded."
    )
    return report.Figure("rates.png", "Rate by latent dimension", caption, get_figure(ax))


def _draw_curves(run: TrainedRun) -> report.Figure:
    history = run.result.history
    ax = plots.curves(history, ax=create_axes(5.6, 3.2))
    if "valid_elbo" in history[0]:
        caption = "The objective on training rows and the ELBO on validation rows, epoch by epoch."
    else:
        caption = "The objective on training rows, epoch by epoch; there are no validation rows."
    if len(history) <= _FEW_EPOCHS:
        values = ", ".join(f"{row['train_objective']:.2f}" for row in history)
        caption += f" The objective: {values}.".replace("-", "\N{MINUS SIGN}")
    return report.Figure("curves.png", "Training", caption, get_figure(ax))


def _draw_proposals(run: TrainedRun, num_particles: int) -> report.Figure:
    """Draws estimates of the log evidence with the encoder and without."""
    counts = [count for count in _PARTICLES if count <= max(num_particles, _PARTICLES[2])]
    most = max(10, _PROPOSAL_VALUES // run.vae.event_shape.numel())
    rows, mask, covariates = run.data.test.batch(slice(min(_PROPOSAL_ROWS, most)))
    estimates = {}
    for proposal in ("posterior", "prior"):
        found = evidence_by_particles(
            run.vae, rows, counts, proposal=proposal, covariates=covariates, mask=mask
        )
        estimates[f"z from the {proposal}"] = found.double().mean(1).tolist()
    ax = plots.lines(counts, estimates, ax=create_axes(5.6, 3.2))
    ax.set(xlabel="samples per datum", ylabel="log evidence, nats per datum", xscale="log")
    caption = (
        f"The log evidence of {len(rows)} held-out rows by importance sampling. Few z from the "
        f"prior explain a given datum, so the estimate is too low. The encoder proposes z with a "
        f"high likelihood."
    )
    return report.Figure("proposals.png", "Why the encoder is needed", caption, get_figure(ax))
