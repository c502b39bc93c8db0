"""Plots of arrays on a matplotlib ``Axes``, which each function returns.

No function uses pyplot, or changes the current figure and backend. Without an ``ax`` a function
creates a new figure: ``plots.samples(x).figure``. A notebook shows it if the call ends a cell.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from pyro_vae.display.axes import NotebookAxes, NotebookFigure

__all__ = [
    "agreement",
    "curves",
    "histograms",
    "images",
    "latent",
    "lines",
    "rates",
    "reconstructions",
    "samples",
    "series",
]

_Array = NDArray[Any]
INK, GREY, LIGHT, BLUE, ORANGE = "#30353d", "#b4bac4", "#e6e8ec", "#2c6fbb", "#d9661f"
_MISSING = (0.93, 0.62, 0.55)  # For NaN pixels: a colour that is not grey.
MAX_KINDS = 20  # The size of the largest palette of distinct colours.


def images(x: ArrayLike, *, columns: int | None = None, ax: Axes | None = None) -> Axes:
    """Shows images in a grid, row by row.

    Arguments:
        x: Images of shape ``(N, H, W)``, ``(N, 1, H, W)`` or ``(N, 3, H, W)``. Values are clipped
            to [0, 1]; NaN is shown in a separate colour.
        columns: The number of images in a row. Default: more than the number of rows.
        ax: The axes to draw on.

    Raises:
        ValueError: If ``x`` does not contain images or ``columns`` is not positive.

    Example:
        >>> images(np.zeros((6, 1, 8, 8))).images[0].get_array().shape
        (17, 26, 4)
    """
    tiles = _as_tiles("x", x)
    default = min(len(tiles), int(np.ceil(np.sqrt(1.5 * len(tiles)))))
    columns = default if columns is None else columns
    if not isinstance(columns, Integral) or columns is True or columns < 1:
        raise ValueError(f"Expected columns to be a positive integer, got {columns!r}")
    columns = int(columns)
    ax = _create_axes(0.7 * columns, 0.7 * -(-len(tiles) // columns)) if ax is None else ax
    ax.imshow(_build_mosaic(tiles, columns))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def samples(x: ArrayLike, *, columns: int | None = None, ax: Axes | None = None) -> Axes:
    """Shows samples in a grid; the arguments are those of :func:`images`."""
    return images(x, columns=columns, ax=ax)


def reconstructions(x: ArrayLike, reconstructed: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Shows data in one row and their reconstructions in the row below.

    Arguments:
        x: Images, of a shape as in :func:`images`.
        reconstructed: The same number of images of the same size.
        ax: The axes to draw on.

    Raises:
        ValueError: If either does not contain images or the two differ in shape.
    """
    above, below = _as_tiles("x", x), _as_tiles("reconstructed", reconstructed)
    if above.shape != below.shape:
        shapes = f"{np.shape(x)}, got {np.shape(reconstructed)}"
        raise ValueError(f"Expected reconstructed of the shape of x, {shapes}")
    both = np.moveaxis(np.concatenate([above, below]), -1, 1)
    ax = images(both, columns=len(above), ax=ax)
    middle, last = (above.shape[1] - 1) / 2, ax.images[-1].get_size()[0] - 1
    ax.set_yticks([middle, last - middle], ["data", "reconstruction"])
    ax.tick_params(length=0, labelcolor=INK)
    return ax


def latent(codes: ArrayLike, labels: ArrayLike | None = None, *, ax: Axes | None = None) -> Axes:
    """Shows embeddings in a plane; more than two dimensions by two principal components.

    One dimension is spread along a line. The labels of principal axes show their share of the
    variance.

    Arguments:
        codes: Embeddings of shape ``(N, latent_dim)``.
        labels: Labels of shape ``(N,)``, shown by colour: integers, booleans or strings of up to 20
            kinds with a legend, other numbers with a colour bar; NaN for a missing number.
        ax: The axes to draw on.

    Raises:
        ValueError: If the embeddings are not a table of finite numbers or the labels do not fit.

    Example:
        >>> latent(np.eye(4, 2), labels=[0, 0, 1, 1]).get_xlabel()
        '$z_1$'
    """
    z = _as_numbers("codes", codes)
    if z.ndim != 2 or 0 in z.shape or not np.isfinite(z).all():
        got = f"{z.shape}, {np.count_nonzero(~np.isfinite(z))} values not finite"
        raise ValueError(f"Expected finite codes of shape (N, latent_dim), got {got}")
    kinds = None if labels is None else np.asarray(labels)
    if kinds is not None and kinds.shape != z.shape[:1]:
        raise ValueError(f"Expected labels of shape {z.shape[:1]}, got {kinds.shape}")
    points, x_label, y_label = project_to_plane(z)
    ax = _create_axes(5.6, 4.4) if ax is None else ax
    _scatter_points(ax, points, kinds)
    ax.set_aspect("equal" if y_label else "auto", adjustable="datalim")
    ax.yaxis.set_visible(bool(y_label))
    return tidy_axes(ax, xlabel=x_label, ylabel=y_label)


def curves(history: Sequence[Mapping[str, float]], *, ax: Axes | None = None) -> Axes:
    """Shows the training objective and the validation ELBO, in nats per datum, by epoch.

    Arguments:
        history: One row per epoch, with ``epoch``, ``train_objective`` and, with validation rows,
            ``valid_elbo``, whose best epoch is marked. For more than 20 epochs the lowest 5 % of
            the values lie below the frame, so that the others are readable.
        ax: The axes to draw on.

    Raises:
        ValueError: If there are no epochs.
    """
    if not isinstance(history, Sequence) or not history:
        raise ValueError(
            f"Expected history to have at least one epoch, got {history if history else 'none'}"
        )
    for row in history:
        if not isinstance(row, Mapping) or not {"epoch", "train_objective"} <= set(row):
            raise ValueError(
                f"Expected each row of history to have epoch and train_objective, got {row!r}"
            )
    ax = _create_axes(5.6, 3.6) if ax is None else ax
    epochs = np.array([row["epoch"] for row in history])
    dot = "o" if len(epochs) == 1 else ""
    train = np.array([row["train_objective"] for row in history])
    ax.plot(epochs, train, color=ORANGE, marker=dot, label="training objective")
    valid = np.array([row.get("valid_elbo", np.nan) for row in history])
    if np.isfinite(valid).any():
        ax.plot(epochs, valid, color=BLUE, marker=dot, label="validation ELBO")
        best = int(np.nanargmax(valid))
        label = f"best epoch: {epochs[best]:g}"
        ax.plot(epochs[best], valid[best], "o", color=BLUE, mec="white", ms=9, label=label)
    if len(epochs) > 20:
        ax.set_ylim(bottom=np.nanquantile(np.concatenate([train, valid]), 0.05))
    ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize="small")
    return tidy_axes(ax, xlabel="epoch", ylabel="nats per datum")


def lines(x: ArrayLike, series: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Axes:
    """Draws one line per series, with a legend.

    Arguments:
        x: The abscissas, of shape ``(N,)``.
        series: ``N`` values for each name.
        ax: The axes to draw on.

    Raises:
        ValueError: If the length of a series is not ``N``.

    Example:
        >>> [line.get_label() for line in lines([1, 2], {"a": [0.0, 1.0], "b": [1.0, 0.0]}).lines]
        ['a', 'b']
    """
    if not isinstance(series, Mapping):
        raise ValueError(f"Expected series to map names to values, got {type(series).__name__}")
    ax = _create_axes(5.6, 3.6) if ax is None else ax
    for (name, values), colour in zip(series.items(), (BLUE, ORANGE, INK, GREY), strict=False):
        if len(values) != np.size(x):
            raise ValueError(f"Expected {np.size(x)} values of {name!r}, got {len(values)}")
        ax.plot(x, values, color=colour, label=name, marker="o", markersize=3)
    ax.legend(frameon=False)
    return tidy_axes(ax, xlabel="", ylabel="")


def series(
    x: ArrayLike,
    fitted: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws series above each other, as dots, with fitted values as lines.

    Arguments:
        x: Series of shape ``(N, length)``.
        fitted: As many fitted values; ``None`` draws ``x`` as lines.
        mask: True where a value of ``x`` is observed; others are left out.
        ax: The axes to draw on.

    Raises:
        ValueError: If the shapes differ, or ``x`` has another number of dimensions.

    Example:
        >>> len(series(np.zeros((3, 10)), np.zeros((3, 10))).lines)
        6
    """
    values = _as_numbers("x", x)
    if values.ndim != 2:
        raise ValueError(f"Expected x of shape (N, length), got {values.shape}")
    lines_of = values if fitted is None else _as_numbers("fitted", fitted)
    observed = np.ones(values.shape, bool) if mask is None else np.asarray(mask, bool)
    for name, other in (("fitted", lines_of), ("mask", observed)):
        if other.shape != values.shape:
            raise ValueError(
                f"Expected {name} of the shape of x, {values.shape}, got {other.shape}"
            )
    ax = _create_axes(5.6, 0.6 * len(values) + 0.8) if ax is None else ax
    step = 2.2 * max(float(np.abs(values[observed]).max(initial=0.0)), 1e-9)
    for row in range(len(values)):
        steps, offset = np.arange(values.shape[1]), -row * step
        ax.plot(steps, lines_of[row] + offset, color=BLUE, linewidth=1)
        if fitted is not None:
            shown = observed[row]
            ax.plot(steps[shown], values[row][shown] + offset, ".", color=ORANGE, markersize=4)
    ax.set(yticks=[])
    return tidy_axes(ax, xlabel="step", ylabel="")


def agreement(
    observed: ArrayLike, generated: ArrayLike, *, log: bool = False, ax: Axes | None = None
) -> Axes:
    """Shows pairs of numbers as points, with the line on which both are equal.

    Arguments:
        observed: Numbers of shape ``(N,)``.
        generated: As many numbers.
        log: Whether both axes are logarithmic; pairs with a number that is not positive are left
            out.
        ax: The axes to draw on.

    Raises:
        ValueError: If the two differ in shape, or no pair is left.

    Example:
        >>> agreement([1, 2, 3], [1.1, 2.0, 2.7]).get_xlabel()
        'observed'
    """
    x, y = _as_numbers("observed", observed).ravel(), _as_numbers("generated", generated).ravel()
    if x.shape != y.shape:
        raise ValueError(f"Expected {x.size} numbers in generated, got {y.size}")
    shown = np.isfinite(x) & np.isfinite(y) & (((x > 0) & (y > 0)) | (not log))
    if not shown.any():
        raise ValueError("Expected pairs of finite numbers, got none")
    x, y = x[shown], y[shown]
    ax = _create_axes(4.4, 4.4) if ax is None else ax
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    ax.plot([low, high], [low, high], color=GREY, linewidth=1)
    ax.scatter(x, y, s=np.clip(4000 / len(x), 4, 24), color=BLUE, alpha=0.6, linewidths=0)
    if log:
        ax.set(xscale="log", yscale="log")
    return tidy_axes(ax, xlabel="observed", ylabel="generated")


def histograms(values: Mapping[str, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """Shows the histogram of each set of numbers as an outline, over common bins.

    Arguments:
        values: Numbers for each name.
        ax: The axes to draw on.

    Raises:
        ValueError: If there are no numbers.

    Example:
        >>> histograms({"data": [1.0, 2.0], "model": [1.0, 3.0]}).get_ylabel()
        'share of rows'
    """
    arrays = {name: _as_numbers(name, v).ravel() for name, v in values.items()}
    if not arrays or not all(a.size for a in arrays.values()):
        raise ValueError("Expected numbers for each name, got none")
    ax = _create_axes(5.6, 3.6) if ax is None else ax
    bins = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins=40).tolist()
    for (name, array), colour in zip(arrays.items(), (BLUE, ORANGE, INK, GREY), strict=False):
        weights = np.full(array.shape, 1 / array.size)
        ax.hist(array, bins, weights=weights, histtype="step", color=colour, label=name)
    ax.legend(frameon=False)
    return tidy_axes(ax, xlabel="", ylabel="share of rows")


def rates(
    kl_per_dimension: ArrayLike, *, active: ArrayLike | None = None, ax: Axes | None = None
) -> Axes:
    """Shows the KL of each latent dimension, in nats per datum, the largest first.

    Arguments:
        kl_per_dimension: The KL of each dimension, of shape ``(latent_dim,)``.
        active: Whether each dimension is active, from :func:`pyro_vae.evaluate.active_units`; the
            bars of the others are grey. Default: all bars have one colour.
        ax: The axes to draw on.

    Raises:
        ValueError: If there are no dimensions or the shape has more than one axis.
    """
    kl = _as_numbers("kl_per_dimension", kl_per_dimension)
    if kl.ndim != 1 or not kl.size:
        raise ValueError(f"Expected kl_per_dimension of shape (latent_dim,), got {kl.shape}")
    ax = _create_axes(5.6, 3.6) if ax is None else ax
    order, positions = np.argsort(-kl, kind="stable"), np.arange(len(kl))
    is_active = np.ones(len(kl), bool) if active is None else np.asarray(active)
    if is_active.shape != kl.shape or is_active.dtype != bool:
        raise ValueError(
            f"Expected active to be booleans of shape {kl.shape}, got {is_active.dtype} of shape "
            f"{is_active.shape}"
        )
    ax.bar(positions, kl[order], color=np.where(is_active[order], BLUE, GREY))
    step = -(-len(kl) // 25)
    ax.set_xticks(positions[::step], [str(dimension + 1) for dimension in order[::step]])
    ax.set_xlim(-0.7, len(kl) - 0.3)
    if active is not None:
        for color, group, text in ((BLUE, is_active, "active"), (GREY, ~is_active, "not active")):
            label = f"{text}: {group.sum()} of {len(kl)}"
            ax.scatter([], [], color=color, marker="s", label=label)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    return tidy_axes(ax, xlabel="latent dimension", ylabel="KL, nats per datum")


def _create_axes(width: float, height: float) -> Axes:
    """Returns the axes of a new figure of a size in inches, independent of pyplot."""
    figure = NotebookFigure(figsize=(max(width, 2), max(height, 1)), layout="constrained")
    return figure.add_subplot(axes_class=NotebookAxes)


def tidy_axes(ax: Axes, *, xlabel: str, ylabel: str) -> Axes:
    """Labels the axes, and removes the parts of the frame without data."""
    ax.set(xlabel=xlabel, ylabel=ylabel, axisbelow=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(color=GREY, labelcolor=INK)
    ax.grid(axis="y", color=LIGHT, linewidth=0.8)
    return ax


def _as_numbers(name: str, x: ArrayLike) -> _Array:
    """Returns an array of numbers, or raises a ``ValueError``."""
    try:
        return np.asarray(x, dtype=float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected {name} to be an array of numbers, got {type(x).__name__}: {error}"
        ) from error


def _as_tiles(name: str, x: ArrayLike) -> _Array:
    """Returns images as ``(N, H, W, 3)``, in [0, 1] or NaN."""
    pixels = _as_numbers(name, x)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"Expected {name} of shape (N[, 1 or 3], H, W), got {np.shape(x)}")
    channels_last = np.moveaxis(pixels.clip(0, 1), 1, -1)
    return np.broadcast_to(channels_last, (*channels_last.shape[:-1], 3))


def _build_mosaic(tiles: _Array, columns: int) -> _Array:
    """Arranges tiles in one image, ``(height, width, 4)``, with transparent gaps."""
    gap = max(1, round(max(tiles.shape[1:3]) / 14))
    height, width = tiles.shape[1] + gap, tiles.shape[2] + gap
    mosaic = np.zeros((-(-len(tiles) // columns) * height, columns * width, 4))
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        cell = mosaic[top : top + tile.shape[0], left : left + tile.shape[1]]
        cell[..., :3] = np.where(np.isnan(tile).any(-1, keepdims=True), _MISSING, tile)
        cell[..., 3] = 1
    return mosaic[:-gap, :-gap]


def project_to_plane(z: _Array) -> tuple[_Array, str, str]:
    """Projects embeddings to a plane; returns the points and the labels of both axes."""
    if z.shape[1] == 1:
        # Multiples of the golden ratio spread points evenly and deterministically.
        return np.column_stack([z[:, 0], np.arange(len(z)) * 0.6180339887 % 1]), "$z_1$", ""
    if z.shape[1] == 2 or len(z) == 1:
        return z[:, :2], "$z_1$", "$z_2$"
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):  # The total variance of equal embeddings is zero.
        points = pca.fit_transform(z)
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    names = [f"component {k} ({share:.0%} of variance)" for k, share in enumerate(shares, 1)]
    return points, names[0], names[1]


def _scatter_points(ax: Axes, points: _Array, labels: _Array | None) -> None:
    """Draws points in the order of the data, so that one label does not hide the others."""
    style: dict[str, Any] = {"s": np.clip(8000 / len(points), 4, 30), "alpha": 0.8, "linewidths": 0}
    if labels is None:
        ax.scatter(points[:, 0], points[:, 1], color=BLUE, **style)
        return
    labels = labels.astype(str) if labels.dtype.kind in "OS" else labels
    kinds, kind = np.unique(labels, return_inverse=True)
    if labels.dtype.kind == "U" and len(kinds) > MAX_KINDS:
        raise ValueError(f"Expected at most {MAX_KINDS} kinds of labels, got {len(kinds)}")
    if labels.dtype.kind == "f" or len(kinds) > MAX_KINDS:
        known = ~np.isnan(labels)
        artist = ax.scatter(points[known, 0], points[known, 1], c=labels[known], **style)
        ax.figure.colorbar(artist, ax=ax, label="label")
        if not known.all():
            ax.scatter(points[~known, 0], points[~known, 1], color=GREY, label="missing", **style)
            ax.legend(frameon=False)
        return
    palette = colormaps["tab10" if len(kinds) <= 10 else "tab20"]
    ax.scatter(points[:, 0], points[:, 1], color=palette(kind), **style)
    for index, name in enumerate(kinds):
        ax.scatter([], [], color=palette(index), label=str(name).replace("$", r"\$"))
    ax.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
