"""What every data set is here: tensors, split, named with the protocol that made them."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.files.untrusted import read_json
from pyro_vae.validation import (
    check_choice,
    check_device,
    check_path,
    check_seed,
    check_tensor,
    describe_value,
    plain,
)

__all__ = [
    "PROTOCOLS",
    "Data",
    "Preparation",
    "Rows",
    "Scaling",
    "Split",
    "check_protocol",
    "count",
    "existing",
    "folder",
    "make",
    "numbered",
    "split",
]

_FORMAT = "pyro_vae data 2"
_UNSIGNED = "pyro_vae data 1"
"""The format before, which has no checksum."""

_KEYS = ("format", "event_shape", "binarize", "columns", "scaling")
_LARGEST = 2**28
"""The largest ``data.json`` that is read, in bytes: a table may have a million columns."""

PROTOCOLS = ("none", "threshold", "fixed", "dynamic")
"""How grey values become zeros and ones.

``none``: they stay; ``threshold``: one where a value exceeds one half; ``fixed``: drawn once, with
the value as probability, by the seed of the split; ``dynamic``: training rows are drawn anew each
time they are presented, validation and test rows once, as ``fixed``.
"""


class Split(NamedTuple):
    """One tensor for each part of the split."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Split":
        """Returns the split of what a function makes of each part."""
        return Split(*map(function, self))


class Rows(NamedTuple):
    """Rows to train on, with what is observed of them, and whether they are drawn anew.

    Attributes:
        x: Data of shape ``(N, *event_shape)``.
        mask: True where a value is observed, of the shape of ``x``, or ``None``.
        dynamic: Whether ``x`` holds the probabilities of zeros and ones that are drawn anew at
            each presentation.
    """

    x: Tensor
    mask: Tensor | None = None
    dynamic: bool = False

    def batch(
        self, index: Tensor | slice, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns some rows, drawn on their device if they are dynamic, and their mask."""
        x = _chosen(self.x, index)
        if self.dynamic:
            x = torch.bernoulli(x, generator=generator)
        return x, None if self.mask is None else _chosen(self.mask, index)


def _chosen(tensor: Tensor, index: Tensor | slice) -> Tensor:
    """Returns some rows; by a call of its own for whole numbers, which takes a part of the time."""
    if isinstance(index, slice) or index.dtype == torch.bool:
        return tensor[index]
    return tensor.index_select(0, index)


class Scaling(NamedTuple):
    """How values were standardized, ``(value - loc) / scale``.

    Attributes:
        loc: What was taken from each value, of the event shape.
        scale: What it was then divided by, of the event shape.
    """

    loc: Tensor
    scale: Tensor

    def undo(self, x: Tensor) -> Tensor:
        """Returns standardized values of shape ``(*, *event_shape)`` in the units of the source.

        Example:
            >>> Scaling(torch.tensor([10.0]), torch.tensor([2.0])).undo(torch.tensor([[0.5]]))
            tensor([[11.]])
        """
        check_tensor("x", x)
        return x * self.scale.to(x) + self.loc.to(x)


class Preparation(NamedTuple):
    """What brings other data into the form of a data set.

    Attributes:
        event_shape: The shape of one datum.
        binarize: The protocol of binarization.
        columns: The names of the values of a datum, for tables; or ``None``.
        scaling: How the values were standardized; or ``None``.
    """

    event_shape: tuple[int, ...]
    binarize: str
    columns: tuple[str, ...] | None = None
    scaling: Scaling | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the same as plain values for JSON, which gives each number back exactly."""
        scaling = None if self.scaling is None else self.scaling._asdict()
        values = {
            "format": _FORMAT,
            "event_shape": list(self.event_shape),
            "binarize": self.binarize,
            "columns": None if self.columns is None else list(self.columns),
            "scaling": scaling and {key: value.tolist() for key, value in scaling.items()},
        }
        return {**values, "sha256": _checksum(values)}

    @classmethod
    def load(cls, run: Path | str) -> "Preparation":
        """Returns how the data of a run were prepared.

        Arguments:
            run: The folder of a run.

        Raises:
            ValueError: If it holds no ``data.json``, or a damaged one.
        """
        path = check_path("run", run).expanduser() / "data.json"
        if not os.path.exists(path):
            raise ValueError(
                f"Expected the folder of a run with a data.json, got '{run}' without one"
            )
        try:
            return cls.from_dict(read_json(path, largest=_LARGEST))
        except ValueError as error:
            raise ValueError(
                f"Expected '{path}' to tell how data were prepared, got a damaged file: {error}"
            ) from None

    @classmethod
    def from_dict(cls, held: Any) -> "Preparation":
        """Returns what :meth:`to_dict` describes.

        Raises:
            ValueError: If it is something else.
        """
        form = held.get("format") if isinstance(held, dict) else held
        if form not in (_FORMAT, _UNSIGNED):
            raise ValueError(f"Expected the format {_FORMAT!r}, got {form!r:.50}")
        written = {"sha256"} if form == _FORMAT else set()
        if set(held) != set(_KEYS) | written:
            raise ValueError(f"Expected the keys {_KEYS}, got {sorted(held)}")
        if written and held["sha256"] != _checksum({key: held[key] for key in _KEYS}):
            raise ValueError("Expected values that match their checksum, got others")
        shape = held["event_shape"]
        if not isinstance(shape, list) or not shape or not all(map(_is_size, shape)):
            raise ValueError(f"Expected event_shape to be positive integers, got {shape!r:.50}")
        columns = held["columns"]
        if columns is not None and not (
            isinstance(columns, list)
            and [len(columns)] == shape
            and all(isinstance(name, str) for name in columns)
        ):
            raise ValueError(f"Expected columns to be {shape} names, got {columns!r:.50}")
        return cls(
            tuple(shape),
            check_protocol(held["binarize"]),
            None if columns is None else tuple(columns),
            None if held["scaling"] is None else _scaling(held["scaling"], tuple(shape)),
        )


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _scaling(held: Any, shape: tuple[int, ...]) -> Scaling:
    """Returns a scaling from plain values, or raises a ``ValueError`` for other values."""
    if not isinstance(held, dict) or set(held) != set(Scaling._fields):
        raise ValueError(f"Expected scaling to be loc and scale, got {held!r:.50}")
    exact = {}
    for name, values in held.items():
        try:
            exact[name] = torch.tensor(values, dtype=torch.float64)
        except (OverflowError, TypeError, ValueError, RuntimeError):
            raise ValueError(f"Expected {name} to be numbers, got {values!r:.50}") from None
        if exact[name].shape != shape or not bool(exact[name].isfinite().all()):
            raise ValueError(f"Expected {name} to be finite, of shape {shape}, got {values!r:.50}")
    if not bool((exact["scale"] > 0).all()):
        raise ValueError("Expected scale to be positive, got a zero or less")
    return Scaling(**exact)


class Data(NamedTuple):
    """A data set.

    Attributes:
        name: The set's name.
        binarize: The protocol of binarization, one of ``PROTOCOLS``; part of every result.
        x: Data, each part of shape ``(rows, *event_shape)``. With the protocol ``dynamic`` the
            training part holds probabilities.
        labels: Labels, each part of shape ``(rows,)``, for pictures only; or ``None``.
        source: Where the data come from, in a line.
        mask: True where a value is observed, each part of the shape of ``x``; or ``None``.
        scaling: How the values were standardized, in double precision, to undo it; or ``None``.
        columns: The names of the values of a datum, for tables; or ``None``.
        label_names: What each label stands for, where it is not its own name; or ``None``.
        row_numbers: The number of each row in the source, from 0, each part of shape ``(rows,)``;
            where training and test rows come from two files, in its own file. Or ``None``.
    """

    name: str
    binarize: str
    x: Split
    labels: Split | None
    source: str
    mask: Split | None = None
    scaling: Scaling | None = None
    columns: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    row_numbers: Split | None = None

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum."""
        return self.x.train.shape[1:]

    @property
    def train(self) -> Rows:
        """The training rows, for :func:`pyro_vae.fit`."""
        mask = None if self.mask is None else self.mask.train
        return Rows(self.x.train, mask, self.binarize == "dynamic")

    @property
    def valid(self) -> Rows:
        """The validation rows."""
        return Rows(self.x.valid, None if self.mask is None else self.mask.valid)

    @property
    def test(self) -> Rows:
        """The test rows."""
        return Rows(self.x.test, None if self.mask is None else self.mask.test)

    def to(self, device: torch.device | str) -> "Data":
        """Returns the same data on another device.

        Raises:
            ValueError: If this machine has no such device.
        """
        device = check_device(device)
        mask = None if self.mask is None else self.mask.map(lambda part: part.to(device))
        x = self.x.map(lambda part: part.to(device))
        return self._replace(x=x, mask=mask)

    @property
    def preparation(self) -> Preparation:
        """What brings other data into the form of these."""
        return Preparation(tuple(self.event_shape), self.binarize, self.columns, self.scaling)

    @property
    def title(self) -> str:
        """The name with the protocol, without which no figure can be compared."""
        return self.name if self.binarize == "none" else f"{self.name}, binarized: {self.binarize}"


def check_protocol(binarize: str) -> str:
    """Returns the protocol, or raises a ``ValueError`` if there is none of that name."""
    return str(check_choice("binarize", binarize, PROTOCOLS))


def make(
    name: str,
    x: Split,
    labels: Split | None,
    *,
    binarize: str,
    seed: int,
    source: str,
    row_numbers: Split | None = None,
) -> Data:
    """Returns a data set of values in [0, 1], binarized by a protocol.

    Raises:
        ValueError: If there is no such protocol, or it needs values in [0, 1] and gets others.
    """
    check_protocol(binarize)
    if binarize != "none" and not all(bool(((p >= 0) & (p <= 1)).all()) for p in x):
        values = torch.cat([part.flatten() for part in x])
        low, high = values.min().item(), values.max().item()
        raise ValueError(
            f"Expected values in [0, 1] for binarize={binarize!r}, got values from {low:g} to "
            f"{high:g}"
        )
    if binarize == "threshold":
        x = x.map(lambda part: (part > 0.5).to(part.dtype))
    elif binarize in ("fixed", "dynamic"):
        generator = torch.Generator().manual_seed(check_seed(seed))
        drawn = x.map(lambda part: torch.bernoulli(part, generator=generator))
        x = drawn if binarize == "fixed" else drawn._replace(train=x.train)
    return Data(name, binarize, x, labels, source, row_numbers=row_numbers)


def count(name: str, value: float, size: int) -> int:
    """Returns how many of ``size`` rows a number or a fraction of them means.

    Raises:
        ValueError: If it is neither an integer nor a fraction.

    Example:
        >>> count("valid", 0.1, 50), count("valid", 7, 50)
        (5, 7)
    """
    value = plain(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, float) or not 0 <= value <= 1:
        raise ValueError(
            f"Expected {name} to be a number of rows or a fraction of them, got "
            f"{describe_value(value)}"
        )
    return round(size * value)


def split(tensor: Tensor, *, valid: float, test: float, seed: int) -> Split:
    """Splits rows at random, by a generator of its own.

    Arguments:
        tensor: The rows.
        valid: The rows kept for validation: their number, or their fraction if it is a float.
        test: The rows kept for the test, likewise. If both are 0 all rows are training rows, in
            their own order.
        seed: The seed of the order.

    Raises:
        ValueError: If the fractions leave no row for a part.
    """
    seed, valid, test = check_seed(seed), plain(valid), plain(test)
    if _whole(valid, test):
        return Split(tensor, tensor[:0], tensor[:0])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(tensor), generator=generator)
    counts = count("valid", valid, len(tensor)), count("test", test, len(tensor))
    if min(counts) < 1 or sum(counts) >= len(tensor):
        raise ValueError(
            f"Expected valid and test to be numbers or fractions that leave rows for each part of "
            f"{len(tensor)}, got {valid=}, {test=}"
        )
    sizes = [len(tensor) - sum(counts), *counts]
    return Split(*(tensor[rows] for rows in order.split(sizes)))


def _whole(valid: float, test: float) -> bool:
    """Tells whether data are not to be split: both numbers of rows are the integer 0."""
    return all(isinstance(n, int) and not isinstance(n, bool) and n == 0 for n in (valid, test))


def numbered(size: int, *, valid: float, test: float, seed: int) -> Split:
    """Returns the numbers of the rows that :func:`split` puts into each part.

    Example:
        >>> sorted(torch.cat(numbered(5, valid=1, test=2, seed=0)).tolist())
        [0, 1, 2, 3, 4]
    """
    return split(torch.arange(size), valid=valid, test=test, seed=seed)


def folder(root: str | Path | None) -> Path:
    """Returns the folder of the data: ``root``, or ``PYRO_VAE_DATA``, or ``~/.cache/pyro_vae``."""
    return Path(root or os.environ.get("PYRO_VAE_DATA") or "~/.cache/pyro_vae").expanduser()


def existing(path: str | Path | None, suffixes: tuple[str, ...]) -> Path:
    """Returns the path of a file that exists.

    Raises:
        ValueError: If it is missing, or the name of no such file.
    """
    kinds = " or ".join(suffixes)
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError(
            f"Expected data.path to name a {kinds} file, as in data.path=my{suffixes[0]}, got "
            f"{describe_value(path)}"
        )
    found = Path(path).expanduser()
    if found.suffix.lower() not in suffixes:
        raise ValueError(f"Expected data.path to name a {kinds} file, got '{path}'")
    if not found.is_file():
        raise ValueError(f"Expected data.path to name a file, got '{path}', which is none")
    return found
