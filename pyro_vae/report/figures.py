"""The pictures of a report: what each shows, and the arrays that it is drawn from."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from pyro_vae import evaluate, plots, report
from pyro_vae.collapse import ACTIVE_VARIANCE
from pyro_vae.data import Data
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.report.trained_run import Run
from pyro_vae.vae.vae import VAE

__all__ = ["pictures"]

_TSNE_ROWS = 1000
_PROPOSAL_ROWS = 100
_FEW_EPOCHS = 10
_SAMPLES = (1, 3, 10, 30, 100, 300, 1000, 3000)


def pictures(made: Run, metrics: dict[str, Any]) -> list[report.Picture]:
    """Returns the pictures of a run, those of images only where the data are images."""
    vae, (x, mask, _) = made.vae, made.data.test
    labels = labels_of(made.data)
    means = evaluate.posterior_means(vae, x, mask=mask)
    kl = metrics["kl_per_dimension"]
    listed: list[Callable[[], report.Picture]] = []
    if _is_image(vae.event_shape):
        listed += [partial(_reconstructions, vae, x), partial(_samples, vae)]
        listed.append(partial(_traversals, vae, means, kl))
        if vae.latent_dim == 2:
            listed.append(partial(_manifold, vae))
    if vae.event_shape == (2,):
        listed.append(partial(_plane, vae, x))
    listed.append(partial(_latent, means, labels))
    # t-SNE crashes on codes that are all the same, as a collapsed encoder's are.
    if vae.latent_dim > 2 and len(means) > 3 and bool((means[:_TSNE_ROWS].var(0) > 1e-6).any()):
        listed.append(partial(_neighbours, means, labels))
    if kl is not None:
        listed.append(partial(rates, kl, active_units(vae, x, mask)))
    most = made.cfg.evaluate.num_particles
    return _drawn([*listed, partial(_curves, made), partial(_proposals, vae, x, mask, most)])


def _drawn(listed: Sequence[Callable[[], report.Picture]]) -> list[report.Picture]:
    found = []
    with Progress("drawing", len(listed), "figures") as progress:
        for draw in listed:
            found.append(draw())
            progress.advance()
    return found


def labels_of(data: Data) -> Any:
    """Returns the labels of held-out data, by name where a picture has room for the names."""
    if data.labels is None:
        return None
    labels = _array(data.labels.test)
    if data.label_names is None or len(data.label_names) > plots.MAX_KINDS:
        return labels
    return np.array(data.label_names)[labels]


def _reconstructions(vae: VAE, x: Tensor) -> report.Picture:
    """Draws held-out data above what the VAE makes of them."""
    ax = _canvas(8, 1.9)
    plots.reconstructions(_array(x[:10]), _array(vae.reconstruct(x[:10])), ax=ax)
    caption = "Held-out data above, below the mean of p(x given z) at the mean of q(z given x)."
    return report.Picture("reconstructions.png", "Reconstructions", caption, _figure_of(ax))


def _samples(vae: VAE) -> report.Picture:
    """Draws means of p(x given z) for z from the prior."""
    ax = plots.samples(_array(vae.sample(40, mean=True)), ax=_canvas(5.6, 3.6))
    caption = "Means of p(x given z) for z drawn from the prior: no encoder is needed to generate."
    return report.Picture("samples.png", "Samples", caption, _figure_of(ax))


@torch.no_grad()
def _traversals(vae: VAE, means: Tensor, kl: list[float] | None) -> report.Picture:
    """Draws what changes along the dimensions that say most."""
    worth = means.var(0).cpu() if kl is None else torch.tensor(kl)
    order = worth.argsort(descending=True)[:6]
    values = torch.linspace(-3, 3, 11, dtype=means.dtype, device=means.device)
    z = means[0].repeat(len(order), len(values), 1)
    for row, dimension in enumerate(order):
        z[row, :, dimension] = values
    with eval_mode(vae):
        decoded = vae.decode(z.flatten(0, 1)).mean
    ax = plots.images(_array(decoded), columns=len(values), ax=_canvas(5.6, 3.4))
    caption = (
        f"The first held-out datum's code with one dimension moved from -3 to 3: dimensions "
        f"{', '.join(str(int(d) + 1) for d in order)}, from that of the highest rate down."
    )
    return report.Picture("traversals.png", "Traversals", caption, _figure_of(ax))


@torch.no_grad()
def _manifold(vae: VAE, side: int = 15) -> report.Picture:
    """Draws the decoder's means over the plane of a two-dimensional code."""
    quantiles = torch.linspace(0.02, 0.98, side)
    at = torch.special.ndtri(quantiles).to(next(vae.parameters()))
    z = torch.stack(torch.meshgrid(-at, at, indexing="ij"), -1).flip(-1)
    with eval_mode(vae):
        decoded = vae.decode(z.flatten(0, 1)).mean
    ax = plots.images(_array(decoded), columns=side, ax=_canvas(5.6, 5.6))
    caption = "Means of p(x given z) over the plane of z, at quantiles of a standard normal."
    return report.Picture("manifold.png", "Manifold", caption, _figure_of(ax))


def _plane(vae: VAE, x: Tensor) -> report.Picture:
    """Draws two-dimensional data among as many draws from the model."""
    points = torch.cat([x, vae.sample(len(x))])
    kinds = ["data"] * len(x) + ["model"] * len(x)
    ax = plots.latent(_array(points), kinds, ax=_canvas(5.6, 4.4))
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    legend = ax.get_legend()
    assert legend is not None
    legend.set_title("")
    caption = "Held-out data, and as many draws from the model."
    return report.Picture("plane.png", "Data and samples", caption, _figure_of(ax))


def _latent(means: Tensor, labels: Any) -> report.Picture:
    """Draws codes, as they are in two dimensions and by principal components in more."""
    ax = plots.latent(_array(means), labels, ax=_canvas(5.6, 4.4))
    caption = "Posterior means of held-out data" + (
        "." if labels is None else ", coloured by label, which the model never saw."
    )
    return report.Picture("latent.png", "Latent space", caption, _figure_of(ax))


def _neighbours(means: Tensor, labels: Any) -> report.Picture:
    """Draws codes by t-SNE, which keeps neighbours together."""
    some = _array(means[:_TSNE_ROWS])
    perplexity = min(30.0, (len(some) - 1) / 3)
    with threadpool_limits(torch.get_num_threads()):
        flat = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(some)
    ax = plots.latent(flat, None if labels is None else labels[:_TSNE_ROWS], ax=_canvas(5.6, 4.4))
    ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2")
    caption = f"{len(some):,} codes by t-SNE: neighbours mean something, distances do not."
    return report.Picture("tsne.png", "Latent space by t-SNE", caption, _figure_of(ax))


def active_units(vae: VAE, x: Tensor, mask: Tensor | None) -> Tensor | None:
    """Returns which dimensions are active, of rows with a value alone, as metrics count them."""
    if mask is not None:
        seen = mask.flatten(1).any(1)
        x, mask = x[seen], mask[seen]
    return evaluate.active_units(vae, x, mask=mask).cpu() if len(x) > 1 else None


def rates(kl: list[float], active: Tensor | None) -> report.Picture:
    """Draws the rate of each dimension, and which are active."""
    ax = plots.rates(kl, active=active, ax=_canvas(5.6, 3.2))
    caption = (
        f"KL of each dimension's marginal, in nats. A dimension is active if its posterior mean "
        f"varies over the data by more than {ACTIVE_VARIANCE:g} in variance."
    )
    return report.Picture("rates.png", "Rate by latent dimension", caption, _figure_of(ax))


def _curves(made: Run) -> report.Picture:
    """Draws the history."""
    history = made.result.history
    ax = plots.curves(history, ax=_canvas(5.6, 3.2))
    if "valid_elbo" in history[0]:
        caption = "The objective on training rows and the ELBO on validation rows, epoch by epoch."
    else:
        caption = "The objective on training rows, epoch by epoch; there are no validation rows."
    if len(history) <= _FEW_EPOCHS:
        values = ", ".join(f"{row['train_objective']:.2f}" for row in history)
        caption += f" The objective: {values}.".replace("-", "\N{MINUS SIGN}")
    return report.Picture("curves.png", "Training", caption, _figure_of(ax))


def _proposals(vae: VAE, x: Tensor, mask: Tensor | None, most: int) -> report.Picture:
    """Draws what the log evidence looks like without an encoder, and with it."""
    counts = [count for count in _SAMPLES if count <= max(most, _SAMPLES[2])]
    rows, seen = x[:_PROPOSAL_ROWS], None if mask is None else mask[:_PROPOSAL_ROWS]
    found = {
        f"z from the {proposal}": [
            float(_evidence(vae, rows, seen, count, proposal).mean()) for count in counts
        ]
        for proposal in ("posterior", "prior")
    }
    ax = plots.lines(counts, found, ax=_canvas(5.6, 3.2))
    ax.set(xlabel="samples for each datum", ylabel="log evidence, nats per datum", xscale="log")
    caption = (
        f"The log evidence of {len(rows)} held-out rows by importance sampling. Drawn from the "
        f"prior few z explain a given datum, and the estimate stays low; the encoder says where "
        f"to look."
    )
    return report.Picture("proposals.png", "Why the encoder is needed", caption, _figure_of(ax))


def _evidence(vae: VAE, rows: Tensor, mask: Tensor | None, count: int, proposal: str) -> Tensor:
    """Returns the log evidence by one proposal."""
    found = evaluate.log_evidence(vae, rows, count, proposal=proposal, mask=mask, progress=False)
    assert isinstance(found, Tensor)
    return found


def _canvas(width: float, height: float) -> Axes:
    """Returns the axes of a figure that no global state of matplotlib knows."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def _figure_of(ax: Axes) -> Figure:
    """Returns the figure that axes belong to."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def _is_image(event_shape: torch.Size) -> bool:
    """Tells whether a datum can be shown as a picture."""
    return len(event_shape) == 2 or (len(event_shape) == 3 and event_shape[0] in (1, 3))


def _array(x: Tensor) -> Any:
    """Returns a tensor as an array on the host."""
    return x.detach().cpu().numpy()
