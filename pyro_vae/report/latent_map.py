"""The map of a report: embeddings in a plane, their data, and decoded points."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor

from pyro_vae import plots, report
from pyro_vae.data import Batch, Covariates
from pyro_vae.distributions.blocks import describe_support, find_centre, is_real_vector
from pyro_vae.evaluate import Evidence
from pyro_vae.masking import fill_missing
from pyro_vae.networks import eval_mode
from pyro_vae.report.count_figures import is_given_sum
from pyro_vae.report.drawing import shorten_text
from pyro_vae.report.latents import Latents, Projection
from pyro_vae.report.map_views import View, choose_view
from pyro_vae.report.trained_run import TrainedRun

__all__ = ["build_map"]

_MAX_ROWS = 1000
_MAX_ROW_BYTES = 1_500_000
"""The most bytes of data and reconstructions, before any compression."""

_MAX_GRID_BYTES = 350_000
_LEAST_SIDE, _MAX_SIDE = 5, 21
_CHUNK_VALUES = 2**22
_SHADES = 16
_MAX_COVARIATES = 12


@torch.no_grad()
def build_map(
    run: TrainedRun, latents: Latents, evidence: Evidence | None = None
) -> report.LatentMap:
    """Returns the map of held-out rows.

    Arguments:
        run: The run.
        latents: The embeddings of its held-out rows.
        evidence: The log evidence of the first rows that have observed values.
    """
    support = getattr(run.vae.posterior, "support", None)
    if getattr(support, "is_discrete", False):
        caption = f"There is no map, because {describe_support(support)} do not lie in a plane."
        return report.LatentMap(caption, None)
    view, projection = choose_view(run), latents.project()
    index = _choose_rows(run, len(projection.points), view)
    points = projection.points[index.cpu().numpy()]
    ranges = _find_ranges(points, bool(projection.y_label))
    for batch in _iterate_batches(run, index):
        view.add_rows(fill_missing(batch.x, batch.mask, torch.nan), _reconstruct(run, batch))
    reason = _explain_absence(run)
    side = 0 if reason else _choose_side(view)
    _decode_grid(run, view, ranges, side)
    data = {
        "x": _round(points[:, 0]),
        "y": _round(points[:, 1]),
        "ranges": ranges,
        "axes": [projection.x_label, projection.y_label],
        "row": _get_row_numbers(run, index),
        "evidence": _get_evidence(run, evidence, index),
        "side": side,
        **_describe_labels(run, latents.labels, index),
        "view": view.build(),
    }
    caption = _describe_map(run, len(index), projection)
    return report.LatentMap(f"{caption} {reason or _describe_grid(run, side)}", data)


def _choose_rows(run: TrainedRun, count: int, view: View) -> Tensor:
    """Returns the first rows with observed values, as many as the size of the page allows."""
    index = torch.arange(count, device=run.data.x.test.device)
    if run.data.mask is not None:
        observed = run.data.mask.test[:count].flatten(1).any(1)
        index = index[observed] if bool(observed.any()) else index
    return index[: max(1, min(_MAX_ROWS, _MAX_ROW_BYTES // (2 * view.size)))]


def _choose_side(view: View) -> int:
    """Returns the number of decoded points along each axis."""
    return max(_LEAST_SIDE, min(_MAX_SIDE, math.isqrt(_MAX_GRID_BYTES // view.size)))


def _find_ranges(points: Any, is_plane: bool) -> list[list[float]]:
    """Returns the limits of both axes, of equal length in a plane."""
    low, high = points.min(0).astype(float), points.max(0).astype(float)
    half = np.maximum(0.54 * (high - low), 0.05)
    if is_plane:
        half = np.full(2, half.max())
    middle = (low + high) / 2
    return np.stack([middle - half, middle + half], 1).tolist()


def _iterate_batches(run: TrainedRun, index: Tensor) -> Iterator[Batch]:
    for rows in index.split(_get_chunk_size(run)):
        yield run.data.test.batch(rows)


def _get_chunk_size(run: TrainedRun) -> int:
    return max(1, min(250, _CHUNK_VALUES // run.vae.event_shape.numel()))


def _reconstruct(run: TrainedRun, batch: Batch) -> Tensor:
    """Returns the mean of p(x given z) at the centre of q(z given x), at the sum of the row."""
    x, mask, covariates = batch
    with eval_mode(run.vae):
        q = run.vae.encode(x, covariates, mask)
        z = find_centre(q, getattr(run.vae.posterior, "support", None))
        p: Any = run.vae.decode(z, covariates)
        return p.at_size(x.flatten(1).sum(1)).mean if is_given_sum(run) else p.mean


def _explain_absence(run: TrainedRun) -> str:
    """Returns why no point of the map can be decoded; empty if it can."""
    support = getattr(run.vae.posterior, "support", None)
    if not is_real_vector(support):
        return (
            f"Points of the map cannot be decoded, because the latents lie on "
            f"{describe_support(support)}, not in a plane."
        )
    if run.vae.latent_dim != 2:
        return (
            f"Points of the map cannot be decoded, because the latent space has "
            f"{run.vae.latent_dim} dimensions; it needs 2."
        ).replace("1 dimensions", "1 dimension")
    return ""


def _decode_grid(run: TrainedRun, view: View, ranges: list[list[float]], side: int) -> None:
    """Decodes the points of a grid, from left to right, the lowest row first."""
    weight = next(run.vae.parameters())
    x, y = (torch.linspace(low, high, side).to(weight) for low, high in ranges)
    z = torch.cartesian_prod(y, x).flip(-1)
    _, _, covariates = run.data.test.batch(slice(1))
    with eval_mode(run.vae):
        for points in z.split(_get_chunk_size(run)) if side else ():
            view.add_grid(run.vae.decode(points, covariates).mean)


def _round(values: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


def _get_row_numbers(run: TrainedRun, index: Tensor) -> list[int]:
    numbers = run.data.row_numbers
    return (index.cpu() if numbers is None else numbers.test.cpu()[index.cpu()]).tolist()


def _get_evidence(
    run: TrainedRun, evidence: Evidence | None, index: Tensor
) -> list[float | None] | None:
    """Returns the log evidence of rows, ``None`` for those that were not evaluated."""
    if evidence is None:
        return None
    values = torch.full((len(run.data.x.test),), torch.nan)
    observed = torch.ones(len(values), dtype=torch.bool)
    if run.data.mask is not None:
        observed = run.data.mask.test.flatten(1).any(1).cpu()
    scored = observed.nonzero().flatten()[: len(evidence.log_evidence)]
    values[scored] = evidence.log_evidence.cpu().to(values)
    return [round(value, 3) for value in values[index.cpu()].tolist()]


def _describe_labels(run: TrainedRun, labels: Any, index: Tensor) -> dict[str, Any]:
    """Returns the label and colour of each row, and the legend, as in the other figures."""
    texts = None if run.data.labels is None else _list_labels(run, index)
    if labels is None:
        return {"palette": [plots.BLUE], "color": [0] * len(index), "legend": [], "label": texts}
    kinds, kind = np.unique(labels, return_inverse=True)
    if labels.dtype.kind == "f" or len(kinds) > plots.MAX_KINDS:
        colours, kind, legend = _build_scale(labels)
    else:
        colours = colormaps["tab10" if len(kinds) <= 10 else "tab20"](np.arange(len(kinds)))
        legend = [[shorten_text(str(name)), number] for number, name in enumerate(kinds)]
    rows = index.cpu().numpy()
    return {
        "palette": [to_hex(colour) for colour in colours],
        "color": kind[rows].tolist(),
        "legend": legend,
        "label": texts,
    }


def _build_scale(labels: Any) -> tuple[Any, Any, list[list[Any]]]:
    """Returns shades, the shade of each number, and the legend; grey for missing numbers."""
    low, high = np.nanmin(labels), np.nanmax(labels)
    missing = np.isnan(labels)
    share = np.where(missing, 0, labels - low) / max(high - low, 1e-12)
    kind = np.where(missing, _SHADES, np.round(share * (_SHADES - 1))).astype(int)
    shades = colormaps["viridis"](np.linspace(0, 1, _SHADES))
    legend = [[f"{low:.6g}", 0], [f"{high:.6g}", _SHADES - 1]]
    if missing.any():
        legend.append(["missing", _SHADES])
    return [*shades, plots.GREY], kind, legend


def _list_labels(run: TrainedRun, index: Tensor) -> list[str]:
    assert run.data.labels is not None
    return [_name_label(run, label) for label in run.data.labels.test.cpu()[index.cpu()].tolist()]


def _name_label(run: TrainedRun, label: Any) -> str:
    """Returns the name of a label, which may be its number."""
    if run.data.label_names is not None:
        label = run.data.label_names[int(label)]
    return f"{label:.6g}" if isinstance(label, float) else shorten_text(str(label))


def _describe_map(run: TrainedRun, count: int, projection: Projection) -> str:
    what = "Latent means" if projection.x_label.startswith("z") else "Projected latent means"
    if not projection.y_label:
        what += ", spread along the vertical axis without meaning,"
    place = "in their source" if run.data.row_numbers is not None else "among the held-out rows"
    total = len(run.data.x.test)
    rows = f"{count:,}" if count == total else f"the first {count:,} of {total:,}"
    return (
        f"{what} of {rows} held-out rows; row numbers count from 0 {place}. Point at a row, tap "
        f"it, or use the arrow keys, to see the datum and its reconstruction."
    )


def _describe_grid(run: TrainedRun, side: int) -> str:
    text = (
        f"Drag, tap, or press shift and an arrow key, to decode another point, from a grid of "
        f"{side} x {side} decoded points"
    )
    if is_given_sum(run):
        text += ", at the median row sum of the training rows"
    covariates = run.data.test.covariates
    if covariates is None:
        return f"{text}."
    columns = run.data.covariate_columns
    values = "" if columns is None else f", {_describe_covariates(columns, covariates[0])}"
    return f"{text}, at the covariates of the first held-out row{values}."


def _describe_covariates(columns: Covariates, encoded: Tensor) -> str:
    """Returns the values of the first covariates, as in their table."""
    texts = []
    for column, part in zip(
        columns.columns, encoded.split([c.dim for c in columns.columns]), strict=True
    ):
        value = part[0].item() * column.scale + column.loc
        shown = column.levels[int(part.argmax())] if column.levels else f"{value:.6g}"
        texts.append(f"{column.name} = {shown}")
    more = len(texts) - _MAX_COVARIATES
    return ", ".join(texts[:_MAX_COVARIATES]) + (f" and {more} others" if more > 0 else "")
