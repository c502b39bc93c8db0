"""The rate-distortion plane of a comparison as a figure for papers."""

import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyro_vae.compare.comparison import Comparison, Group
from pyro_vae.compare.factors import Factor
from pyro_vae.compare.formatting import MARK, UNITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "draw_figure", "render_figure"]

FORMATS = ("pdf", "svg")

_COLOURS = (
    "#2c6fbb", "#d9722b", "#2a9d6f", "#b5478f", "#c2a317", "#5a5fcf", "#c44545", "#3aa6b9",
    "#7a8b3a", "#8a6a54",
)  # fmt: skip
_MARKERS = "os^DvPX<>*"
_GREY = "#6b7280"

_LEGEND_COLUMNS = 3
_MAX_TEXT = 36
_CHARACTERS = 13
"""The characters of the legend for each inch of width."""


def draw_figure(
    comparison: Comparison,
    *,
    group: Group | None = None,
    factor: str | None = None,
    width: float = 3.3,
) -> "Figure":
    """Draws distortion over rate, with one point per run and lines of equal ELBO.

    Levels differ in colour and in marker. The figure has no title.

    Arguments:
        comparison: The comparison.
        group: The comparable set; by default the largest.
        factor: The name of the factor whose levels are distinguished; by default that with the
            most levels in the set.
        width: The width in inches; by default that of a column of two.

    Returns:
        A Matplotlib figure. :func:`render_figure` returns it as a file for papers.

    Raises:
        ValueError: If no run of the set has a rate and a distortion, no factor has this name, or
            the width is not between 1 and 20.

    Example:
        >>> from pyro_vae.compare import compare, draw_figure
        >>> comparison = compare(["multirun/priors"])  # doctest: +SKIP
        >>> draw_figure(comparison, factor="latent_dim", width=6.0)  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    if not isinstance(width, (int, float)) or not 1 <= width <= 20:
        raise ValueError(f"Expected width to be a number of inches from 1 to 20, got {width!r}")
    group = group or next(iter(comparison.groups), None)
    chosen = comparison.choose_factor(group, factor) if group else None
    points = _group_points(comparison, group, chosen) if group else {}
    if not points:
        raise ValueError(
            f"Expected finished runs with a rate and a distortion, got {comparison.count_states()}"
        )
    columns = _count_columns(points, width)
    rows = math.ceil(len(points) / columns)
    figure = Figure(figsize=(width, 0.8 * width + 0.17 * rows), layout="constrained")
    axes = figure.subplots()
    for index, (level, values) in enumerate(points.items()):
        axes.plot(
            *zip(*values, strict=True), _choose_marker(index), ms=4.5, alpha=0.9,
            color=_COLOURS[index % len(_COLOURS)], mec="white", mew=0.4,
            # Matplotlib leaves a label out of the legend if it starts with an underscore.
            label=f" {_shorten(level)}",
        )  # fmt: skip
    _label_axes(axes)
    _draw_contours(axes)
    if chosen and len(points) > 1:
        _add_legend(figure, axes, chosen.name, columns)
    return figure


def _group_points(
    comparison: Comparison, group: Group, factor: Factor | None
) -> dict[str, list[tuple[float, float]]]:
    """Returns the rates and distortions of the runs of a set, by the level of a factor."""
    levels = factor.levels_of(group.runs) if factor else [""]
    points: dict[str, list[tuple[float, float]]] = {level: [] for level in levels}
    for index in group.runs:
        rate, distortion = map(comparison.runs[index].number, ("rate", "distortion"))
        if rate is not None and distortion is not None:
            points[factor.by_run[index] if factor else ""].append((rate, distortion))
    return {level: values for level, values in points.items() if values}


def _label_axes(axes: "Axes") -> None:
    axes.set_xlabel(f"Rate ({UNITS['rate']})", fontsize=8)
    axes.set_ylabel(f"Distortion ({UNITS['distortion']})", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(0.08)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_contours(axes: "Axes") -> None:
    """Draws lines of equal ELBO, on which the sum of rate and distortion is constant."""
    from matplotlib.ticker import MaxNLocator

    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for total in MaxNLocator(6).tick_values(left + low, right + high):
        start, end = max(left, total - high), min(right, total - low)
        if end - start < 0.1 * (right - left):
            continue
        axes.plot(
            [start, end],
            [total - start, total - end],
            "--",
            color=_GREY,
            lw=0.6,
            alpha=0.6,
            zorder=1,
        )
        axes.text(
            start, total - start, f"  ELBO {-total:g}".replace("-", "\N{MINUS SIGN}"), fontsize=6,
            color=_GREY, rotation=-45, rotation_mode="anchor", transform_rotates_text=True,
            va="bottom", zorder=1,
        )  # fmt: skip
    axes.set(xlim=(left, right), ylim=(low, high))


def _choose_marker(index: int) -> str:
    """Returns a marker; with the colour it differs from those of a hundred levels."""
    return _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]


def _shorten(level: str) -> str:
    return level if len(level) <= _MAX_TEXT else f"{level[: _MAX_TEXT - 1]}…"


def _count_columns(levels: Iterable[str], width: float) -> int:
    """Returns the number of columns of the legend for which its longest entry has room."""
    longest = max(len(_shorten(level)) for level in levels)
    return max(1, min(_LEGEND_COLUMNS, int(_CHARACTERS * width / (longest + 4))))


def _add_legend(figure: "Figure", axes: "Axes", title: str, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, fontsize=7, frameon=False,
        handletextpad=0.1, columnspacing=1.0, borderaxespad=0.2, title=title, title_fontsize=7,
        alignment="left",
    )  # fmt: skip
    for text in [legend.get_title(), *legend.get_texts()]:
        text.set_parse_math(False)


def render_figure(figure: "Figure", form: str) -> bytes:
    """Returns the content of a file for papers, with fonts embedded as TrueType.

    Equal figures give equal files.

    Arguments:
        figure: The figure.
        form: ``"pdf"`` or ``"svg"``.

    Raises:
        ValueError: If the format is another one.
    """
    import matplotlib

    if form not in FORMATS:
        raise ValueError(f"Expected form to be one of {', '.join(FORMATS)}, got {form!r}")
    date = {"pdf": "CreationDate", "svg": "Date"}[form]
    stream = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": MARK}):
        figure.savefig(stream, format=form, metadata={"Creator": MARK, date: None})
    return stream.getvalue()
