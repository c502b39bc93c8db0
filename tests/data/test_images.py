"""Pictures by torchvision: real MNIST, and the other sets in small files of their formats.

Where torchvision does not import, each of these tests asserts that the error says so.
"""

import functools
import gzip
import hashlib
import os
import pickle
import struct
from importlib import import_module
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from helpers.paths import DATA
from pyro_vae import data
from pyro_vae.data import vision

SETS = ("mnist", "fashion_mnist", "kmnist", "emnist", "omniglot", "cifar10", "svhn")
DIGITS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
"""The number of each digit among MNIST's training rows, as published."""

try:
    import_module("torchvision.datasets")
    WORKS = True
except (AttributeError, ImportError, OSError, RuntimeError):
    WORKS = False


def with_torchvision(test):
    """Runs a test where torchvision imports; elsewhere it is that each set says it does not."""
    if WORKS:
        return test

    @functools.wraps(test)
    def refused(*args, **kwargs):
        for name in SETS:
            with pytest.raises(ValueError, match=r"Expected a torchvision that fits torch \d"):
                getattr(data, name)()

    return refused


@pytest.fixture(autouse=True)
def no_folder_of_the_caller(monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "none"))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def idx_files(folder, names, train=20, test=6):
    """Writes small files of MNIST's format, and returns what is in them."""
    images = [noise(train, 28, 28), noise(test, 28, 28)[::-1]]
    labels = [np.arange(train) % 10, np.arange(test) % 10]
    for part, x, y in zip(names, images, labels, strict=True):
        write_idx(folder / f"{part}-images-idx3-ubyte", x)
        write_idx(folder / f"{part}-labels-idx1-ubyte", y)
    return images, labels


def unchecked(monkeypatch, module):
    """Lets files pass that exist, whatever their md5, and lists folders in another order."""

    def backwards(listing, *args):
        return sorted(listing(*args), reverse=True)

    module = import_module(f"torchvision.datasets.{module}")
    monkeypatch.setattr(module, "check_integrity", lambda path, md5: os.path.exists(path))
    for name in ("list_dir", "list_files"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, functools.partial(backwards, getattr(module, name)))


def permuted(size, valid, seed=0):
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[: size - valid], order[size - valid :]


def check_parts(made, images, labels, valid):
    """Checks that a set of grey values holds what its files hold."""
    rows, held_out = permuted(len(images[0]), valid)
    train, test = (torch.tensor(np.ascontiguousarray(part)) / 255 for part in images)
    for part, expected in zip(made.x, (train[rows], train[held_out], test), strict=True):
        assert part.dtype is torch.float32
        assert torch.equal(part, expected)
    expected = torch.as_tensor(labels[0])
    for part, own in zip(
        made.labels, (expected[rows], expected[held_out], torch.as_tensor(labels[1])), strict=True
    ):
        assert torch.equal(part, own)


@pytest.fixture(scope="module")
def mnist_root(tmp_path_factory):
    """A folder with the real files, unpacked."""
    if not WORKS:
        return None
    archives = sorted((DATA / "MNIST" / "raw").glob("*.gz"))
    if len(archives) < 4:
        pytest.skip(f"no MNIST in {DATA}")
    root = tmp_path_factory.mktemp("real")
    (root / "MNIST" / "raw").mkdir(parents=True)
    for archive in archives:
        with gzip.open(archive) as packed:
            (root / "MNIST" / "raw" / archive.stem).write_bytes(packed.read())
    return root


@with_torchvision
def test_mnist_is_the_real_one(mnist_root):
    made = data.mnist(mnist_root, binarize="none")
    raw = {f.name: f.read_bytes() for f in (mnist_root / "MNIST" / "raw").iterdir()}
    train = raw["train-images-idx3-ubyte"]
    assert hashlib.md5(train).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    assert [len(part) for part in made.x] == [50_000, 10_000, 10_000]

    def values(kind, head):
        names = (f"{part}-{kind}-ubyte" for part in ("train", "t10k"))
        return [np.frombuffer(raw[name], np.uint8, offset=head) for name in names]

    images = [x.reshape(-1, 1, 28, 28) for x in values("images-idx3", 16)]
    labels = [y.astype(int) for y in values("labels-idx1", 8)]
    check_parts(made, images, labels, 10_000)
    assert torch.cat(made.labels[:2]).bincount().tolist() == DIGITS
    assert made.labels.test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@with_torchvision
def test_protocols_on_real_mnist(mnist_root):
    state = torch.get_rng_state()
    protocols = ("none", "dynamic", "fixed", "fixed")
    grey, dynamic, fixed, again = (
        data.mnist(mnist_root, binarize=p, limit=500, valid=500) for p in protocols
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(dynamic.x.train, grey.x.train)
    assert len(grey.x.train) == 500
    assert dynamic.train.dynamic
    assert not fixed.train.dynamic
    assert all(map(torch.equal, fixed.x, again.x))
    assert torch.equal(fixed.x.test, dynamic.x.test)
    assert set(fixed.x.test.unique().tolist()) == {0.0, 1.0}
    # Each pixel is one with its grey value as probability: the total is known to within z of 5.
    p = grey.x.test.double()
    z = (fixed.x.test.double().sum() - p.sum()) / (p * (1 - p)).sum().sqrt()
    assert abs(z) < 5
    assert fixed.title == "mnist, binarized: fixed"


@with_torchvision
def test_a_vae_learns_from_real_mnist(mnist_root):
    from pyro_vae import VAE, evaluate, fit

    made = data.mnist(mnist_root, limit=1000, valid=200)
    vae = VAE(made.event_shape, latent_dim=4)
    before = evaluate.elbo(vae, made.x.test[:200]).elbo.mean()
    fit(vae, made.train, valid=made.valid, epochs=3)
    assert evaluate.elbo(vae, made.x.test[:200]).elbo.mean() > before + 200


@with_torchvision
def test_real_archives_give_the_data_of_the_unpacked_files(mnist_root):
    unpacked, packed = (data.mnist(root, binarize="none") for root in (mnist_root, DATA))
    assert torch.equal(unpacked.x.test, packed.x.test)
    assert torch.equal(unpacked.labels.train, packed.labels.train)


@with_torchvision
def test_archives_are_read_in_place_and_damage_is_named(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    images, labels = idx_files(raw, ("train", "t10k"))
    for path in sorted(raw.iterdir())[1:]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    before = sorted(raw.iterdir())
    made = data.fashion_mnist(tmp_path, valid=4, binarize="none")
    check_parts(made, [x[:, None] for x in images], labels, 4)
    assert sorted(raw.iterdir()) == before
    packed = raw / "train-images-idx3-ubyte.gz"
    content = packed.read_bytes()
    for damaged in (content[:-20], content[:40] + b"oops" + content[44:], b"oops"):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"files of fashion_mnist in .*, got damaged: put the"):
            data.fashion_mnist(tmp_path)
    packed.unlink()
    with pytest.raises(ValueError, match="missing: FashionMNIST/raw/train-images-idx3-ubyte: put"):
        data.fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
@with_torchvision
def test_sets_in_the_format_of_mnist(name, folder, tmp_path):
    images, labels = idx_files(tmp_path / folder / "raw", ("train", "t10k"))
    made = getattr(data, name)(tmp_path, valid=0.25, binarize="none")
    check_parts(made, [x[:, None] for x in images], labels, 5)


@pytest.mark.parametrize("split", ["balanced", "letters"])
@with_torchvision
def test_emnist_is_upright(split, tmp_path):
    names = [f"emnist-{split}-{part}" for part in ("train", "test")]
    images, labels = idx_files(tmp_path / "EMNIST" / "raw", names)
    made = data.emnist(tmp_path, split=split, valid=4, binarize="none")
    check_parts(made, [x[:, None].swapaxes(2, 3) for x in images], labels, 4)
    assert made.name == f"emnist ({split})"


@with_torchvision
def test_cifar10(tmp_path, monkeypatch):
    unchecked(monkeypatch, "cifar")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches = noise(6, 4, 3, 32, 32)
    labels = np.arange(24).reshape(6, 4) % 10
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, x, y in zip(names, batches, labels, strict=True):
        (folder / name).write_bytes(
            pickle.dumps({"data": x.reshape(4, -1), "labels": y.tolist()}, protocol=2)
        )
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane"]}, protocol=2))
    made = data.cifar10(tmp_path, valid=6)
    check_parts(
        made, [batches[:5].reshape(20, 3, 32, 32), batches[5]], [labels[:5].ravel(), labels[5]], 6
    )
    (folder / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"missing: cifar-10-batches-py/data_batch_3: put the"):
        data.cifar10(tmp_path)


@with_torchvision
def test_svhn(tmp_path, monkeypatch):
    unchecked(monkeypatch, "svhn")
    images, labels = [noise(12, 3, 32, 32), noise(5, 3, 32, 32)[::-1]], []
    for part, x in zip(("train", "test"), images, strict=True):
        y = np.arange(len(x)) % 10
        labels.append(y)
        values = {"X": x.transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y)[:, None]}
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", values)
    check_parts(data.svhn(tmp_path, valid=3), images, labels, 3)


@with_torchvision
def test_omniglot_has_ink_at_one_and_the_order_of_its_names(tmp_path, monkeypatch):
    unchecked(monkeypatch, "omniglot")
    root = tmp_path / "omniglot-py"
    for part, alphabets in (("background", "BA"), ("evaluation", "C")):
        for alphabet in alphabets:
            for character in (2, 1):
                folder = root / f"images_{part}" / alphabet / f"character{character:02}"
                folder.mkdir(parents=True)
                for drawer in (2, 1, 3):
                    pixels = np.full((105, 105), 255, np.uint8)
                    # The left part is ink, as wide as the place of the picture in the order.
                    pixels[:, : 15 * drawer] = 0
                    Image.fromarray(pixels).convert("1").save(folder / f"0_{drawer:02}.png")
        (root / f"images_{part}.zip").touch()
    made = data.omniglot(tmp_path, valid=4, binarize="none")
    rows, held_out = permuted(12, 4)
    labels = torch.arange(4).repeat_interleave(3)
    assert torch.equal(made.labels.train, labels[rows])
    assert torch.equal(made.labels.valid, labels[held_out])
    assert made.labels.test.tolist() == [4, 4, 4, 5, 5, 5]
    assert made.x.test.shape == (6, 1, 28, 28)
    width = made.x.test[:, 0].mean((1, 2))
    torch.testing.assert_close(width, torch.tensor([1, 2, 3, 1, 2, 3]) / 7, atol=5e-3, rtol=0)
    assert bool((made.x.test[:, :, :, :3] == 1).all())


@with_torchvision
def test_omniglot_of_the_literature_is_read_upright(tmp_path):
    images = [np.random.default_rng(part).random((n, 1, 28, 28)) for part, n in enumerate((20, 6))]
    columns = [x.reshape(-1, 28, 28).transpose(2, 1, 0).reshape(784, -1) for x in images]
    path = tmp_path / "chardata.mat"
    scipy.io.savemat(path, {"data": columns[0], "testdata": columns[1]})
    made = data.omniglot(tmp_path, split="burda", valid=5, binarize="none")
    rows, held_out = permuted(20, 5)
    train, test = (torch.tensor(x, dtype=torch.float32) for x in images)
    assert all(map(torch.equal, made.x, (train[rows], train[held_out], test)))
    assert made.labels is None
    assert made.name == "omniglot (burda)"
    scipy.io.savemat(path, {"data": columns[0].T, "testdata": columns[1]})
    with pytest.raises(ValueError, match=r"omniglot \(burda\).* got damaged.* shape \(20, 784\)"):
        data.omniglot(tmp_path, split="burda")
    path.unlink()
    with pytest.raises(
        ValueError, match=r"missing: chardata\.mat: put the unpacked files there \("
    ):
        data.omniglot(tmp_path, split="burda")
    with pytest.raises(ValueError, match="Expected split to be 'alphabets' or 'burda', got 'lake'"):
        data.omniglot(tmp_path, split="lake")


@pytest.mark.parametrize("name", SETS)
@with_torchvision
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(ValueError, match=f"Expected the files of {name}.*missing: .*download=True"):
        getattr(data, name)(tmp_path)


@with_torchvision
def test_the_default_folder_is_a_setting(tmp_path, monkeypatch):
    images, labels = idx_files(tmp_path / "MNIST" / "raw", ("train", "t10k"))
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    check_parts(data.mnist(valid=5, binarize="none"), [x[:, None] for x in images], labels, 5)


@with_torchvision
def test_a_damaged_file_is_told(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    idx_files(folder, ("train", "t10k"))
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"files of mnist in '{tmp_path}', got damaged"):
        data.mnist(tmp_path)


@with_torchvision
def test_no_network_is_told(tmp_path, monkeypatch):
    def fetch(*args, **kwargs):
        raise URLError("no route")

    module = import_module("torchvision.datasets.mnist")
    monkeypatch.setattr(module, "download_and_extract_archive", fetch)
    with pytest.raises(ValueError, match=r"missing: MNIST/raw/train-images.*could not fetch them"):
        data.mnist(tmp_path, download=True)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        OSError("_C.so: undefined symbol: _ZN3c10"),
        ImportError("No module named 'torchvision'"),
        AttributeError("partially initialized module 'torchvision' has no attribute 'extension'"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("name", SETS)
def test_a_torchvision_that_does_not_fit_is_told(name, error, monkeypatch):
    def broken(module):
        raise error

    monkeypatch.setattr(vision, "import_module", broken)
    with pytest.raises(ValueError, match="Expected a torchvision that fits torch") as caught:
        getattr(data, name)()
    assert str(error) in str(caught.value)
    assert "pip install --upgrade torch torchvision" in str(caught.value)
