"""Images in a folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.base import Data, build_data, split_row_numbers
from pyro_vae.data.preparation import check_protocol
from pyro_vae.progress import Progress
from pyro_vae.validation import check_choice, check_size, describe_value, list_names

__all__ = ["images"]

_FITS = ("crop", "stretch")
_COLORS = ("auto", "grey", "rgb")

_MOST_PIXELS = 2**14
"""The largest height and width."""

_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"}
"""Pillow's modes without colour."""


class _Header(NamedTuple):
    """The size of an image as (height, width), and whether it has colours."""

    size: tuple[int, int]
    is_color: bool


def images(
    path: str | Path | None = None,
    *,
    size: int | Sequence[int] | None = None,
    fit: str = "crop",
    color: str = "auto",
    binarize: str = "none",
    covariates: str | None = None,
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Data:
    """Returns the images in a folder, as ``(channels, height, width)`` with values l / 255.

    All formats that Pillow reads are used; other files are left out. If the images lie in
    subfolders, the names of the subfolders are their labels. Orientation tags of cameras are
    applied, transparent pixels become white, 16-bit values are rounded to 8 bits, and the first
    frame of an animation is used.

    Arguments:
        path: The folder.
        size: The height and width, or one number for both; ``None``: that of the files, which all
            have to have it.
        fit: How an image of another size gets that size. ``"crop"``: it is resized until it covers
            the size, and its centre is cut out; ``"stretch"``: it is resized in each direction.
        color: ``"grey"``: one channel; ``"rgb"``: three; ``"auto"``: one if all files are stored
            in shades of grey.
        binarize: A protocol, one of :data:`pyro_vae.data.PROTOCOLS`.
        covariates: ``"label"`` for the label as a covariate, or ``None``.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise; both 0: no split, all are training rows.
        seed: The seed of the split, and of a fixed binarization.

    Raises:
        ValueError: If the folder is missing or has no images, files are damaged, sizes differ
            without ``size``, or an argument is out of range.
    """
    check_protocol(binarize)
    fit, color = check_choice("fit", fit, _FITS), check_choice("color", color, _COLORS)
    shape = _check_shape(size)
    folder = _check_folder(path)
    files = _find_files(folder)
    names = _read_label_names(folder, files)
    headers = _read_headers(folder, files)
    if shape is None:
        shape = _find_common_size(folder, files, headers)
    is_color = color == "rgb" or (color == "auto" and any(h.is_color for h in headers))
    x = _read_pixels(folder, files, shape, fit, is_color)
    rows = split_row_numbers(len(x), valid=valid, test=test, seed=seed)
    labels, label_names = _number_labels(names)
    return build_data(
        folder.resolve().name,
        rows.select(x).map(lambda part: part.to(torch.get_default_dtype()) / 255),
        None if labels is None else rows.select(labels),
        binarize=binarize,
        seed=seed,
        source=f"{len(x):,} images of {shape[0]} x {shape[1]} pixels",
        row_numbers=rows,
        covariates=covariates,
        label_names=label_names,
    )


def _check_shape(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    values = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size] * 2
    if len(values) != 2:
        raise ValueError(
            f"Expected size to be a number of pixels or [height, width], got {describe_value(size)}"
        )
    height, width = (check_size("size", value, least=1) for value in values)
    if max(height, width) > _MOST_PIXELS:
        raise ValueError(
            f"Expected size to be at most {_MOST_PIXELS} pixels, got {describe_value(size)}"
        )
    return height, width


def _check_folder(path: Any) -> Path:
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError(
            f"Expected data.path to name a folder of images, as in data.path=photos, got "
            f"{describe_value(path)}"
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        kind = "which is a file" if folder.is_file() else "which does not exist"
        raise ValueError(f"Expected data.path to name a folder of images, got '{path}', {kind}")
    return folder


def _find_files(folder: Path) -> list[Path]:
    """Returns the image files in a folder and its subfolders, in the order of their names."""
    from PIL import Image

    suffixes = set(Image.registered_extensions())
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in suffixes
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise ValueError(
            f"Expected '{folder}' to have images of a format that Pillow reads, such as png or "
            f"jpg, got none"
        )
    return files


def _read_label_names(folder: Path, files: Sequence[Path]) -> list[str] | None:
    """Returns the name of the subfolder of each file, or ``None`` without subfolders."""
    parts = [file.relative_to(folder).parts for file in files]
    in_subfolder = [len(names) > 1 for names in parts]
    if not any(in_subfolder):
        return None
    if not all(in_subfolder):
        loose = files[in_subfolder.index(False)]
        raise ValueError(
            f"Expected '{folder}' to have all images in subfolders, which are their labels, or "
            f"none, got '{loose.name}' beside subfolders"
        )
    return [names[0] for names in parts]


def _number_labels(names: list[str] | None) -> tuple[Tensor | None, tuple[str, ...] | None]:
    if names is None:
        return None, None
    levels = sorted(set(names))
    number = {level: i for i, level in enumerate(levels)}
    return torch.tensor([number[name] for name in names]), tuple(levels)


def _read_headers(folder: Path, files: Sequence[Path]) -> list[_Header]:
    """Returns the headers of all files, or raises one ``ValueError`` for all damaged ones."""
    from PIL import ImageOps

    def read(file: Path) -> _Header:
        with _open(file) as image:
            if image.mode == "F":
                raise ValueError("floating-point pixels")
            # Some versions of Pillow read a png of 16 bits in this mode.
            if image.mode == "I" and image.format != "PNG":
                raise ValueError("pixels of 32 bits")
            width, height = ImageOps.exif_transpose(image).size
            return _Header((height, width), image.mode not in _GREY_MODES)

    return list(_read_each(folder, files, read))


def _read_each(folder: Path, files: Sequence[Path], read: Callable[[Path], Any]) -> Iterator[Any]:
    """Yields the result for each file, and at the end raises a ``ValueError`` for damaged ones."""
    damaged = []
    for file in files:
        result, error = _try(read, file)
        if error is None:
            yield result
        else:
            damaged.append((file, error))
    if damaged:
        file, error = damaged[0]
        names = list_names([str(f.relative_to(folder)) for f, _ in damaged])
        raise ValueError(
            f"Expected '{folder}' to have intact images, got {len(damaged)} that cannot be read: "
            f"{names} ('{file.name}': {' '.join(str(error).split())}): repair or remove them"
        )


def _try(read: Callable[[Path], Any], file: Path) -> tuple[Any, Exception | None]:
    try:
        return read(file), None
    except Exception as error:
        # Pillow's readers raise errors of many classes.
        return None, error


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    from PIL import Image

    with Image.open(file) as image:
        # A png without its end can be loaded, but not verified.
        image.verify()
    with Image.open(file) as image:
        # Headers can be intact in a truncated file.
        image.load()
        yield image


def _find_common_size(
    folder: Path, files: Sequence[Path], headers: Sequence[_Header]
) -> tuple[int, int]:
    sizes = [header.size for header in headers]
    if len(set(sizes)) > 1:
        other = next(i for i, size in enumerate(sizes) if size != sizes[0])
        small = min(min(size) for size in sizes)
        shown = " and ".join(
            f"{sizes[i][0]} x {sizes[i][1]} ('{files[i].name}')" for i in (0, other)
        )
        raise ValueError(
            f"Expected images of one size in '{folder}', got {len(set(sizes))} sizes, such as "
            f"{shown}: set the size (data.size={min(small, 64)}), and data.fit=crop or stretch"
        )
    return sizes[0]


def _read_pixels(
    folder: Path, files: Sequence[Path], size: tuple[int, int], fit: str, is_color: bool
) -> Tensor:
    """Returns the pixels of all files as bytes, ``(N, channels, height, width)``."""
    channels = 3 if is_color else 1
    pixels = torch.empty((len(files), channels, *size), dtype=torch.uint8)

    def read(file: Path) -> Tensor:
        with _open(file) as image:
            array = np.array(_prepare(image, size, fit, is_color))
        return torch.from_numpy(array.reshape(*size, channels)).movedim(-1, 0)

    with Progress("reading", len(files), "images") as progress:
        # A file may change after its header was read.
        for i, image in enumerate(_read_each(folder, files, read)):
            pixels[i] = image
            progress.advance()
    return pixels


def _prepare(image: Any, size: tuple[int, int], fit: str, is_color: bool) -> Any:
    """Returns an image of the given size, in the mode L or RGB."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow would clip values above 255.
        image = Image.fromarray(
            (np.asarray(image).astype(np.float64) / 257).round().astype("uint8")
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB" if is_color else "L")
    height, width = size
    if image.size == (width, height):
        return image
    if fit == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
