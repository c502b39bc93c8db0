"""Data: the real digits, their split and their protocol."""

import inspect
import subprocess
import sys

import pytest
import torch
from sklearn.datasets import load_digits

from pyro_vae import data


def test_digits_are_the_real_ones_split_without_loss():
    bunch = load_digits()
    digits = data.digits(binarize="none")
    rows = torch.cat(digits.x) * 16
    labels = torch.cat(digits.labels)
    assert [len(part) for part in digits.x] == [1258, 180, 359]
    assert rows.shape == (1797, 1, 8, 8)

    def keys(images, targets):
        return sorted(
            (tuple(map(int, i.flatten())), int(t)) for i, t in zip(images, targets, strict=True)
        )

    assert keys(rows, labels) == keys(bunch.images, bunch.target)


def test_split_follows_its_seed_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    one, two, other = data.digits(), data.digits(), data.digits(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.x.test, two.x.test)
    assert not torch.equal(one.x.test, other.x.test)


def test_protocol_is_part_of_the_title():
    grey, binary = data.digits(binarize="none"), data.digits()
    assert (grey.title, binary.title) == ("digits", "digits, binarized: threshold")
    assert set(binary.x.train.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(binary.x.train, (grey.x.train > 0.5).float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"binarize": "dither"}, "binarize to be one of .* got 'dither'"),
        ({"test": 1.0}, "fractions that leave rows"),
        ({"valid": 0.0}, "fractions that leave rows"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.digits(**arguments)


TOYS = ("ring", "moons", "pinwheel", "checkerboard", "manifold", "two_modes")


@pytest.mark.parametrize("name", [*TOYS, "collapse"])
def test_drawn_rows_follow_their_seed_and_leave_the_random_state_alone(name):
    state = torch.get_rng_state()
    one, two, other = (getattr(data, name)(100, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, one.x, two.x))
    assert not torch.equal(one.x.train, other.x.train)
    assert [len(part) for part in one.x] == [70, 10, 20]
    assert len(torch.cat(one.x).unique(dim=0)) == (12 if name == "collapse" else 100)
    assert (one.name, one.binarize) == (name, "none")
    assert "seed 3" in one.source
    if one.labels is not None:
        assert [len(part) for part in one.labels] == [70, 10, 20]


@pytest.mark.parametrize("name", TOYS)
def test_noise_is_added_with_its_scale(name):
    clean, noisy = (torch.cat(getattr(data, name)(20_000, noise=s).x) for s in (0.0, 0.3))
    residuals = (noisy - clean).flatten().double()
    assert abs(residuals.mean()) < 5 * 0.3 / len(residuals) ** 0.5
    assert abs(residuals.std() - 0.3) < 5 * 0.3 / (2 * len(residuals)) ** 0.5


def test_rows_without_noise_lie_where_they_should():
    x = torch.cat(data.ring(noise=0.0).x)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(len(x)))
    quarters = (x > 0).float().mean(0)
    assert abs(quarters - 0.5).max() < 5 * 0.5 / len(x) ** 0.5
    x = torch.cat(data.checkerboard(8000).x)
    assert x.abs().max() <= 2
    squares = x.floor().long() + 2
    assert bool((squares.sum(-1) % 2 == 0).all())
    counts = (4 * squares[:, 0] + squares[:, 1]).bincount(minlength=16)
    assert int((counts > 0).sum()) == 8
    assert abs(counts[counts > 0] - 1000).max() < 5 * 1000**0.5
    t, y = torch.cat(data.manifold().x).unbind(-1)
    assert torch.equal(y, t.sin())
    assert torch.cat(data.two_modes(noise=0.0).x).min() >= 0


def test_labels_are_those_of_their_rows():
    made = data.moons(noise=0.0)
    x, labels = torch.cat(made.x), torch.cat(made.labels)
    for label, centre, side in ((0, (-0.5, -0.25), 1), (1, (0.5, 0.25), -1)):
        own = x[labels == label] - torch.tensor(centre)
        torch.testing.assert_close(own.norm(dim=-1), torch.ones(len(own)))
        assert bool((side * own[:, 1] >= -1e-6).all())
    made = data.pinwheel(noise=0.0)
    x, labels = torch.cat(made.x), torch.cat(made.labels)
    assert labels.unique().tolist() == [0, 1, 2, 3, 4]
    radius = x.norm(dim=-1)
    turned = torch.atan2(x[:, 1], x[:, 0]) - 0.25 * (radius / 0.5).exp() / torch.e
    off = torch.remainder(turned - 2 * torch.pi * labels / 5 + 0.1, 2 * torch.pi) - 0.1
    assert off.abs().max() < 1e-4
    made = data.collapse()
    assert torch.equal(made.x.test.argmax(-1), made.labels.test)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.ring(2), "Expected n to be an integer of at least 3, got 2"),
        (lambda: data.ring(1.5), "Expected n to be an integer of at least 3, got 1.5"),
        (lambda: data.moons(noise=-1), "Expected noise to be a number of at least 0, got -1"),
        (lambda: data.moons(noise="a"), "Expected noise to be a number of at least 0, got 'a'"),
        (lambda: data.collapse(dims=1), "Expected dims to be an integer of at least 2, got 1"),
        (lambda: data.pinwheel(valid="a"), "Expected valid to be a number of rows or a fraction"),
        (lambda: data.ring(10, valid=5, test=5), "leave rows for each part of 10, got valid=5"),
    ],
)
def test_bad_arguments_of_drawn_rows(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rows_are_kept_by_number_or_by_fraction():
    assert [len(part) for part in data.ring(50, valid=7, test=0.3).x] == [28, 7, 15]


def test_a_fixed_binarization_draws_each_part_once_and_a_dynamic_one_trains_on_greys():
    grey, fixed, dynamic = (data.digits(binarize=p) for p in ("none", "fixed", "dynamic"))
    assert torch.equal(dynamic.x.train, grey.x.train)
    for part in ("valid", "test"):
        assert torch.equal(getattr(dynamic.x, part), getattr(fixed.x, part))
    x, _ = dynamic.train.batch(slice(0, 100), torch.Generator().manual_seed(7))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(x, fixed.x.train[:100])


def test_importing_the_package_imports_no_reader_of_files():
    code = (
        "import sys, pyro_vae.data as data; data.ring(); "
        "print([m for m in ('torchvision', 'pandas', 'pyarrow', 'sklearn', 'PIL') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_each_set_has_a_configuration_and_each_configuration_its_set():
    from pyro_vae import config

    files = {path.stem for path in (config.APP / "data").glob("*.yaml")}
    functions = {name for name in data.__all__ if name.islower()}
    assert files == functions
    for name in sorted(files):
        node = config.compose([f"data={name}", "out=."]).data
        parameters = inspect.signature(getattr(data, name)).parameters
        # What the command gives by default is what the function does.
        assert {k: node[k] for k in parameters} == {k: p.default for k, p in parameters.items()}
