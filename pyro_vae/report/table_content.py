"""Tables in a report: observed columns beside generated ones, gaps, and outliers."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats
from torch import Tensor

from pyro_vae import evaluate, plots, report
from pyro_vae.data import Column, Schema
from pyro_vae.evaluate import Evidence
from pyro_vae.masking import fill_missing
from pyro_vae.networks import eval_mode
from pyro_vae.report.drawing import create_axes, get_figure, to_numpy
from pyro_vae.report.trained_run import TrainedRun
from pyro_vae.transforms import Columns as ColumnsTransform
from pyro_vae.validation import list_names

__all__ = [
    "ColumnFit",
    "draw_table",
    "fit_columns",
    "format_cell",
    "get_schema",
    "is_table",
    "list_columns",
    "list_outliers",
    "warn_of_columns",
]

_ROWS = 2000
"""The most held-out rows that are compared, and the number of generated ones."""

_PANELS = 12
_BINS = 30
_NAMED_PAIRS = 4
_MAX_LISTED = 50
_OUTLIERS = 10

_KS_QUANTILE = 1.3581
"""The asymptotic 95 % quantile of the scaled Kolmogorov-Smirnov distance."""

_REPLICATES = 500

_LEVEL = 0.01
"""The level of the test of the number of columns beyond their limit."""


class ColumnFit(NamedTuple):
    """A column of held-out rows beside the same column of generated rows.

    Attributes:
        column: Its name and kind.
        observed: The observed values, without gaps, in the units of the table.
        generated: The generated values.
        distance: The Kolmogorov-Smirnov distance of numbers, the total variation of codes.
        band: The 95 % quantile of the distance of samples of these sizes from one distribution.
    """

    column: Column
    observed: Any
    generated: Any
    distance: float
    band: float

    @property
    def excess(self) -> float:
        """The distance relative to the band; above 1 the columns differ."""
        return self.distance / self.band


def is_table(run: TrainedRun) -> bool:
    """Whether the data are a table of named columns other than counts."""
    is_count = getattr(run.vae.likelihood, "is_count", False)
    return run.data.columns is not None and len(run.vae.event_shape) == 1 and not is_count


@torch.no_grad()
def fit_columns(run: TrainedRun) -> list[ColumnFit]:
    """Returns all columns of a table, the worst fitted first."""
    observed, generated = _get_rows(run)
    fits = []
    for index, column in enumerate(get_schema(run).columns):
        x, y = observed[:, index], generated[:, index]
        x = x[~np.isnan(x)]
        if len(x):
            fits.append(ColumnFit(column, x, y, *_measure(column, x, y)))
    return sorted(fits, key=lambda fit: -fit.excess)


def get_schema(run: TrainedRun) -> Schema:
    """Returns the columns; those of a table of numbers are all real."""
    if run.data.schema is not None:
        return run.data.schema
    return Schema(tuple(Column(name, "real") for name in run.data.columns or ()))


def _get_rows(run: TrainedRun) -> tuple[Any, Any]:
    """Returns held-out rows with NaN for gaps, and generated rows, in the units of the table."""
    x, mask, covariates = run.data.test.batch(slice(_ROWS))
    x = fill_missing(x.double(), mask, torch.nan)
    if covariates is None:
        y = run.vae.sample(_ROWS)
    else:
        # Each held-out row gives its covariates to as many generated ones.
        copies = math.ceil(_ROWS / len(x))
        y = run.vae.sample(copies, covariates=covariates).flatten(0, 1)[:_ROWS]
    y = y.double()
    if run.data.scaling is not None:
        x, y = run.data.scaling.undo(x), run.data.scaling.undo(y)
    return to_numpy(x), to_numpy(y)


def _measure(column: Column, x: Any, y: Any) -> tuple[float, float]:
    """Returns the distance of two samples, and the 95 % quantile under one distribution."""
    if not column.is_coded:
        distance = stats.ks_2samp(x, y).statistic
        return float(distance), _KS_QUANTILE * math.sqrt(1 / len(x) + 1 / len(y))
    levels = len(column.levels)
    counts = [np.bincount(values.astype(int), minlength=levels) for values in (x, y)]
    shares = [count / count.sum() for count in counts]
    pooled = (counts[0] + counts[1]) / (len(x) + len(y))
    rng = np.random.default_rng(0)
    draws = [rng.multinomial(n, pooled, _REPLICATES) / n for n in (len(x), len(y))]
    null = np.abs(draws[0] - draws[1]).sum(1) / 2
    distance = np.abs(shares[0] - shares[1]).sum() / 2
    return float(distance), float(max(np.quantile(null, 0.95), 1e-12))


def warn_of_columns(fits: Sequence[ColumnFit]) -> list[str]:
    """Returns a warning if more columns exceed their limit than chance explains."""
    beyond = [fit.column.name for fit in fits if fit.excess > 1]
    if not beyond or stats.binom.sf(len(beyond) - 1, len(fits), 0.05) >= _LEVEL:
        return []
    return [
        f"Generated values differ from held-out ones in {len(beyond)} of {len(fits)} columns, most "
        f"in {list_names(beyond)}: see the columns below."
    ]


def draw_table(run: TrainedRun, fits: list[ColumnFit]) -> list[Callable[[], report.Figure]]:
    """Returns functions that draw columns, correlations and gaps."""
    draws: list[Callable[[], report.Figure]] = [partial(_draw_columns, fits)]
    if len(fits) > 1:
        draws.append(partial(_draw_correlations, run))
    if run.data.mask is not None and not bool(run.data.mask.train.all()):
        draws.append(partial(_draw_gaps, run))
    return draws


def _draw_columns(fits: list[ColumnFit]) -> report.Figure:
    shown = fits[:_PANELS]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.3 * rows), layout="constrained")
    for number, fit in enumerate(shown):
        ax = figure.add_subplot(rows, columns, number + 1)
        _draw_column(ax, fit)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    which = "All columns" if len(shown) == len(fits) else f"The {len(shown)} worst-fitted columns"
    caption = (
        f"{which}: held-out values beside generated ones, the worst fitted first. In brackets: "
        f"distance / its 95 % quantile for samples of one distribution."
    )
    return report.Figure("columns.png", "Columns", caption, figure)


def _draw_column(ax: Any, fit: ColumnFit) -> None:
    column, series = fit.column, {"observed": fit.observed, "generated": fit.generated}
    if column.is_coded:
        places = np.arange(len(column.levels))
        for shift, (name, values), color in zip(
            (-0.2, 0.2), series.items(), (plots.BLUE, plots.ORANGE), strict=True
        ):
            shares = np.bincount(values.astype(int), minlength=len(places)) / len(values)
            ax.bar(places + shift, shares, 0.4, color=color, label=name)
        if len(places) <= 8:
            ax.set_xticks(places, [level[:10] for level in column.levels], fontsize=7)
    else:
        # A few extreme draws must not hide the rest.
        low, high = np.quantile(fit.observed, [0.0, 1.0])
        bins = _choose_bins(column, low, high)
        for (name, values), color in zip(series.items(), (plots.BLUE, plots.ORANGE), strict=True):
            weights = np.full(len(values), 1 / len(values))
            ax.hist(values, bins, weights=weights, histtype="step", color=color, label=name)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_title(f"{column.name[:24]} [{fit.distance:.2f} / {fit.band:.2f}]", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def _choose_bins(column: Column, low: float, high: float) -> Any:
    """Returns the edges of bins: around equally many integers for counts."""
    if column.kind == "count":
        width = max(1, round((high - low) / _BINS))
        return np.arange(low - width - 0.5, high + 2 * width, width)
    margin = 0.1 * (high - low) or 1.0
    first = max(0.0, low - margin) if column.kind == "positive" else low - margin
    return np.linspace(first, high + margin, _BINS)


def _draw_correlations(run: TrainedRun) -> report.Figure:
    observed, generated = (_correlate(run, rows) for rows in _get_rows(run))
    known = ~(np.isnan(observed) | np.isnan(generated))
    x, y = observed[known], generated[known]
    pairs = [pair for pair, is_known in zip(_name_pairs(run), known, strict=True) if is_known]
    ax = plots.agreement(x, y, ax=create_axes(5.2, 4.8))
    ax.set(xlabel="observed correlation", ylabel="generated correlation")
    for index in np.argsort(-np.abs(x - y))[:_NAMED_PAIRS]:
        ax.annotate(pairs[index], (x[index], y[index]), fontsize=6, textcoords="offset points",
                    xytext=(4, -3))  # fmt: skip
    caption = (
        "The correlations of all pairs of columns, in held-out and in generated rows; the pairs "
        "that differ most are named. Logarithms stand for positive numbers and counts, indicators "
        "for categories."
    )
    return report.Figure("correlations.png", "Correlations", caption, get_figure(ax))


def _correlate(run: TrainedRun, rows: Any) -> Any:
    """Returns the correlations of all pairs of different columns."""
    import pandas

    schema = get_schema(run)
    transform = _get_transform(schema)
    x = torch.as_tensor(rows)
    mask = ~x.isnan()
    inputs = transform(fill_missing(x, mask, 1.0))
    inputs = torch.where(transform.expand_mask(mask), inputs, torch.nan)
    matrix = pandas.DataFrame(to_numpy(inputs)).corr().to_numpy()
    return np.array([matrix[pair] for pair in _list_pairs(transform)])


def _get_transform(schema: Schema) -> Any:
    return ColumnsTransform((len(schema.columns),), columns=schema).double()


def _list_pairs(transform: Any) -> list[tuple[int, int]]:
    """Returns the pairs of encoded values of different columns."""
    owners = torch.cat([transform.numeric, transform.coded]).tolist()
    size = len(owners)
    return [(i, j) for i in range(size) for j in range(i + 1, size) if owners[i] != owners[j]]


def _name_pairs(run: TrainedRun) -> list[str]:
    """Returns the names of these pairs."""
    schema = get_schema(run)
    transform = _get_transform(schema)
    names = [schema.columns[i].name[:16] for i in transform.numeric.tolist()]
    for i, level in zip(transform.coded.tolist(), transform.level.tolist(), strict=True):
        column = schema.columns[i]
        names.append(f"{column.name[:12]}={column.levels[int(level)][:12]}")
    return [f"{names[i]}, {names[j]}" for i, j in _list_pairs(transform)]


def _draw_gaps(run: TrainedRun) -> report.Figure:
    assert run.data.mask is not None
    shares = to_numpy(1 - run.data.mask.train.double().mean(0))
    order = [i for i in np.argsort(-shares) if shares[i] > 0][:_MAX_LISTED]
    names = [(run.data.columns or ())[i][:30] for i in order]
    ax = create_axes(5.6, 0.8 + 0.24 * len(order))
    ax.barh(names[::-1], shares[order][::-1], color=plots.BLUE)
    ax.tick_params(labelsize=8)
    plots.tidy_axes(ax, xlabel="share of missing values", ylabel="")
    caption = "The share of missing values in the training rows."
    return report.Figure("missing.png", "Missing values", caption, get_figure(ax))


def list_columns(run: TrainedRun, fits: list[ColumnFit]) -> report.Table:
    """Returns the table of the columns with their kinds, likelihoods and fit."""
    names = run.data.columns or ()
    mask = run.data.mask
    missing = torch.zeros(len(names)) if mask is None else 1 - mask.train.double().mean(0)
    share = dict(zip(names, missing.tolist(), strict=True))
    families = _name_families(run)
    rows = [
        (
            fit.column.name,
            fit.column.kind,
            families[fit.column.name],
            f"{share[fit.column.name]:.1%}",
            f"{fit.distance:.3f}",
            f"{fit.band:.3f}",
        )
        for fit in fits[:_MAX_LISTED]
    ]
    caption = (
        "The worst fitted first. The distance of held-out from generated values is that of "
        "Kolmogorov and Smirnov for numbers, and the total variation for categories. Samples of "
        "one distribution stay below the limit in 95 % of cases."
    )
    header = ("Column", "Kind", "Likelihood", "Missing", "Distance", "Limit")
    return report.Table("Columns", caption, header, rows)


def _name_families(run: TrainedRun) -> dict[str, str]:
    likelihood = run.vae.likelihood
    families = getattr(likelihood, "family_names", None)
    if families is None:
        return dict.fromkeys(run.data.columns or (), type(likelihood).__name__)
    return dict(families)


@torch.no_grad()
def list_outliers(run: TrainedRun, evidence: Evidence) -> report.Table:
    """Returns the table of the least likely held-out rows, with their most surprising values."""
    count = len(evidence.log_evidence)
    x, mask, covariates = run.data.test.batch(slice(None))
    if mask is not None:
        kept = mask.any(1)
        x, mask = x[kept], mask[kept]
        covariates = None if covariates is None else covariates[kept]
    x, c = x[:count], None if covariates is None else covariates[:count]
    mask = None if mask is None else mask[:count]
    surprise = _measure_surprise(run, x, mask, c)
    order = evidence.log_evidence.argsort()[:_OUTLIERS].tolist()
    numbers = _get_row_numbers(run)[:count]
    rows = [
        (
            str(numbers[row]),
            f"{evidence.log_evidence[row].item():.2f}",
            ", ".join(_describe_values(run, x[row], surprise[row])),
        )
        for row in order
    ]
    caption = (
        "The held-out rows with the least log evidence, and their two least likely values given "
        "the mean embedding, with their log density relative to the mean of their column, in nats. "
        "Rows are counted from 0 in the file."
    )
    return report.Table("Least likely rows", caption, ("Row", "Log evidence", "Values"), rows)


def _get_row_numbers(run: TrainedRun) -> list[int]:
    numbers = run.data.row_numbers
    rows = torch.arange(len(run.data.x.test)) if numbers is None else numbers.test
    if run.data.mask is not None:
        rows = rows[run.data.mask.test.any(1).to(rows.device)]
    return rows.tolist()


def _measure_surprise(
    run: TrainedRun, x: Tensor, mask: Tensor | None, covariates: Tensor | None
) -> Tensor:
    """Returns the log density of each value below the mean of its column, in nats."""
    vae = run.vae
    with eval_mode(vae):
        z = evaluate.posterior_means(vae, x, covariates=covariates, mask=mask)
        p = vae.decode(z, covariates)
    filled = fill_missing(x, mask, vae.guide.fill_value)
    if not isinstance(p, torch.distributions.Independent):
        return torch.zeros_like(x)
    scores = p.base_dist.log_prob(filled).double()
    scores = fill_missing(scores, mask, torch.nan)
    return (scores.nanmean(0) - scores).nan_to_num(nan=-torch.inf)


def _describe_values(run: TrainedRun, x: Tensor, surprise: Tensor) -> list[str]:
    """Returns the two most surprising values of a row, with their columns."""
    columns = get_schema(run).columns
    values = x.double() if run.data.scaling is None else run.data.scaling.undo(x.double())
    texts = []
    for index in surprise.argsort(descending=True)[:2].tolist():
        if surprise[index].isfinite() and surprise[index] > 0:
            column = columns[index]
            shown = format_cell(column, values[index].item())
            texts.append(f"{column.name} = {shown} (\N{MINUS SIGN}{surprise[index]:.1f})")
    return texts


def format_cell(column: Column, value: float) -> str:
    """Returns a value of a column as text; a mean of codes becomes the nearest level."""
    return column.levels[round(value)] if column.is_coded else f"{value:.6g}"
