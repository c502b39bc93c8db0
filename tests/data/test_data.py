"""Data: the real digits, their split and their protocol."""

import doctest
import inspect
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits

from helpers.paths import ROOT
from pyro_vae import data
from pyro_vae.data import vision


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
        ({"binarize": "dither"}, "binarize to be 'none', .* or 'dynamic', got 'dither'"),
        ({"test": 1.0}, "fractions that leave rows"),
        ({"valid": 0.0}, "fractions that leave rows"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.digits(**arguments)


DRAWN = {
    name: inspect.signature(getattr(data, name)).parameters
    for name in data.__all__
    if name.islower() and "n" in inspect.signature(getattr(data, name)).parameters
}
"""The parameters of each set of ``n`` drawn rows."""

TOYS = [name for name, parameters in DRAWN.items() if "noise" in parameters]


def test_the_sets_of_drawn_rows_are_found():
    assert {"ring", "moons", "pinwheel", "checkerboard", "manifold", "two_modes"} <= set(TOYS)
    assert "collapse" in DRAWN
    assert not {"digits", "table"} & set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
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
    sets = [getattr(data, name)(20_000, noise=s) for s in (0.0, 0.3)]
    clean, noisy = (torch.cat(one.x) for one in sets)
    residuals = (noisy - clean).double()
    mask = sets[0].mask
    residuals = residuals.flatten() if mask is None else residuals[torch.cat(mask)]
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
        (lambda: data.moons(noise=-1), "Expected noise to be zero or more, got -1"),
        (lambda: data.moons(noise="a"), "Expected noise to be zero or more, got 'a'"),
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
    x, *_ = dynamic.train.batch(slice(0, 100), torch.Generator().manual_seed(7))
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


def test_the_page_on_data_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "data.md"
    # A fence ends what an example prints.
    text = page.read_text(encoding="utf-8").replace("```", "")
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    example = doctest.DocTestParser().get_doctest(text, {}, "data.md", str(page), 0)
    assert len(example.examples) >= 15
    result = doctest.DocTestRunner(optionflags=flags).run(example)
    assert result.failed == 0


def test_commands_on_the_page_on_data_compose():
    from pyro_vae import config

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    starts = ("pyro-vae ", ".venv/bin/pyro-vae ")
    commands = [line for line in page.splitlines() if line.startswith(starts)]
    assert len(commands) == 8
    for command in commands:
        config.compose([*shlex.split(command)[1:], "out=."])


class Stub:
    """A set of 20 and 6 pictures, as torchvision would give it."""

    def __init__(self, root, train, download):
        self.data = torch.arange(20 if train else 6, dtype=torch.uint8).reshape(-1, 1, 1)
        self.targets = self.data.flatten()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid": 20}, "Expected valid to leave rows for each part of 20, got 20"),
        ({"valid": -1}, "Expected valid to leave rows .* got -1"),
        ({"valid": 1.5}, "Expected valid to be a number of rows or a fraction of them, got 1.5"),
        ({"valid": "5"}, "Expected valid to be a number of rows or a fraction of them, got '5'"),
        ({"valid": 5, "limit": 16}, "Expected limit to be an integer from 1 to 15, got 16"),
        ({"valid": 5, "limit": 0}, "Expected limit to be an integer from 1 to 15, got 0"),
        ({"binarize": "dither"}, "Expected binarize to be 'none', .* got 'dither'"),
    ],
)
def test_bad_arguments_of_pictures(arguments, message, monkeypatch):
    monkeypatch.setattr(vision, "import_module", lambda name: SimpleNamespace(MNIST=Stub))
    with pytest.raises(ValueError, match=message):
        data.mnist(**arguments)


def test_validation_rows_are_the_end_of_the_order_and_the_limit_its_start(monkeypatch):
    monkeypatch.setattr(vision, "import_module", lambda name: SimpleNamespace(MNIST=Stub))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3)).tolist()
    made = data.mnist(valid=5, limit=4, seed=3, binarize="none")
    assert made.labels.train.tolist() == order[:4]
    assert made.labels.valid.tolist() == order[15:]
    assert made.labels.test.tolist() == list(range(6))
    assert (made.x.valid.flatten() * 255).round().int().tolist() == order[15:]


def test_without_validation_all_rows_are_trained_on(monkeypatch):
    monkeypatch.setattr(vision, "import_module", lambda name: SimpleNamespace(MNIST=Stub))
    made = data.mnist(valid=0, binarize="fixed")
    assert [len(part) for part in made.x] == [20, 0, 6]


def test_an_unknown_split_of_emnist_is_refused():
    with pytest.raises(ValueError, match=r"Expected split to be 'balanced', .* got 'greek'"):
        data.emnist(split="greek")
