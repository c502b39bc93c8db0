"""The type of every data set: split tensors, named with their binarization protocol."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.covariates import Covariates, parse_kinds
from pyro_vae.data.preparation import Preparation, Scaling, check_protocol
from pyro_vae.data.sparse_rows import copy_tensor, take_rows
from pyro_vae.display.text import describe_fields
from pyro_vae.tables.schema import Schema
from pyro_vae.validation import (
    check_device,
    check_seed,
    describe_value,
    to_plain_python,
)

__all__ = [
    "Batch",
    "Data",
    "Rows",
    "Split",
    "build_data",
    "check_data_file",
    "count_rows",
    "encode_labels",
    "find_data_folder",
    "split_row_numbers",
]


class Split(NamedTuple):
    """One tensor for each part of the split."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def __repr__(self) -> str:
        return describe_fields(self)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Split":
        """Returns the split with a function applied to each part."""
        return Split(*map(function, self))

    def select(self, tensor: Tensor) -> "Split":
        """Returns the rows of a tensor, given that this split holds their numbers."""
        if len(self.train) == len(tensor):
            # Unsplit rows keep their order, and need no copy.
            return Split(tensor, tensor[:0], tensor[:0])
        return self.map(lambda rows: tensor[rows])

    def __deepcopy__(self, memo: dict[int, Any]) -> "Split":
        """Returns a copy with copies of the tensors, also of sparse ones."""
        return self.map(lambda part: copy_tensor(part, memo))


class Batch(NamedTuple):
    """Some rows, with their mask and covariates, which may be ``None``."""

    x: Tensor
    mask: Tensor | None
    covariates: Tensor | None

    def __repr__(self) -> str:
        return describe_fields(self)


class Rows(NamedTuple):
    """Rows, with a mask of observed values, a flag for dynamic binarization, and covariates.

    Attributes:
        x: Data of shape ``(N, *event_shape)``; a matrix may be sparse (``torch.sparse_csr``),
            without mask.
        mask: True where a value is observed, of the shape of ``x``, or ``None``.
        dynamic: Whether ``x`` holds probabilities, from which zeros and ones are sampled at each
            presentation.
        covariates: Covariates of shape ``(N, covariate_dim)``, or ``None``.
    """

    x: Tensor
    mask: Tensor | None = None
    dynamic: bool = False
    covariates: Tensor | None = None

    def __repr__(self) -> str:
        return describe_fields(self)

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> Batch:
        """Returns the rows at an index, dense, and sampled on their device if dynamic."""
        x = take_rows(self.x, index)
        if self.dynamic:
            x = torch.bernoulli(x, generator=generator)
        others = (self.mask, self.covariates)
        return Batch(x, *(None if t is None else take_rows(t, index) for t in others))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rows":
        """Returns a copy with copies of the tensors, also of sparse ones."""
        mask, covariates = copy.deepcopy((self.mask, self.covariates), memo)
        return Rows(copy_tensor(self.x, memo), mask, self.dynamic, covariates)


class Data(NamedTuple):
    """A data set.

    Attributes:
        name: The name of the data set.
        binarize: The binarization protocol, one of ``PROTOCOLS``; part of every result.
        x: Data, each part of shape ``(rows, *event_shape)``. With the protocol ``dynamic`` the
            training part holds probabilities. Counts may be sparse (``torch.sparse_csr``).
        labels: Labels, each part of shape ``(rows,)``, for figures only; or ``None``.
        source: The origin of the data, in one line.
        mask: True where a value is observed, each part of the shape of ``x``; or ``None``.
        scaling: How the values were standardized, in double precision, to undo it; or ``None``.
        columns: The names of the values of a datum, for tables; or ``None``.
        label_names: The name of each label, if labels are not their own names; or ``None``.
        row_numbers: The number of each row in its source file, from 0, each part of shape
            ``(rows,)``; or ``None``.
        covariates: Encoded covariates, each part of shape ``(rows, covariate_dim)``; or ``None``.
        covariate_columns: How they are encoded; or ``None``.
        schema: The kinds and the code book of the columns, for a table of mixed columns; or
            ``None``.
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
    covariates: Split | None = None
    covariate_columns: Covariates | None = None
    schema: Schema | None = None

    def __repr__(self) -> str:
        return describe_fields(self)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum."""
        return self.x.train.shape[1:]

    @property
    def train(self) -> Rows:
        """The training rows, for :func:`pyro_vae.fit`."""
        return self._get_rows(0)._replace(dynamic=self.binarize == "dynamic")

    @property
    def valid(self) -> Rows:
        """The validation rows."""
        return self._get_rows(1)

    @property
    def test(self) -> Rows:
        """The test rows."""
        return self._get_rows(2)

    def _get_rows(self, part: int) -> Rows:
        mask = None if self.mask is None else self.mask[part]
        return Rows(self.x[part], mask, False, self.covariates and self.covariates[part])

    def to(self, device: torch.device | str) -> "Data":
        """Returns the same data on another device.

        Raises:
            ValueError: If this machine has no such device.
        """
        device = check_device(device)
        splits = {
            name: split.map(lambda part: part.to(device))
            for name in ("x", "mask", "covariates")
            if (split := getattr(self, name)) is not None
        }
        return self._replace(**splits)

    @property
    def preparation(self) -> Preparation:
        """The settings that prepare other data in the same way."""
        return Preparation(
            tuple(self.event_shape),
            self.binarize,
            self.columns,
            self.scaling,
            self.covariate_columns,
            self.schema,
        )

    @property
    def title(self) -> str:
        """The name with the binarization protocol, which any comparison of metrics needs."""
        return self.name if self.binarize == "none" else f"{self.name}, binarized: {self.binarize}"


def build_data(
    name: str,
    x: Split,
    labels: Split | None,
    *,
    binarize: str,
    seed: int,
    source: str,
    row_numbers: Split | None = None,
    covariates: Any = None,
    label_names: tuple[str, ...] | None = None,
) -> Data:
    """Returns a data set of split values, binarized by a protocol.

    Raises:
        ValueError: If the protocol is unknown, it needs values in [0, 1] and gets others, or
            covariates are not ``"label"``.
    """
    check_protocol(binarize)
    columns, encoded = _encode_label_covariates(name, labels, label_names, covariates)
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
    return Data(
        name, binarize, x, labels, source, row_numbers=row_numbers, covariates=encoded,
        covariate_columns=columns, label_names=label_names,
    )  # fmt: skip


def _encode_label_covariates(
    name: str, labels: Split | None, label_names: tuple[str, ...] | None, covariates: Any
) -> tuple[Covariates | None, Split | None]:
    """Returns the encoding of labels as a covariate, or ``None`` without covariates."""
    kinds = parse_kinds(covariates)
    if not kinds:
        return None, None
    if set(kinds) != {"label"}:
        raise ValueError(f"Expected covariates of '{name}' to be label or none, got {list(kinds)}")
    if labels is None:
        raise ValueError(f"Expected labels for covariates='label', got '{name}' without labels")
    table = _name_labels(labels.train, label_names)
    columns = Covariates.fit(table, {"label": kinds["label"] or "categorical"})
    return columns, labels.map(lambda part: columns.encode(_name_labels(part, label_names)))


def _name_labels(labels: Tensor, label_names: tuple[str, ...] | None) -> dict[str, Any]:
    numbers = labels.tolist()
    return {"label": numbers if label_names is None else [label_names[n] for n in numbers]}


def encode_labels(data: Data, columns: Covariates) -> Data:
    """Returns a data set with its labels as the covariate of another data set.

    Raises:
        ValueError: If there are no labels, or levels that the other data set lacks.
    """
    labels = data.labels
    if labels is None:
        raise ValueError(
            f"Expected labels for covariates='label', got '{data.name}' without labels"
        )
    encoded = labels.map(lambda part: columns.encode(_name_labels(part, data.label_names)))
    return data._replace(covariates=encoded, covariate_columns=columns)


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


def check_data_file(
    path: str | Path | None,
    suffixes: tuple[str, ...],
    name: str = "data.path",
    shown: tuple[str, ...] = (),
) -> Path:
    """Returns the path of a file that exists.

    Arguments:
        path: The path.
        suffixes: Those that are allowed.
        name: The name of the setting.
        shown: The most common suffixes, for errors; by default all.

    Raises:
        ValueError: If the file is missing or has another suffix.
    """
    *others, last = shown or suffixes
    kinds = f"{', '.join(others)} or {last}" if others else last
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError(
            f"Expected {name} to name a {kinds} file, as in {name}=my{suffixes[0]}, got "
            f"{describe_value(path)}"
        )
    file = Path(path).expanduser()
    if file.suffix.lower() not in suffixes:
        raise ValueError(f"Expected {name} to name a {kinds} file, got '{path}'")
    if not file.is_file():
        raise ValueError(f"Expected {name} to name a file, got '{path}', which is not a file")
    return file
