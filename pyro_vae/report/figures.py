"""The figures of a report."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits
from torch import Tensor

from pyro_vae import evaluate, plots, report
from pyro_vae.collapse import ACTIVE_VARIANCE
from pyro_vae.data import Covariate, Data
from pyro_vae.evaluate.evidence import evidence_by_particles
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.report.trained_run import TrainedRun
from pyro_vae.vae.vae import VAE

__all__ = ["draw_figures"]

_TSNE_ROWS = 1000
_PROPOSAL_ROWS = 100
_FEW_EPOCHS = 10
_MAX_LEVELS = 10
_PARTICLES = (1, 3, 10, 30, 100, 300, 1000)


def draw_figures(run: TrainedRun, metrics: dict[str, Any]) -> list[report.Picture]:
    """Returns the figures of a run; those of images only if the data are images."""
    vae, (x, mask, _, covariates) = run.vae, run.data.test
    labels = get_labels(run.data)
    means = evaluate.posterior_means(vae, x, covariates=covariates, mask=mask)
    kl = metrics["kl_per_dimension"]
    draws: list[Callable[[], report.Picture]] = []
    if _is_image(vae.event_shape):
        draws.append(partial(_draw_reconstructions, vae, x, covariates))
        draws.append(partial(_draw_samples, vae, covariates))
        draws.append(partial(_draw_traversals, vae, means, kl, covariates))
        if vae.latent_dim == 2 and covariates is None:
            draws.append(partial(_draw_manifold, vae))
        for column in _find_categories(run.data):
            draws.append(partial(_draw_levels, run, column))
            draws.append(partial(_draw_transfers, run, column))
    if vae.event_shape == (2,):
        draws.append(partial(_draw_plane, vae, x, covariates))
    draws.append(partial(_draw_latent, means, labels))
    # t-SNE crashes on identical embeddings, such as those of a collapsed encoder.
    if vae.latent_dim > 2 and len(means) > 3 and bool((means[:_TSNE_ROWS].var(0) > 1e-6).any()):
        draws.append(partial(_draw_tsne, means, labels))
    if kl is not None:
        draws.append(partial(draw_rates, kl, find_active_units(vae, x, covariates, mask)))
    proposals = partial(_draw_proposals, run, metrics["log_evidence_particles"])
    return _draw_all([*draws, partial(_draw_curves, run), proposals])


def _draw_all(draws: Sequence[Callable[[], report.Picture]]) -> list[report.Picture]:
    figures = []
    with Progress("drawing", len(draws), "figures") as progress:
        for draw in draws:
            figures.append(draw())
            progress.advance()
    return figures


def get_labels(data: Data) -> Any:
    """Returns the labels of held-out data, as names if they are few enough for a legend."""
    if data.labels is None:
        return None
    labels = _to_numpy(data.labels.test)
    if data.label_names is None or len(data.label_names) > plots.MAX_KINDS:
        return labels
    return np.array(data.label_names)[labels]


def _draw_reconstructions(vae: VAE, x: Tensor, covariates: Tensor | None) -> report.Picture:
    """Draws held-out data above their reconstructions."""
    ax = _create_axes(8, 1.9)
    first = None if covariates is None else covariates[:10]
    reconstructions = vae.reconstruct(x[:10], covariates=first)
    plots.reconstructions(_to_numpy(x[:10]), _to_numpy(reconstructions), ax=ax)
    caption = "Held-out data (top), and the mean of p(x given z) at the mean of q(z given x)."
    return report.Picture("reconstructions.png", "Reconstructions", caption, _get_figure(ax))


def _sample_rows(vae: VAE, count: int, covariates: Tensor | None, mean: bool) -> Tensor:
    """Returns samples from the model, with the covariates of the first held-out rows."""
    if covariates is None:
        return vae.sample(count, mean=mean)
    return vae.sample(1, covariates=covariates[:count], mean=mean).squeeze(0)


def _draw_samples(vae: VAE, covariates: Tensor | None) -> report.Picture:
    images = _sample_rows(vae, 40, covariates, mean=True)
    ax = plots.samples(_to_numpy(images), ax=_create_axes(5.6, 3.6))
    caption = "Means of p(x given z) for z drawn from the prior, without the encoder."
    if covariates is not None:
        caption += " The covariates are those of held-out rows."
    return report.Picture("samples.png", "Samples", caption, _get_figure(ax))


@torch.no_grad()
def _draw_traversals(
    vae: VAE, means: Tensor, kl: list[float] | None, covariates: Tensor | None
) -> report.Picture:
    """Draws traversals of the dimensions with the highest rate."""
    importance = means.var(0).cpu() if kl is None else torch.tensor(kl)
    order = importance.argsort(descending=True)[:6]
    values = torch.linspace(-3, 3, 11, dtype=means.dtype, device=means.device)
    z = means[0].repeat(len(order), len(values), 1)
    for row, dimension in enumerate(order):
        z[row, :, dimension] = values
    with eval_mode(vae):
        decoded = vae.decode(z.flatten(0, 1), None if covariates is None else covariates[:1]).mean
    ax = plots.images(_to_numpy(decoded), columns=len(values), ax=_create_axes(5.6, 3.4))
    caption = (
        f"The embedding of the first held-out datum with one dimension varied from -3 to 3. Rows: "
        f"dimensions {', '.join(str(int(d) + 1) for d in order)}, in order of decreasing rate."
    )
    return report.Picture("traversals.png", "Traversals", caption, _get_figure(ax))


@torch.no_grad()
def _draw_manifold(vae: VAE, side: int = 15) -> report.Picture:
    """Draws the decoder's means over the plane of a two-dimensional latent."""
    quantiles = torch.linspace(0.02, 0.98, side)
    values = torch.special.ndtri(quantiles).to(next(vae.parameters()))
    z = torch.stack(torch.meshgrid(-values, values, indexing="ij"), -1).flip(-1)
    with eval_mode(vae):
        decoded = vae.decode(z.flatten(0, 1)).mean
    ax = plots.images(_to_numpy(decoded), columns=side, ax=_create_axes(5.6, 5.6))
    caption = "Means of p(x given z) over the plane of z, at quantiles of a standard normal."
    return report.Picture("manifold.png", "Manifold", caption, _get_figure(ax))


@torch.no_grad()
def _draw_levels(run: TrainedRun, column: Covariate) -> report.Picture:
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
    size = _create_axes(5.6, 0.56 * len(levels) + 0.2)
    ax = plots.images(_to_numpy(torch.cat(rows)), columns=len(z), ax=size)
    caption = (
        f"Samples for each level of {column.name}, from top to bottom: {', '.join(levels)}. Each "
        f"column has the same z, drawn from the prior."
    )
    name = f"levels_{_to_file_name(column.name)}.png"
    return report.Picture(name, f"Samples by {column.name}", caption, _get_figure(ax))


@torch.no_grad()
def _draw_transfers(run: TrainedRun, column: Covariate) -> report.Picture:
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
    size = _create_axes(0.56 * len(rows) + 0.2, 0.56 * len(x) + 0.2)
    ax = plots.images(_to_numpy(images), columns=len(rows), ax=size)
    caption = (
        f"Held-out data (left), and their reconstructions with the embedding held fixed and "
        f"{column.name} set to {', '.join(levels)}."
    )
    name = f"transfer_{_to_file_name(column.name)}.png"
    return report.Picture(name, f"The effect of {column.name}", caption, _get_figure(ax))


def _find_categories(data: Data) -> list[Covariate]:
    columns = () if data.covariate_columns is None else data.covariate_columns.columns
    return [column for column in columns if column.kind == "categorical"]


def _to_file_name(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "covariate"


def _draw_plane(vae: VAE, x: Tensor, covariates: Tensor | None) -> report.Picture:
    """Draws two-dimensional data and as many samples from the model."""
    points = torch.cat([x, _sample_rows(vae, len(x), covariates, mean=False)])
    kinds = ["data"] * len(x) + ["model"] * len(x)
    ax = plots.latent(_to_numpy(points), kinds, ax=_create_axes(5.6, 4.4))
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    legend = ax.get_legend()
    assert legend is not None
    legend.set_title("")
    caption = "Held-out data, and as many samples from the model."
    return report.Picture("plane.png", "Data and samples", caption, _get_figure(ax))


def _draw_latent(means: Tensor, labels: Any) -> report.Picture:
    """Draws embeddings, projected to two principal components if they have more dimensions."""
    ax = plots.latent(_to_numpy(means), labels, ax=_create_axes(5.6, 4.4))
    caption = "Posterior means of held-out data" + (
        "." if labels is None else ", coloured by label. The model was trained without labels."
    )
    return report.Picture("latent.png", "Latent space", caption, _get_figure(ax))


def _draw_tsne(means: Tensor, labels: Any) -> report.Picture:
    """Draws embeddings by t-SNE, which preserves neighbourhoods."""
    from sklearn.manifold import TSNE

    embeddings = _to_numpy(means[:_TSNE_ROWS])
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    with threadpool_limits(torch.get_num_threads()):
        # After 500 iterations neighbourhoods no longer change, at half the time of the default.
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=500)
        flat = tsne.fit_transform(embeddings)
    ax = plots.latent(
        flat, None if labels is None else labels[:_TSNE_ROWS], ax=_create_axes(5.6, 4.4)
    )
    ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2")
    caption = (
        f"{len(embeddings):,} embeddings projected by t-SNE: neighbourhoods are meaningful, "
        f"distances are not."
    )
    return report.Picture("tsne.png", "Latent space by t-SNE", caption, _get_figure(ax))


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


def draw_rates(kl: list[float], active: Tensor | None) -> report.Picture:
    """Draws the rate of each dimension, with the active ones highlighted."""
    ax = plots.rates(kl, active=active, ax=_create_axes(5.6, 3.2))
    caption = (
        f"KL of each dimension's marginal, in nats. A dimension is active if its posterior mean "
        f"varies over the data by more than {ACTIVE_VARIANCE:g} in variance."
    )
    return report.Picture("rates.png", "Rate by latent dimension", caption, _get_figure(ax))


def _draw_curves(run: TrainedRun) -> report.Picture:
    history = run.result.history
    ax = plots.curves(history, ax=_create_axes(5.6, 3.2))
    if "valid_elbo" in history[0]:
        caption = "The objective on training rows and the ELBO on validation rows, epoch by epoch."
    else:
        caption = "The objective on training rows, epoch by epoch; there are no validation rows."
    if len(history) <= _FEW_EPOCHS:
        values = ", ".join(f"{row['train_objective']:.2f}" for row in history)
        caption += f" The objective: {values}.".replace("-", "\N{MINUS SIGN}")
    return report.Picture("curves.png", "Training", caption, _get_figure(ax))


def _draw_proposals(run: TrainedRun, num_particles: int) -> report.Picture:
    """Draws estimates of the log evidence with the encoder and without."""
    counts = [count for count in _PARTICLES if count <= max(num_particles, _PARTICLES[2])]
    rows, mask, covariates = run.data.test.batch(slice(_PROPOSAL_ROWS))
    estimates = {}
    for proposal in ("posterior", "prior"):
        found = evidence_by_particles(
            run.vae, rows, counts, proposal=proposal, covariates=covariates, mask=mask
        )
        estimates[f"z from the {proposal}"] = found.double().mean(1).tolist()
    ax = plots.lines(counts, estimates, ax=_create_axes(5.6, 3.2))
    ax.set(xlabel="samples per datum", ylabel="log evidence, nats per datum", xscale="log")
    caption = (
        f"The log evidence of {len(rows)} held-out rows by importance sampling. Few z from the "
        f"prior explain a given datum, so the estimate is too low. The encoder proposes z with a "
        f"high likelihood."
    )
    return report.Picture("proposals.png", "Why the encoder is needed", caption, _get_figure(ax))


def _create_axes(width: float, height: float) -> Axes:
    """Creates the axes of a figure outside Matplotlib's global state."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def _get_figure(ax: Axes) -> Figure:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def _is_image(event_shape: torch.Size) -> bool:
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[0] in (1, 3))


def _to_numpy(x: Tensor) -> Any:
    return x.detach().cpu().numpy()
