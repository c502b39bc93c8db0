"""The type of every data set: split tensors, named with their binarization protocol."""

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
    to_plain_python,
)

__all__ = [
    "PROTOCOLS",
    "Data",
    "Preparation",
    "Rows",
    "Scaling",
    "Split",
    "build_data",
    "check_data_file",
    "check_protocol",
    "count_rows",
    "find_data_folder",
    "split_row_numbers",
]

_FORMAT = "pyro_vae data 2"
_UNSIGNED = "pyro_vae data 1"
"""The previous format, which has no checksum."""

_KEYS = ("format", "event_shape", "binarize", "columns", "scaling")
_LARGEST = 2**28
"""The largest ``data.json`` that is read, in bytes: a table may have a million columns."""

PROTOCOLS = ("none", "threshold", "fixed", "dynamic")
"""Protocols for the binarization of grey values.

``none``: unchanged; ``threshold``: one where a value exceeds one half; ``fixed``: sampled once,
with the value as probability, by the seed of the split; ``dynamic``: training rows are sampled
again at each presentation, validation and test rows once, as with ``fixed``.
"""


class Split(NamedTuple):
    """One tensor for each part of the split."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Split":
        """Returns the split with a function applied to each part."""
        return Split(*map(function, self))

    def select(self, tensor: Tensor) -> "Split":
        """Returns the rows of a tensor, given that this split holds their numbers."""
        if len(self.train) == len(tensor):
            # Unsplit rows keep their order, and need no copy.
            return Split(tensor, tensor[:0], tensor[:0])
        return self.map(lambda rows: tensor[rows])


class Rows(NamedTuple):
    """Training rows, with a mask of observed values and a flag for dynamic binarization.

    Attributes:
        x: Data of shape ``(N, *event_shape)``.
        mask: True where a value is observed, of the shape of ``x``, or ``None``.
        dynamic: Whether ``x`` holds probabilities, from which zeros and ones are sampled at each
            presentation.
    """

    x: Tensor
    mask: Tensor | None = None
    dynamic: bool = False

    def batch(
        self, index: Tensor | slice, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the rows at an index, sampled on their device if dynamic, and their mask."""
        x = _select_rows(self.x, index)
        if self.dynamic:
            x = torch.bernoulli(x, generator=generator)
        return x, None if self.mask is None else _select_rows(self.mask, index)


def _select_rows(tensor: Tensor, index: Tensor | slice) -> Tensor:
    # For integers, index_select is faster than indexing.
    if isinstance(index, slice) or index.dtype == torch.bool:
        return tensor[index]
    return tensor.index_select(0, index)


class Scaling(NamedTuple):
    """How values were standardized, ``(value - loc) / scale``.

    Attributes:
        loc: The offset subtracted from each value, of the event shape.
        scale: The divisor applied after that, of the event shape.
    """

    loc: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, x: Tensor, observed: Tensor) -> "Scaling":
        """Returns the mean and standard deviation of observed values; 0 for constant columns.

        Example:
            >>> Scaling.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.ones(2, 2) > 0)
            Scaling(loc=tensor([2., 5.]), scale=tensor([1., 0.]))
        """
        count = observed.sum(0).clamp(min=1)
        loc = x.where(observed, 0.0).sum(0) / count
        scale = ((x - loc).where(observed, 0.0).square().sum(0) / count).sqrt()
        # Rounding errors alone can make the standard deviation of a constant column positive.
        constant = scale.isfinite() & (scale <= 1e-12 * loc.abs())
        return cls(loc, torch.where(constant, 0.0, scale))

    def undo(self, x: Tensor) -> Tensor:
        """Returns standardized values of shape ``(*, *event_shape)`` in the units of the source.

        Example:
            >>> Scaling(torch.tensor([10.0]), torch.tensor([2.0])).undo(torch.tensor([[0.5]]))
            tensor([[11.]])
        """
        check_tensor("x", x)
        return x * self.scale.to(x) + self.loc.to(x)


class Preparation(NamedTuple):
    """The settings that prepare other data in the same way as a data set.

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
        """Returns plain values for JSON, which preserves each number exactly."""
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
        """Loads the preparation of the data of a run.

        Arguments:
            run: The folder of a run.

        Raises:
            ValueError: If its ``data.json`` is missing or damaged.
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
                f"Expected '{path}' to describe prepared data, got a damaged file: {error}"
            ) from None

    @classmethod
    def from_dict(cls, values: Any) -> "Preparation":
        """Returns the preparation with the values of :meth:`to_dict`.

        Raises:
            ValueError: If the values are not those of a preparation.
        """
        form = values.get("format") if isinstance(values, dict) else values
        if form not in (_FORMAT, _UNSIGNED):
            raise ValueError(f"Expected the format {_FORMAT!r}, got {form!r:.50}")
        signature = {"sha256"} if form == _FORMAT else set()
        if set(values) != set(_KEYS) | signature:
            raise ValueError(f"Expected the keys {_KEYS}, got {sorted(values)}")
        if signature and values["sha256"] != _checksum({key: values[key] for key in _KEYS}):
            raise ValueError("Expected values that match their checksum, got other values")
        shape = values["event_shape"]
        if not isinstance(shape, list) or not shape or not all(map(_is_size, shape)):
            raise ValueError(f"Expected event_shape to be positive integers, got {shape!r:.50}")
        columns = values["columns"]
        if columns is not None and not (
            isinstance(columns, list)
            and [len(columns)] == shape
            and all(isinstance(name, str) for name in columns)
        ):
            raise ValueError(f"Expected columns to be {shape} names, got {columns!r:.50}")
        return cls(
            tuple(shape),
            check_protocol(values["binarize"]),
            None if columns is None else tuple(columns),
            None if values["scaling"] is None else _parse_scaling(values["scaling"], tuple(shape)),
        )


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _parse_scaling(values: Any, shape: tuple[int, ...]) -> Scaling:
    """Returns a scaling from plain values, or raises a ``ValueError`` for other values."""
    if not isinstance(values, dict) or set(values) != set(Scaling._fields):
        raise ValueError(f"Expected scaling to be loc and scale, got {values!r:.50}")
    tensors = {}
    for name, numbers in values.items():
        try:
            tensors[name] = torch.tensor(numbers, dtype=torch.float64)
        except (OverflowError, TypeError, ValueError, RuntimeError):
            raise ValueError(f"Expected {name} to be numbers, got {numbers!r:.50}") from None
        if tensors[name].shape != shape or not bool(tensors[name].isfinite().all()):
            raise ValueError(f"Expected {name} to be finite, of shape {shape}, got {numbers!r:.50}")
    if not bool((tensors["scale"] > 0).all()):
        raise ValueError("Expected scale to be positive, got zero or less")
    return Scaling(**tensors)


class Data(NamedTuple):
    """A data set.

    Attributes:
        name: The name of the data set.
        binarize: The binarization protocol, one of ``PROTOCOLS``; part of every result.
        x: Data, each part of shape ``(rows, *event_shape)``. With the protocol ``dynamic`` the
            training part holds probabilities.
        labels: Labels, each part of shape ``(rows,)``, for figures only; or ``None``.
        source: The origin of the data, in one line.
        mask: True where a value is observed, each part of the shape of ``x``; or ``None``.
        scaling: How the values were standardized, in double precision, to undo it; or ``None``.
        columns: The names of the values of a datum, for tables; or ``None``.
        label_names: The name of each label, if labels are not their own names; or ``None``.
        row_numbers: The number of each row in its source file, from 0, each part of shape
            ``(rows,)``; or ``None``.
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
        """The settings that prepare other data in the same way."""
        return Preparation(tuple(self.event_shape), self.binarize, self.columns, self.scaling)

    @property
    def title(self) -> str:
        """The name with the binarization protocol, which any comparison of metrics needs."""
        return self.name if self.binarize == "none" else f"{self.name}, binarized: {self.binarize}"


def check_protocol(binarize: str) -> str:
    """Returns the protocol, or raises a ``ValueError`` for an unknown name."""
    return str(check_choice("binarize", binarize, PROTOCOLS))


def build_data(
    name: str,
    x: Split,
    labels: Split | None,
    *,
    binarize: str,
    seed: int,
    source: str,
    row_numbers: Split | None = None,
) -> Data:
    """Returns a data set of split values, binarized by a protocol.

    Raises:
        ValueError: If the protocol is unknown, or it needs values in [0, 1] and gets others.
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
        binary = x.map(lambda part: torch.bernoulli(part, generator=generator))
        x = binary if binarize == "fixed" else binary._replace(train=x.train)
    return Data(name, binarize, x, labels, source, row_numbers=row_numbers)


def count_rows(name: str, value: float, size: int) -> int:
    """Returns a number of rows, given as such or as a fraction of ``size``.

    Raises:
        ValueError: If it is neither an integer nor a fraction.

    Example:
        >>> count_rows("valid", 0.1, 50), count_rows("valid", 7, 50)
        (5, 7)
    """
    value = to_plain_python(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, float) or not 0 <= value <= 1:
        raise ValueError(
            f"Expected {name} to be a number of rows or a fraction of them, got "
            f"{describe_value(value)}"
        )
    return round(size * value)


def split_row_numbers(size: int, *, valid: float, test: float, seed: int) -> Split:
    """Splits the numbers of rows at random, with a separate generator.

    Arguments:
        size: The number of rows.
        valid: The rows kept for validation: their number, or their fraction if it is a float.
        test: The rows kept for the test, likewise. If both are 0, all rows are training rows, in
            their original order.
        seed: The seed of the order.

    Raises:
        ValueError: If the fractions leave no row for a part.

    Example:
        >>> rows = split_row_numbers(5, valid=1, test=2, seed=0)
        >>> sorted(torch.cat(rows).tolist()), rows.select(10 * torch.arange(5)).test.shape
        ([0, 1, 2, 3, 4], torch.Size([2]))
    """
    seed, valid, test = check_seed(seed), to_plain_python(valid), to_plain_python(test)
    if _is_unsplit(valid, test):
        rows = torch.arange(size)
        return Split(rows, rows[:0], rows[:0])
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    counts = count_rows("valid", valid, size), count_rows("test", test, size)
    if min(counts) < 1 or sum(counts) >= size:
        raise ValueError(
            f"Expected valid and test to be numbers or fractions that leave rows for each part of "
            f"{size}, got {valid=}, {test=}"
        )
    return Split(*order.split([size - sum(counts), *counts]))


def _is_unsplit(valid: float, test: float) -> bool:
    """Whether data stay unsplit: both numbers of rows are the integer 0."""
    return all(isinstance(n, int) and not isinstance(n, bool) and n == 0 for n in (valid, test))


def find_data_folder(root: str | Path | None) -> Path:
    """Returns the folder of the data: ``root``, or ``PYRO_VAE_DATA``, or ``~/.cache/pyro_vae``."""
    return Path(root or os.environ.get("PYRO_VAE_DATA") or "~/.cache/pyro_vae").expanduser()


def check_data_file(path: str | Path | None, suffixes: tuple[str, ...]) -> Path:
    """Returns the path of a file that exists.

    Raises:
        ValueError: If the file is missing or has another suffix.
    """
    kinds = " or ".join(suffixes)
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError(
            f"Expected data.path to name a {kinds} file, as in data.path=my{suffixes[0]}, got "
            f"{describe_value(path)}"
        )
    file = Path(path).expanduser()
    if file.suffix.lower() not in suffixes:
        raise ValueError(f"Expected data.path to name a {kinds} file, got '{path}'")
    if not file.is_file():
        raise ValueError(f"Expected data.path to name a file, got '{path}', which is not a file")
    return file
