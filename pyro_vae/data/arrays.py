"""NumPy arrays: user files, and Frey Faces."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.base import (
    Data,
    build_data,
    check_data_file,
    check_protocol,
    find_data_folder,
    split_row_numbers,
)
from pyro_vae.validation import check_choice, check_flag, check_positive

__all__ = ["array", "frey_faces", "read_arrays"]

_SCALES = ("open", "closed")

_EXACT = 2**53
"""Double precision represents every integer up to this one."""


def array(
    path: str | Path | None = None,
    *,
    key: str | None = None,
    labels_key: str | None = None,
    channels_last: bool = False,
    scale: float | None = None,
    binarize: str = "none",
    covariates: str | None = None,
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Data:
    """Returns the rows of an array in a NumPy file, images for example.

    Arguments:
        path: An npy or npz file. Rows come first; an array ``(N, H, W)`` of images is returned
            as ``(N, 1, H, W)``, any other in its shape. Convolutions need colour images as
            ``(N, C, H, W)``: see ``channels_last``.
        key: The name of the array in an npz file; needed only if there are several.
        labels_key: The name of an array of integers ``(N,)`` there: the labels.
        channels_last: Whether the array is ``(N, H, W, C)``; it is returned as ``(N, C, H, W)``.
        scale: The divisor of the values, 255 for bytes; ``None``: 1.
        binarize: A protocol, one of :data:`pyro_vae.data.PROTOCOLS`.
        covariates: ``"label"`` for the label as a covariate, or ``None``.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise; both 0: no split, all are training rows.
        seed: The seed of the split, and of a fixed binarization.

    Raises:
        ValueError: If the file is missing or damaged, an array is missing, values are not finite
            numbers, or an argument is out of range.
    """
    check_protocol(binarize)
    scale = None if scale is None else check_positive("scale", scale)
    file = check_data_file(path, (".npy", ".npz"))
    arrays = read_arrays(file)
    if labels_key is not None and labels_key not in arrays:
        raise ValueError(f"Expected labels_key to be one of {sorted(arrays)}, got {labels_key!r}")
    names = sorted(name for name in arrays if name != labels_key)
    if key is None and len(names) == 1:
        key = names[0]
    if key not in arrays:
        raise ValueError(f"Expected key to be one of {names}, the arrays of '{file}', got {key!r}")
    x = _to_rows(arrays[key], key) / (1 if scale is None else scale)
    if not bool(x.isfinite().all()):
        raise ValueError(f"Expected scale to keep values finite in {x.dtype}, got {scale!r}")
    if check_flag("channels_last", channels_last):
        if x.dim() != 4:
            raise ValueError(
                f"Expected {key} to have shape (N, H, W, C) for channels_last=True, got "
                f"{tuple(x.shape)}"
            )
        x = x.movedim(-1, 1).contiguous()
    if x.dim() == 3:
        x = x.unsqueeze(1)
    labels = None if labels_key is None else _to_labels(arrays[labels_key], labels_key, len(x))
    rows = split_row_numbers(len(x), valid=valid, test=test, seed=seed)
    parts = rows.select(x)
    return build_data(
        file.stem,
        parts,
        None if labels is None else rows.select(labels),
        binarize=binarize,
        seed=seed,
        source=f"{file.name}, {key}",
        row_numbers=rows,
        covariates=covariates,
    )


def frey_faces(
    path: str | Path | None = None,
    *,
    scale: str = "open",
    valid: float = 200,
    test: float = 200,
    seed: int = 0,
) -> Data:
    """Returns Frey Faces: 1,965 frames of a video of one face, 28 x 20 pixels in 256 greys.

    The frames are shuffled by the seed and split 1565/200/200. Consecutive frames are nearly the
    same, so test frames have near copies among the training rows: metrics measure interpolation
    between frames, not generalization to another video.

    References:
        | Auto-encoding variational Bayes (Kingma and Welling, 2013),
          https://arxiv.org/abs/1312.6114
        | VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120

    Arguments:
        path: An npz file with the array ``images``, bytes of shape ``(1965, 28, 20)``; by default
            ``frey_faces.npz`` in the folder ``PYRO_VAE_DATA``, or ``~/.cache/pyro_vae``.
        scale: ``"open"``: (g + 0.5) / 256, within (0, 1), as in the VampPrior's paper;
            ``"closed"``: g / 255, from 0 to 1.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise.
        seed: The seed of the split.

    Raises:
        ValueError: If the file is missing or has other content, or an argument is out of range.
    """
    scale = check_choice("scale", scale, _SCALES)
    file = check_data_file(path or find_data_folder(None) / "frey_faces.npz", (".npz",))
    images = read_arrays(file).get("images")
    if images is None or images.dtype != np.uint8 or images.shape[1:] != (28, 20):
        actual = "none" if images is None else f"{images.dtype} of shape {images.shape}"
        raise ValueError(
            f"Expected '{file}' to hold images, bytes of shape (1965, 28, 20), got {actual}"
        )
    grey = torch.from_numpy(images).to(torch.get_default_dtype()).unsqueeze(1)
    x = (grey + 0.5) / 256 if scale == "open" else grey / 255
    rows = split_row_numbers(len(x), valid=valid, test=test, seed=seed)
    parts = rows.select(x)
    source = f"Frey Faces, {'(g + 0.5) / 256' if scale == 'open' else 'g / 255'}"
    return build_data(
        "frey_faces",
        parts,
        None,
        binarize="none",
        seed=seed,
        source=source,
        row_numbers=rows,
    )


def read_arrays(file: Path) -> dict[str, Any]:
    """Returns the arrays of a file by name; that of an npy file is called ``array``."""
    try:
        # NumPy does not close a file that it cannot read.
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            return {"array": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:
        # The readers of zip archives, headers and pickles raise different errors.
        raise ValueError(
            f"Expected '{file}' to be an intact file of arrays, got {type(error).__name__}: {error}"
        ) from error


def _to_rows(values: Any, key: str) -> Tensor:
    """Returns an array of rows as a tensor, or raises a ``ValueError`` if it is not numeric."""
    if values.dtype.kind not in "buif":
        raise ValueError(f"Expected {key} to be an array of numbers, got dtype {values.dtype}")
    if values.ndim < 2 or 0 in values.shape:
        raise ValueError(f"Expected {key} to be rows of values, got shape {values.shape}")
    if values.dtype.kind in "ui" and bool(((values > _EXACT) | (values < -_EXACT)).any()):
        raise ValueError(
            f"Expected {key} to be exact in double precision, got integers above 2**53: "
            f"leave identifiers out, or store floating-point numbers"
        )
    x = torch.from_numpy(values.astype(np.float64)).to(torch.get_default_dtype())
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ValueError(
            f"Expected {key} to be finite, got {bad} values that are not "
            f"(data=table allows missing values)"
        )
    return x


def _to_labels(values: Any, key: str, size: int) -> Tensor:
    """Returns labels, or raises a ``ValueError`` if they are not one integer for each row."""
    if values.dtype.kind not in "bui" or values.shape != (size,):
        raise ValueError(
            f"Expected {key} to be integers of shape ({size},), got {values.dtype} of shape "
            f"{values.shape}"
        )
    if bool((values > np.iinfo(np.int64).max).any()):
        raise ValueError(f"Expected {key} to be signed 64-bit integers, got larger ones")
    return torch.from_numpy(values.astype(np.int64))
