"""Plots: arrays in, an ``Axes`` out.

None touches pyplot, or the figure and backend that its caller is using. Without an ``ax`` each
makes a figure of its own: ``plots.samples(x).figure``.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

__all__ = ["curves", "images", "latent", "lines", "rates", "reconstructions", "samples"]

_Array = NDArray[Any]
INK, GREY, LIGHT, BLUE, ORANGE = "#30353d", "#b4bac4", "#e6e8ec", "#2c6fbb", "#d9661f"
_MISSING = (0.93, 0.62, 0.55)  # A colour that no grey scale holds, for pixels that are NaN.
MAX_KINDS = 20  # As many as colours can tell apart.


def images(x: ArrayLike, *, columns: int | None = None, ax: Axes | None = None) -> Axes:
    """Shows images in a grid, row by row.

    Arguments:
        x: Images of shape ``(N, H, W)``, ``(N, 1, H, W)`` or ``(N, 3, H, W)``. Values are clipped
            to [0, 1]; those that are NaN are shown in a colour of their own.
        columns: The number of images side by side; by default more than there are rows.
        ax: Where to draw.

    Raises:
        ValueError: If ``x`` is not images or ``columns`` is not positive.

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
    ax = _new_axes(0.7 * columns, 0.7 * -(-len(tiles) // columns)) if ax is None else ax
    ax.imshow(_mosaic(tiles, columns))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def samples(x: ArrayLike, *, columns: int | None = None, ax: Axes | None = None) -> Axes:
    """Shows samples in a grid; all as in :func:`images`."""
    return images(x, columns=columns, ax=ax)


def reconstructions(x: ArrayLike, reconstructed: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Shows data in one row and what became of each below it.

    Arguments:
        x: Images, of a shape as in :func:`images`.
        reconstructed: As many images of the same size.
        ax: Where to draw.

    Raises:
        ValueError: If either is not images or the two differ in shape.
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
    """Shows codes in a plane: two dimensions as they are, one along a line, more by two components.

    The axes of principal components say which share of the variance each explains.

    Arguments:
        codes: Codes of shape ``(N, latent_dim)``.
        labels: Labels of shape ``(N,)`` to colour by: integers, booleans or strings of up to 20
            kinds with a legend, other numbers with a colour bar.
        ax: Where to draw.

    Raises:
        ValueError: If the codes are not a table of finite numbers or the labels do not fit them.

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
    points, x_label, y_label = _plane(z)
    ax = _new_axes(5.6, 4.4) if ax is None else ax
    _scatter(ax, points, kinds)
    ax.set_aspect("equal" if y_label else "auto", adjustable="datalim")
    ax.yaxis.set_visible(bool(y_label))
    return tidy(ax, xlabel=x_label, ylabel=y_label)


def curves(history: Sequence[Mapping[str, float]], *, ax: Axes | None = None) -> Axes:
    """Shows the training objective and the validation ELBO, in nats per datum, by epoch.

    Arguments:
        history: One row an epoch, with ``epoch``, ``train_objective`` and, where there are
            validation rows, ``valid_elbo``, whose best epoch is marked. Of more than 20 epochs
            the lowest twentieth of values lies below the frame, to leave room for the others.
        ax: Where to draw.

    Raises:
        ValueError: If there is no epoch.
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
    ax = _new_axes(5.6, 3.6) if ax is None else ax
    epochs = np.array([row["epoch"] for row in history])
    dot = "o" if len(epochs) == 1 else ""
    train = np.array([row["train_objective"] for row in history])
    ax.plot(epochs, train, color=ORANGE, marker=dot, label="training objective")
    valid = np.array([row.get("valid_elbo", np.nan) for row in history])
    if np.isfinite(valid).any():
        ax.plot(epochs, valid, color=BLUE, marker=dot, label="validation ELBO")
        at = int(np.nanargmax(valid))
        label = f"best epoch: {epochs[at]:g}"
        ax.plot(epochs[at], valid[at], "o", color=BLUE, mec="white", ms=9, label=label)
    if len(epochs) > 20:
        ax.set_ylim(bottom=np.nanquantile(np.concatenate([train, valid]), 0.05))
    ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize="small")
    return tidy(ax, xlabel="epoch", ylabel="nats per datum")


def lines(x: ArrayLike, series: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Axes:
    """Draws one line a series, named in a legend.

    Arguments:
        x: Where the values lie, of shape ``(N,)``.
        series: For each name ``N`` values.
        ax: Where to draw.

    Raises:
        ValueError: If a series has another length.

    Example:
        >>> [line.get_label() for line in lines([1, 2], {"a": [0.0, 1.0], "b": [1.0, 0.0]}).lines]
        ['a', 'b']
    """
    if not isinstance(series, Mapping):
        raise ValueError(f"Expected series to be values by name, got {type(series).__name__}")
    ax = _new_axes(5.6, 3.6) if ax is None else ax
    for (name, values), colour in zip(series.items(), (BLUE, ORANGE, INK, GREY), strict=False):
        if len(values) != np.size(x):
            raise ValueError(f"Expected {np.size(x)} values of {name!r}, got {len(values)}")
        ax.plot(x, values, color=colour, label=name, marker="o", markersize=3)
    ax.legend(frameon=False)
    return tidy(ax, xlabel="", ylabel="")


def rates(
    kl_per_dimension: ArrayLike, *, active: ArrayLike | None = None, ax: Axes | None = None
) -> Axes:
    """Shows the KL of each latent dimension, in nats per datum, the largest first.

    Arguments:
        kl_per_dimension: The KL of each dimension, of shape ``(latent_dim,)``.
        active: Which dimensions are active, as :func:`pyro_vae.evaluate.active_units` returns it;
            the bars of the others are grey. Default: all bars have one colour.
        ax: Where to draw.

    Raises:
        ValueError: If there is no dimension or the shape has more than one axis.
    """
    kl = _as_numbers("kl_per_dimension", kl_per_dimension)
    if kl.ndim != 1 or not kl.size:
        raise ValueError(f"Expected kl_per_dimension of shape (latent_dim,), got {kl.shape}")
    ax = _new_axes(5.6, 3.6) if ax is None else ax
    order, place = np.argsort(-kl, kind="stable"), np.arange(len(kl))
    used = np.ones(len(kl), bool) if active is None else np.asarray(active)
    if used.shape != kl.shape or used.dtype != bool:
        raise ValueError(
            f"Expected active to be booleans of shape {kl.shape}, got {used.dtype} of shape "
            f"{used.shape}"
        )
    ax.bar(place, kl[order], color=np.where(used[order], BLUE, GREY))
    step = -(-len(kl) // 25)
    ax.set_xticks(place[::step], [str(dimension + 1) for dimension in order[::step]])
    ax.set_xlim(-0.7, len(kl) - 0.3)
    if active is not None:
        for color, count, word in ((BLUE, used, "active"), (GREY, ~used, "not active")):
            label = f"{word}: {count.sum()} of {len(kl)}"
            ax.scatter([], [], color=color, marker="s", label=label)
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    return tidy(ax, xlabel="latent dimension", ylabel="KL, nats per datum")


def _new_axes(width: float, height: float) -> Axes:
    """Returns the axes of a figure, sized in inches, that pyplot does not know."""
    return Figure(figsize=(max(width, 2), max(height, 1)), layout="constrained").add_subplot()


def tidy(ax: Axes, *, xlabel: str, ylabel: str) -> Axes:
    """Names the axes and takes from the frame what shows no data."""
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
    found = _as_numbers(name, x)
    found = found[:, None] if found.ndim == 3 else found
    if found.ndim != 4 or found.shape[1] not in (1, 3) or 0 in found.shape:
        raise ValueError(f"Expected {name} of shape (N[, 1 or 3], H, W), got {np.shape(x)}")
    last = np.moveaxis(found.clip(0, 1), 1, -1)
    return np.broadcast_to(last, (*last.shape[:-1], 3))


def _mosaic(tiles: _Array, columns: int) -> _Array:
    """Returns one image of many, ``(height, width, 4)``, transparent between them."""
    gap = max(1, round(max(tiles.shape[1:3]) / 14))
    height, width = tiles.shape[1] + gap, tiles.shape[2] + gap
    found = np.zeros((-(-len(tiles) // columns) * height, columns * width, 4))
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        part = found[top : top + tile.shape[0], left : left + tile.shape[1]]
        part[..., :3] = np.where(np.isnan(tile).any(-1, keepdims=True), _MISSING, tile)
        part[..., 3] = 1
    return found[:-gap, :-gap]


def _plane(z: _Array) -> tuple[_Array, str, str]:
    """Returns points of a plane for codes, and what its two axes are."""
    if z.shape[1] == 1:
        # Multiples of the golden ratio spread points evenly, the same way each time.
        return np.column_stack([z[:, 0], np.arange(len(z)) * 0.6180339887 % 1]), "$z_1$", ""
    if z.shape[1] == 2 or len(z) == 1:
        return z[:, :2], "$z_1$", "$z_2$"
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):  # Codes that are all alike have no variance to share.
        points = pca.fit_transform(z)
    shares = np.nan_to_num(pca.explained_variance_ratio_)
    names = [f"component {k} ({share:.0%} of variance)" for k, share in enumerate(shares, 1)]
    return points, names[0], names[1]


def _scatter(ax: Axes, points: _Array, labels: _Array | None) -> None:
    """Draws points in the order of the data, so that no label hides the others."""
    style: dict[str, Any] = {"s": np.clip(8000 / len(points), 4, 30), "alpha": 0.8, "linewidths": 0}
    if labels is None:
        ax.scatter(points[:, 0], points[:, 1], color=BLUE, **style)
        return
    labels = labels.astype(str) if labels.dtype.kind in "OS" else labels
    kinds, kind = np.unique(labels, return_inverse=True)
    if labels.dtype.kind == "U" and len(kinds) > MAX_KINDS:
        raise ValueError(f"Expected at most {MAX_KINDS} kinds of labels, got {len(kinds)}")
    if labels.dtype.kind == "f" or len(kinds) > MAX_KINDS:
        drawn = ax.scatter(points[:, 0], points[:, 1], c=labels, **style)
        ax.figure.colorbar(drawn, ax=ax, label="label")
        return
    palette = colormaps["tab10" if len(kinds) <= 10 else "tab20"]
    ax.scatter(points[:, 0], points[:, 1], color=palette(kind), **style)
    for index, name in enumerate(kinds):
        ax.scatter([], [], color=palette(index), label=str(name).replace("$", r"\$"))
    ax.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
