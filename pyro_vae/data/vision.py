"""Image data sets read by torchvision, which is imported when a set is loaded."""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.base import Data, Split, build_data, check_protocol, count_rows, find_data_folder
from pyro_vae.validation import check_choice, check_flag, check_path, check_seed, to_plain_python

__all__ = ["cifar10", "emnist", "fashion_mnist", "kmnist", "mnist", "omniglot", "svhn"]

_IDX = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_PACKED = ".gz"
_EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
_OMNIGLOT_PARTS = ("images_background", "images_evaluation")
_OMNIGLOT_SPLITS = ("alphabets", "burda")


class Images(NamedTuple):
    """Images ``(N, C, H, W)``, bytes or values in [0, 1], and their labels ``(N,)`` or ``None``."""

    x: Tensor
    labels: Tensor | None


class _Options(NamedTuple):
    """The options that all image data sets share."""

    root: str | Path | None
    download: bool
    binarize: str
    covariates: str | None
    valid: float
    limit: int | None
    seed: int


def mnist(
    root: str | Path | None = None,
    *,
    download: bool = False,
    binarize: str = "dynamic",
    covariates: str | None = None,
    valid: float = 10_000,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Returns MNIST: 60,000 and 10,000 handwritten digits of 28 x 28 pixels.

    The test rows are those of the data set. The training rows are shuffled by the seed, and the
    last of them are kept for validation.

    References:
        | Gradient-based learning applied to document recognition (LeCun et al., 1998),
          https://doi.org/10.1109/5.726791

    Arguments:
        root: The folder of ``MNIST/raw``, with the files unpacked or as ``.gz``; by default the
            environment variable ``PYRO_VAE_DATA``, or ``~/.cache/pyro_vae``.
        download: Whether torchvision may fetch missing files.
        binarize: A protocol, one of :data:`pyro_vae.data.PROTOCOLS`.
        covariates: ``"label"`` for the label as a covariate, or ``None``.
        valid: The training rows kept for validation: a number, 0 for none, or a fraction if it is
            a float.
        limit: The largest number of training rows left after that, for quick runs; ``None``: all.
        seed: The seed of the shuffle, and of a fixed binarization.

    Raises:
        ValueError: If torchvision or the files are missing, or an argument is out of range.
    """
    options = _Options(root, download, binarize, covariates, valid, limit, seed)
    return _load_images(
        "mnist", "MNIST", [f"MNIST/raw/{file}" for file in _IDX], _read_idx, options
    )


def fashion_mnist(
    root: str | Path | None = None,
    *,
    download: bool = False,
    binarize: str = "dynamic",
    covariates: str | None = None,
    valid: float = 10_000,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Returns Fashion-MNIST: 60,000 and 10,000 articles of clothing, 28 x 28 pixels.

    References:
        | Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), https://arxiv.org/abs/1708.07747

    Arguments and errors are those of :func:`mnist`; the files are in ``FashionMNIST/raw``.
    """
    options = _Options(root, download, binarize, covariates, valid, limit, seed)
    files = [f"FashionMNIST/raw/{file}" for file in _IDX]
    return _load_images("fashion_mnist", "FashionMNIST", files, _read_idx, options)


def kmnist(
    root: str | Path | None = None,
    *,
    download: bool = False,
    binarize: str = "dynamic",
    covariates: str | None = None,
    valid: float = 10_000,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Returns Kuzushiji-MNIST: 60,000 and 10,000 cursive Japanese characters, 28 x 28 pixels.

    References:
        | Deep learning for classical Japanese literature (Clanuwat et al., 2018),
          https://arxiv.org/abs/1812.01718

    Arguments and errors are those of :func:`mnist`; the files are in ``KMNIST/raw``.
    """
    options = _Options(root, download, binarize, covariates, valid, limit, seed)
    return _load_images(
        "kmnist", "KMNIST", [f"KMNIST/raw/{file}" for file in _IDX], _read_idx, options
    )


def emnist(
    root: str | Path | None = None,
    *,
    split: str = "balanced",
    download: bool = False,
    binarize: str = "dynamic",
    covariates: str | None = None,
    valid: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Returns EMNIST: handwritten characters of 28 x 28 pixels, upright.

    The files store each image transposed, which is undone here.

    References:
        | EMNIST (Cohen et al., 2017), https://arxiv.org/abs/1702.05373

    Arguments:
        root: The folder of ``EMNIST/raw``, as of :func:`mnist`.
        split: ``"balanced"`` (112,800 and 18,800 rows), ``"byclass"``, ``"bymerge"``,
            ``"digits"``, ``"letters"`` (whose labels begin at 1) or ``"mnist"``.
        download: As of :func:`mnist`.
        binarize: As of :func:`mnist`.
        covariates: ``"label"`` for the label as a covariate, or ``None``.
        valid: As of :func:`mnist`.
        limit: As of :func:`mnist`.
        seed: As of :func:`mnist`.

    Raises:
        ValueError: As of :func:`mnist`, and if there is no such split.
    """
    check_choice("split", split, _EMNIST_SPLITS)

    def read_part(datasets: Any, kind: str, train: bool, **where: Any) -> Images:
        x, labels = _read_idx(datasets, kind, train, split=split, **where)
        return Images(x.mT, labels)

    files = [
        f"EMNIST/raw/emnist-{split}-{part}-{kind}-ubyte"
        for part in ("train", "test")
        for kind in ("images-idx3", "labels-idx1")
    ]
    options = _Options(root, download, binarize, covariates, valid, limit, seed)
    return _load_images(f"emnist ({split})", "EMNIST", files, read_part, options)


def omniglot(
    root: str | Path | None = None,
    *,
    split: str = "alphabets",
    download: bool = False,
    binarize: str = "dynamic",
    covariates: str | None = None,
    valid: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Returns Omniglot: characters of 50 alphabets, reduced to 28 x 28 pixels; ink is one.

    By default the split is that of its authors: 19,280 background images for training and
    validation, and 13,180 evaluation images, characters of other alphabets, for the test. Pillow's
    bilinear filter, which averages over all pixels, reduces the images of 105 x 105 pixels. A
    label is a character, numbered over both parts in the order of their names.

    VAEs are often compared on ``split="burda"``: 24,345 and 8,070 already reduced images of all
    alphabets from ``chardata.mat``, the file in the code of Burda, Grosse and Salakhutdinov;
    without labels. Metrics of the two splits are not comparable.

    References:
        | Human-level concept learning through probabilistic program induction (Lake,
          Salakhutdinov and Tenenbaum, 2015), https://doi.org/10.1126/science.aab3050
        | Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2015),
          https://arxiv.org/abs/1509.00519

    Arguments:
        root: The folder of ``omniglot-py``, where torchvision expects the archives next to the
            folders unpacked from them; or of ``chardata.mat``.
        split: ``"alphabets"`` or ``"burda"``.
        download: As of :func:`mnist`; torchvision cannot download ``chardata.mat``.
        binarize: As of :func:`mnist`.
        covariates: ``"label"`` for the label as a covariate, or ``None``.
        valid: As of :func:`mnist`.
        limit: As of :func:`mnist`.
        seed: As of :func:`mnist`.

    Raises:
        ValueError: As of :func:`mnist`, and if there is no such split.
    """
    check_choice("split", split, _OMNIGLOT_SPLITS)
    options = _Options(root, download, binarize, covariates, valid, limit, seed)
    if split == "burda":
        return _load_images("omniglot (burda)", "", ["chardata.mat"], _read_chardata, options)
    files = [f"omniglot-py/{part}.zip" for part in _OMNIGLOT_PARTS]
    files += [f"omniglot-py/{part}/" for part in _OMNIGLOT_PARTS]
    return _load_images("omniglot", "Omniglot", files, _read_characters, options)


def cifar10(
    root: str | Path | None = None,
    *,
    download: bool = False,
    binarize: str = "none",
    covariates: str | None = None,
    valid: float = 5_000,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Returns CIFAR-10: 50,000 and 10,000 colour photographs of 32 x 32 pixels.

    References:
        | Learning multiple layers of features from tiny images (Krizhevsky, 2009),
          https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf

    Arguments and errors are those of :func:`mnist`; the files are in ``cifar-10-batches-py``.
    """

    def read_part(datasets: Any, kind: str, train: bool, **where: Any) -> Images:
        files = getattr(datasets, kind)(train=train, **where)
        return Images(torch.from_numpy(files.data).permute(0, 3, 1, 2), torch.tensor(files.targets))

    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    files = [f"cifar-10-batches-py/{name}" for name in names]
    options = _Options(root, download, binarize, covariates, valid, limit, seed)
    return _load_images("cifar10", "CIFAR10", files, read_part, options)


def svhn(
    root: str | Path | None = None,
    *,
    download: bool = False,
    binarize: str = "none",
    covariates: str | None = None,
    valid: float = 0.1,
    limit: int | None = None,
    seed: int = 0,
) -> Data:
    """Returns SVHN: 73,257 and 26,032 house numbers in colour, 32 x 32 pixels.

    References:
        | Reading digits in natural images with unsupervised feature learning (Netzer et al.,
          2011), http://ufldl.stanford.edu/housenumbers

    Arguments and errors are those of :func:`mnist`; the two files are in the root itself.
    """

    def read_part(datasets: Any, kind: str, train: bool, **where: Any) -> Images:
        files = getattr(datasets, kind)(split="train" if train else "test", **where)
        return Images(torch.from_numpy(files.data), torch.from_numpy(files.labels))

    options = _Options(root, download, binarize, covariates, valid, limit, seed)
    return _load_images("svhn", "SVHN", ["train_32x32.mat", "test_32x32.mat"], read_part, options)


def _read_idx(datasets: Any, kind: str, train: bool, **where: Any) -> Images:
    """Reads one part of a data set in the idx format of MNIST."""
    files = getattr(datasets, kind)(train=train, **where)
    return Images(files.data.unsqueeze(1), files.targets.long())


def _read_characters(datasets: Any, kind: str, train: bool, **where: Any) -> Images:
    """Reads one part of Omniglot, in the order of its paths."""
    from PIL import Image

    def list_paths(background: bool) -> list[Path]:
        files = getattr(datasets, kind)(background=background, loader=Path, **where)
        # The order of a folder's listing differs from disk to disk.
        return sorted(files[row][0] for row in range(len(files)))

    paths = list_paths(train)
    # The numbers of the evaluation part continue those of the background part.
    first = 0 if train else len({path.parent for path in list_paths(True)})
    characters = dict.fromkeys(path.parent for path in paths)
    number = {character: first + i for i, character in enumerate(characters)}
    images = []
    for path in paths:
        with Image.open(path) as image:
            small = image.convert("L").resize((28, 28), Image.Resampling.BILINEAR)
        images.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8))
    labels = torch.tensor([number[path.parent] for path in paths])
    return Images(255 - torch.stack(images).reshape(-1, 1, 28, 28), labels)


def _read_chardata(datasets: Any, kind: str, train: bool, *, root: str, download: bool) -> Images:
    """Reads one part of ``chardata.mat``, whose columns are images in column-major order."""
    from scipy.io import loadmat

    columns = loadmat(Path(root) / "chardata.mat")["data" if train else "testdata"]
    if columns.ndim != 2 or len(columns) != 28 * 28:
        raise ValueError(
            f"columns of 784 values expected, one per image; got shape {columns.shape}"
        )
    return Images(torch.from_numpy(columns.T.copy()).reshape(-1, 1, 28, 28).mT, None)


def _load_images(
    name: str, kind: str, files: list[str], read: Callable[..., Images], options: _Options
) -> Data:
    """Reads a data set, by the torchvision class ``kind`` if any; splits and binarizes it."""
    root, download, binarize, covariates, valid, limit, seed = options
    check_protocol(binarize)
    check_flag("download", download)
    check_seed(seed)
    root = find_data_folder(None if root is None else check_path("root", root))
    train, test = fetch_images(name, kind, files, read, root, download)
    rows, held_out = _hold_out(len(train.x), valid, limit, seed)
    dtype, largest = torch.get_default_dtype(), 255 if train.x.dtype is torch.uint8 else 1
    x = Split(train.x[rows], train.x[held_out], test.x).map(
        lambda part: part.to(dtype, memory_format=torch.contiguous_format) / largest
    )
    labels = None
    if train.labels is not None and test.labels is not None:
        labels = Split(train.labels[rows], train.labels[held_out], test.labels)
    return build_data(
        name,
        x,
        labels,
        binarize=binarize,
        seed=seed,
        source=f"torchvision's {kind}" if kind else files[0],
        row_numbers=Split(rows, held_out, torch.arange(len(test.x))),
        covariates=covariates,
    )


def fetch_images(
    name: str,
    kind: str,
    files: list[str],
    read: Callable[..., Images],
    root: Path,
    download: bool,
) -> tuple[Images, Images]:
    """Returns training and test images, or raises a ``ValueError`` with reason and remedy."""
    datasets = _torchvision_datasets()
    try:
        with _unpack_archives(root, files, download) as folder:
            where = {"root": str(folder), "download": download}
            return read(datasets, kind, True, **where), read(datasets, kind, False, **where)
    except (
        AssertionError, EOFError, KeyError, OSError, RuntimeError, UnpicklingError, ValueError,
        zlib.error,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        missing = [file for file in files if _find_file(root, file) is None]
        state = f"missing: {', '.join(missing)}" if missing else "damaged"
        cure = "put the unpacked files there"
        if kind:
            cure += ", or pass download=True (data.download=true)"
        if download:
            cure = "torchvision could not fetch them"
        raise ValueError(
            f"Expected the files of {name} in '{root}', got {state}: {cure} ({reason})"
        ) from error


@contextmanager
def _unpack_archives(root: Path, files: Sequence[str], download: bool) -> Iterator[Path]:
    """Yields the folder of the files, a temporary one if some of them are only there as ``.gz``.

    torchvision unpacks archives only for a download, and then into the folder of the data.
    """
    paths = {file: path for file in files if (path := _find_file(root, file)) is not None}
    is_packed = any(path.suffix == _PACKED for path in paths.values())
    if download or len(paths) < len(files) or not is_packed:
        yield root
        return
    with TemporaryDirectory() as folder:
        for file, path in paths.items():
            target = Path(folder, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            target.write_bytes(gzip.decompress(content) if path.suffix == _PACKED else content)
        yield Path(folder)


def _find_file(root: Path, file: str) -> Path | None:
    """Returns the path of a file, or else that of its archive; ``None`` if both are missing."""
    paths = (root / file, root / f"{file}{_PACKED}")
    return next((path for path in paths if path.exists()), None)


def _torchvision_datasets() -> Any:
    """Imports torchvision's data sets, or raises a ``ValueError`` with the install command."""
    try:
        return import_module("torchvision.datasets")
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expected a torchvision that fits torch {torch.__version__}, got "
            f"{type(error).__name__}: {reason}. Install both from the same index, as in pip "
            f"install --upgrade torch torchvision"
        ) from error


def _hold_out(size: int, valid: float, limit: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the training rows and the validation rows, shuffled by the seed."""
    kept = count_rows("valid", valid, size)
    if not 0 <= kept < size:
        raise ValueError(f"Expected valid to leave rows for each part of {size}, got {valid!r}")
    left = size - kept
    limit = to_plain_python(limit)
    whole = isinstance(limit, int) and not isinstance(limit, bool)
    if limit is not None and not (whole and 1 <= limit <= left):
        raise ValueError(f"Expected limit to be an integer from 1 to {left}, got {limit!r}")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(check_seed(seed)))
    return order[:left][:limit], order[left:]
