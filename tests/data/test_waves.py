"""Series of different lengths, and their figures."""

import numpy as np
import pytest
import torch

from pyro_vae import data, plots


def test_the_mask_ends_each_series_once():
    series = data.waves(300, length=20, seed=3)
    assert series.event_shape == (20, 1)
    assert [len(part) for part in series.x] == [210, 30, 60]
    for x, mask in zip(series.x, series.mask, strict=True):
        ends = mask[..., 0].sum(1)
        assert (mask[..., 0] == (torch.arange(20) < ends[:, None])).all()
        assert ends.min() >= 5
        assert ends.max() <= 20
        assert (x[~mask] == 0).all()
        assert torch.isfinite(x).all()
    assert len(series.mask.train.sum((1, 2)).unique()) > 10
    assert series.label_names == ("sine", "square", "sawtooth")


def test_waves_are_those_of_their_labels():
    series = data.waves(3000, noise=0.0, seed=1)
    x, labels, mask = series.x.train[..., 0], series.labels.train, series.mask.train[..., 0]
    # Square waves have the size of their decaying amplitude at each step, others vary in size.
    ratio = (x[:, 1:6].abs() / x[:, :5].abs().clamp(min=1e-6)).log()
    square = labels == 1
    assert ratio[square].std(1).max() < 1e-3
    assert ratio[~square].std(1).median() > 0.1
    assert (x.abs().amax(1) <= 1.5).all()
    assert mask[:, :10].all()


def test_the_seed_determines_all():
    assert torch.equal(data.waves(50, seed=1).x.train, data.waves(50, seed=1).x.train)
    assert not torch.equal(data.waves(50, seed=1).x.train, data.waves(50, seed=2).x.train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 3}, "length to be an integer of at least 4"),
        ({"noise": -1.0}, "noise to be zero or more"),
        ({"n": 0}, "n to be an integer of at least 3"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.waves(**options)


def test_series_are_drawn_apart_with_their_observed_values():
    x = np.array([[1.0, -1.0, 9.0], [0.5, 0.5, 0.5]])
    mask = np.array([[True, True, False], [True, True, True]])
    ax = plots.series(x, 0 * x, mask=mask)
    dots = [line for line in ax.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [2, 3]
    # The value that is not observed does not set the distance.
    assert dots[0].get_ydata()[0] - dots[1].get_ydata()[0] == pytest.approx(2.2 + 0.5)
    with pytest.raises(ValueError, match="Expected fitted of the shape of x"):
        plots.series(x, x[:1])
    with pytest.raises(ValueError, match=r"Expected x of shape \(N, length\)"):
        plots.series(x[0])
