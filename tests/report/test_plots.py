"""Plots show what they are given, and leave pyplot alone."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from pyro_vae import plots

DIGITS = load_digits()
X = DIGITS.images / 16
HISTORY = [
    {"epoch": e, "train_objective": -15 - 40 / e, "valid_elbo": -18 - 30 / e - 0.1 * e}
    for e in range(1, 41)
]


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def drawn(ax):
    """Draws an ``Axes`` in full, which is where matplotlib finds most faults, and returns it."""
    assert isinstance(ax, Axes)
    ax.figure.savefig(io.BytesIO(), format="png", dpi=50)
    return ax


def shown(ax):
    """Returns the pixels of the image of an ``Axes``, and which of them belong to a picture."""
    pixels = np.asarray(ax.images[0].get_array())
    return pixels[..., :3], pixels[..., 3] == 1


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize(
    "plot",
    [
        lambda ax: plots.images(X[:5], ax=ax),
        lambda ax: plots.samples(X[:5], ax=ax),
        lambda ax: plots.reconstructions(X[:5], X[5:10], ax=ax),
        lambda ax: plots.latent(X[:50].reshape(50, -1), DIGITS.target[:50], ax=ax),
        lambda ax: plots.curves(HISTORY, ax=ax),
        lambda ax: plots.rates([0.0, 1.0], ax=ax),
    ],
    ids=["images", "samples", "reconstructions", "latent", "curves", "rates"],
)
def test_draws_where_it_is_told_or_in_a_figure_of_its_own(plot):
    ax = Figure().add_subplot()
    assert drawn(plot(ax)) is ax
    first, second = drawn(plot(None)), drawn(plot(None))
    assert first.figure is not second.figure


def test_pyplot_is_never_imported():
    program = """
import io, sys
import numpy as np
from pyro_vae import plots
plots.samples(np.zeros((3, 8, 8))).figure.savefig(io.BytesIO())
plots.latent(np.eye(3), np.array([0.1, 0.2, 0.3])).figure.savefig(io.BytesIO())
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("count", [1, 2, 6, 7, 23])
@pytest.mark.parametrize("columns", [None, 1, 4])
def test_images_are_all_there_pixel_by_pixel(count, columns):
    pixels, inside = shown(drawn(plots.images(X[:count, None], columns=columns)))
    assert inside.sum() == count * 64
    assert inside.all() == (count == 1 and columns != 4)
    across = inside.any(0).sum() // 8
    assert columns is None or across == min(columns, count)
    expected = np.zeros((-(-count // across) * 8, across * 8))
    for index, image in enumerate(X[:count]):
        top, left = index // across * 8, index % across * 8
        expected[top : top + 8, left : left + 8] = image
    found = pixels[inside.any(1)][:, inside.any(0)]
    np.testing.assert_allclose(found, np.repeat(expected[..., None], 3, -1))


def test_images_may_have_colours_and_odd_sizes():
    x = np.random.default_rng(0).random((1, 3, 5, 9))
    pixels, inside = shown(drawn(plots.images(x)))
    assert inside.all()
    np.testing.assert_allclose(pixels, np.moveaxis(x[0], 0, -1))


def test_values_are_clipped_and_missing_ones_are_marked(caplog):
    pixels, _ = shown(drawn(plots.images([[[-3.0, 2.0], [0.25, np.nan]]])))
    # matplotlib clips as well, but complains.
    assert caplog.records == []
    np.testing.assert_allclose(pixels[..., 0][[0, 0, 1], [0, 1, 0]], [0, 1, 0.25])
    assert np.ptp(pixels[1, 1]) > 0.1


@pytest.mark.parametrize("shape", [(8, 8), (0, 8, 8), (2, 2, 8, 8), (2, 1, 8, 0), (1, 1, 1, 8, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match="Expected x of shape"):
        plots.images(np.zeros(shape))


def test_a_grid_needs_a_column():
    with pytest.raises(ValueError, match="columns to be a positive integer, got 0"):
        plots.images(X[:3], columns=0)


def test_data_stand_above_their_reconstructions():
    flat = X.reshape(len(X), -1)
    pca = PCA(10).fit(flat)
    again = pca.inverse_transform(pca.transform(flat)).reshape(X.shape)
    ax = drawn(plots.reconstructions(X[:7], again[:7]))
    pixels, inside = shown(ax)
    assert inside.sum() == 2 * 7 * 64
    rows = pixels[inside.any(1)][:, inside.any(0)][..., 0]
    np.testing.assert_allclose(rows[:8], np.concatenate(X[:7], 1))
    np.testing.assert_allclose(rows[8:], np.concatenate(again[:7].clip(0, 1), 1))
    assert ticks(ax.yaxis) == ["data", "reconstruction"]
    middles = [np.flatnonzero(inside.any(1))[part].mean() for part in (slice(8), slice(8, 16))]
    np.testing.assert_allclose(ax.get_yticks(), middles)


def test_reconstructions_have_the_shape_of_the_data():
    with pytest.raises(ValueError, match=r"the shape of x, \(3, 8, 8\), got \(4, 8, 8\)"):
        plots.reconstructions(X[:3], X[:4])


def test_codes_of_a_plane_are_shown_as_they_are():
    z = np.random.default_rng(0).normal(size=(40, 2))
    labels = np.arange(40) % 3
    ax = drawn(plots.latent(z, labels))
    points = ax.collections[0]
    np.testing.assert_allclose(points.get_offsets(), z)
    colors = points.get_facecolors()
    same = (colors[:, None] == colors[None]).all(-1)
    np.testing.assert_array_equal(same, labels[:, None] == labels[None])
    assert texts(ax.get_legend()) == ["0", "1", "2"]
    legend = [handle.get_facecolor()[0][:3] for handle in ax.get_legend().legend_handles]
    np.testing.assert_allclose(legend, colors[:3, :3])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")


def test_longer_codes_are_shown_by_their_principal_components():
    z = X.reshape(len(X), -1)[:, ::3]
    ax = drawn(plots.latent(z, DIGITS.target))
    values, vectors = np.linalg.eigh(np.cov(z.T))
    expected = (z - z.mean(0)) @ vectors[:, [-1, -2]]
    found = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)
    shares = values[[-1, -2]] / values.sum()
    for share, label in zip(shares, (ax.get_xlabel(), ax.get_ylabel()), strict=True):
        assert f"{share:.0%} of variance" in label


def test_codes_of_one_dimension_lie_along_a_line():
    z = np.random.default_rng(0).normal(size=(30, 1))
    ax = drawn(plots.latent(z, DIGITS.target[:30]))
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 0], z[:, 0])
    assert not ax.yaxis.get_visible()


@pytest.mark.parametrize("labels", [np.linspace(0, 1, 30), np.arange(30)], ids=["real", "many"])
def test_other_numbers_get_a_colour_bar(labels):
    ax = drawn(plots.latent(X[:30].reshape(30, -1), labels))
    assert ax.get_legend() is None
    assert len(ax.figure.axes) == 2
    np.testing.assert_allclose(ax.collections[0].get_array(), labels)


def test_labels_may_be_words_or_absent():
    z = X[:4].reshape(4, -1)
    ax = drawn(plots.latent(z, ["b$1$", "a", "a", "b$1$"]))
    assert texts(ax.get_legend()) == ["a", r"b\$1\$"]
    assert drawn(plots.latent(z)).get_legend() is None
    with pytest.raises(ValueError, match="at most 20 kinds of labels, got 21"):
        plots.latent(np.eye(21), [f"kind {k}" for k in range(21)])


@pytest.mark.parametrize("shape", [(30, 5), (1, 5), (1, 2), (1, 1), (2, 3)])
def test_codes_that_are_all_alike_can_be_shown(shape):
    ax = drawn(plots.latent(np.ones(shape), np.zeros(shape[0], dtype=int)))
    assert len(ax.collections[0].get_offsets()) == shape[0]


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        (np.zeros(3), None, r"Expected finite codes of shape .*, got \(3,\)"),
        (np.zeros((0, 2)), None, "Expected finite codes"),
        (np.full((3, 2), np.nan), None, "6 values not finite"),
        (np.zeros((3, 2)), np.zeros(2), r"Expected labels of shape \(3,\), got \(2,\)"),
    ],
)
def test_latent_refuses_what_it_cannot_show(codes, labels, message):
    with pytest.raises(ValueError, match=message):
        plots.latent(codes, labels)


def test_curves_show_both_lines_and_mark_the_best_epoch():
    ax = drawn(plots.curves(HISTORY))
    train, valid, best = ax.get_lines()
    for line, key in ((train, "train_objective"), (valid, "valid_elbo")):
        np.testing.assert_allclose(line.get_xdata(), [row["epoch"] for row in HISTORY])
        np.testing.assert_allclose(line.get_ydata(), [row[key] for row in HISTORY])
    top = max(HISTORY, key=lambda row: row["valid_elbo"])
    np.testing.assert_allclose(best.get_xydata(), [[top["epoch"], top["valid_elbo"]]])
    assert texts(ax.get_legend())[-1] == f"best epoch: {top['epoch']}"
    low, high = ax.get_ylim()
    assert low < top["valid_elbo"] < high
    inside = [row["train_objective"] > low for row in HISTORY]
    assert not inside[0]
    assert all(inside[4:])


def test_curves_without_validation_mark_no_epoch():
    history = [{"epoch": e, "train_objective": -1.0 / e} for e in (1, 2)]
    ax = drawn(plots.curves(history))
    assert texts(ax.get_legend()) == ["training objective"]


def test_curves_of_one_epoch_show_points():
    ax = drawn(plots.curves(HISTORY[:1]))
    assert all(line.get_marker() == "o" for line in ax.get_lines())
    assert 1 in ax.get_xticks()
    assert (ax.get_xticks() % 1 == 0).all()


def test_curves_need_an_epoch():
    with pytest.raises(ValueError, match="at least one epoch"):
        plots.curves([])


def test_rates_are_sorted_and_unused_dimensions_grey():
    kl = [0.001, 2.0, 0.0, 0.5]
    ax = drawn(plots.rates(kl, active=np.array([False, True, False, True])))
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [2.0, 0.5, 0.001, 0.0])
    assert ticks(ax.xaxis) == ["2", "4", "1", "3"]
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert colors == [to_rgba(plots.BLUE)] * 2 + [to_rgba(plots.GREY)] * 2
    assert texts(ax.get_legend()) == ["active: 2 of 4", "not active: 2 of 4"]
    assert plots.rates(kl).get_legend() is None


@pytest.mark.parametrize("kl", [[np.nan, 1.0], [0.0], np.linspace(0, 1, 200), [-1e-4, 0.0]])
def test_rates_can_be_shown_whatever_they_are(kl):
    ax = drawn(plots.rates(kl))
    assert len(ax.patches) == len(kl)
    assert len(ax.get_xticks()) <= 25


@pytest.mark.parametrize("kl", [[], [[1.0, 2.0]], 1.0])
def test_rates_need_one_number_a_dimension(kl):
    with pytest.raises(ValueError, match="Expected kl_per_dimension of shape"):
        plots.rates(kl)


def test_agreement_shows_each_pair_and_the_line_of_equality():
    ax = plots.agreement([1.0, 2.0, 4.0], [1.5, 2.0, 3.0])
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[1, 1.5], [2, 2], [4, 3]])
    assert ax.lines[0].get_xydata().tolist() == [[1, 1], [4, 4]]
    ax = plots.agreement([0.0, 2.0, np.nan], [1.0, 3.0, 1.0], log=True)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert len(ax.collections[0].get_offsets()) == 1
    with pytest.raises(ValueError, match="Expected 2 numbers in generated, got 1"):
        plots.agreement([1, 2], [1])
    with pytest.raises(ValueError, match="pairs of finite numbers, got none"):
        plots.agreement([0.0], [1.0], log=True)


def test_histograms_have_common_bins_and_shares():
    ax = plots.histograms({"a": [0.0, 1.0, 1.0, 10.0], "b": [5.0]})
    heights = [patch.get_xy()[:, 1].max() for patch in ax.patches]
    assert heights == [0.5, 1.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    for empty in ({}, {"a": []}):
        with pytest.raises(ValueError, match="numbers for each name, got none"):
            plots.histograms(empty)
