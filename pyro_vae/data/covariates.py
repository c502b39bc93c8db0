"""Covariates: columns that describe the rows, encoded as numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.display.text import describe_fields
from pyro_vae.validation import check_choice, check_tensor, describe_value, list_names

__all__ = ["Covariate", "Covariates", "parse_kinds"]

KINDS = ("categorical", "continuous", "size_factor")

_MAX_LEVELS = 10
"""The most distinct integers that are taken as categories."""


class Covariate(NamedTuple):
    """One covariate and how it is encoded.

    Attributes:
        name: The name of its column.
        kind: ``"categorical"``: one-hot; ``"continuous"``: standardized; ``"size_factor"``:
            unchanged.
        levels: The names of the categories, in the order of their encoding.
        loc: The mean of a continuous covariate over the training rows.
        scale: Its standard deviation.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    loc: float = 0.0
    scale: float = 1.0

    def __repr__(self) -> str:
        return describe_fields(self)

    @property
    def dim(self) -> int:
        """The number of columns of its encoding."""
        return len(self.levels) if self.kind == "categorical" else 1

    def encode(self, values: Any) -> Tensor:
        """Returns the encoding of values, ``(N, dim)``.

        Raises:
            ValueError: If a value is missing, is not a number, or is a level that training rows
                lack.
        """
        if self.kind == "categorical":
            names = _to_names(self.name, values)
            unknown = sorted(set(names) - set(self.levels))
            if unknown:
                first = next(i for i, name in enumerate(names) if name in unknown)
                raise ValueError(
                    f"Expected covariate {self.name!r} to have levels of the training rows, "
                    f"{list_names(self.levels)}, got {list_names(unknown)}, first in row {first}"
                )
            numbers = {level: i for i, level in enumerate(self.levels)}
            index = torch.tensor([numbers[name] for name in names], dtype=torch.long)
            return torch.nn.functional.one_hot(index, len(self.levels)).double()
        numbers_ = _to_numbers(self.name, values)
        if self.kind == "size_factor":
            # A tiny or huge factor is zero or infinite in the precision of the data.
            stored = numbers_.to(torch.get_default_dtype())
            valid = (stored > 0) & stored.isfinite()
            if not bool(valid.all()):
                raise ValueError(
                    f"Expected size factor {self.name!r} to be positive and finite in "
                    f"{stored.dtype}, got {numbers_[~valid][0].item():g}"
                )
        return ((numbers_ - self.loc) / self.scale).unsqueeze(1)


class Covariates(NamedTuple):
    """The covariates of a data set, in the order of their encoding.

    Attributes:
        columns: The covariates.

    Example:
        >>> table = {"batch": ["a", "b", "a"], "age": [30.0, 40.0, 50.0]}
        >>> covariates = Covariates.fit(table)
        >>> covariates.encode({"batch": ["b"], "age": [40.0]})
        tensor([[0., 1., 0.]])
        >>> covariates.feature_names
        ['batch=a', 'batch=b', 'age']
    """

    columns: tuple[Covariate, ...]

    def __repr__(self) -> str:
        return f"Covariates({self.describe()})"

    @classmethod
    def fit(
        cls, table: Mapping[str, Any], kinds: Mapping[str, str | None] | None = None
    ) -> "Covariates":
        """Returns the encoding of covariates, from their values in the training rows.

        Arguments:
            table: The values of each covariate by its name, such as a pandas DataFrame.
            kinds: ``"categorical"``, ``"continuous"`` or ``"size_factor"`` for each covariate, in
                the order of their encoding; ``None`` for a kind to infer: words, booleans and up to
                10 distinct integers are categorical. By default all columns, inferred.

        Raises:
            ValueError: If a covariate is unknown, has missing values, or is constant.
        """
        kinds = dict.fromkeys(table.keys()) if kinds is None else kinds
        if not kinds:
            raise ValueError("Expected covariates to have columns, got none")
        missing = [name for name in kinds if name not in table]
        if missing:
            raise ValueError(
                f"Expected covariates among {list_names(list(table.keys()))}, got "
                f"{list_names(missing)}"
            )
        # A likelihood takes the last covariate as its size factor.
        sizes = [name for name in kinds if kinds[name] == "size_factor"]
        if len(sizes) > 1:
            raise ValueError(f"Expected one size factor, got {list_names(sizes)}")
        order = sorted(kinds, key=lambda name: kinds[name] == "size_factor")
        return cls(tuple(_fit_column(name, table[name], kinds[name]) for name in order))

    def encode(self, table: Mapping[str, Any]) -> Tensor:
        """Returns the encoding of rows, ``(N, dim)``, in the default dtype.

        Arguments:
            table: The values of each covariate by its name.

        Raises:
            ValueError: If a covariate is missing, or has a value that cannot be encoded.
        """
        missing = [column.name for column in self.columns if column.name not in table]
        if missing:
            raise ValueError(f"Expected the covariates {self.names}, got none of {missing}")
        parts = [column.encode(table[column.name]) for column in self.columns]
        sizes = {len(part) for part in parts}
        if len(sizes) > 1:
            raise ValueError(f"Expected covariates of equal length, got {sorted(sizes)}")
        return torch.cat(parts, 1).to(torch.get_default_dtype())

    def replace(self, encoded: Tensor, values: Mapping[str, Any]) -> Tensor:
        """Returns encoded covariates with some of them set to one value in all rows.

        Arguments:
            encoded: Encoded covariates, ``(N, dim)``.
            values: The new value of each covariate, by its name.

        Raises:
            ValueError: If a name or a value is unknown.

        Example:
            >>> covariates = Covariates.fit({"batch": ["a", "b"]})
            >>> covariates.replace(covariates.encode({"batch": ["a", "a"]}), {"batch": "b"})
            tensor([[0., 1.],
                    [0., 1.]])
        """
        check_tensor("encoded", encoded)
        if encoded.dim() != 2 or encoded.shape[1] != self.dim:
            raise ValueError(
                f"Expected encoded covariates of shape (N, {self.dim}), got {tuple(encoded.shape)}"
            )
        unknown = [name for name in values if name not in self.names]
        if unknown:
            raise ValueError(f"Expected covariates among {self.names}, got {unknown}")
        result, start = encoded.clone(), 0
        for column in self.columns:
            if column.name in values:
                part = column.encode([values[column.name]])
                result[:, start : start + column.dim] = part.to(result)
            start += column.dim
        return result

    @property
    def names(self) -> list[str]:
        """The names of the covariates."""
        return [column.name for column in self.columns]

    @property
    def dim(self) -> int:
        """The number of columns of the encoding."""
        return sum(column.dim for column in self.columns)

    @property
    def feature_names(self) -> list[str]:
        """The name of each column of the encoding."""
        return [
            name
            for c in self.columns
            for name in ([f"{c.name}={level}" for level in c.levels] if c.levels else [c.name])
        ]

    @property
    def has_size_factor(self) -> bool:
        """Whether the last covariate is a size factor."""
        return any(column.kind == "size_factor" for column in self.columns)

    def describe(self) -> str:
        """Returns the covariates with their levels in one line."""
        return "; ".join(
            f"{c.name} ({list_names(c.levels)})" if c.levels else f"{c.name} ({c.kind})"
            for c in self.columns
        )

    def to_list(self) -> list[dict[str, Any]]:
        """Returns plain values for JSON."""
        return [{**c._asdict(), "levels": list(c.levels)} for c in self.columns]

    @classmethod
    def from_list(cls, values: Any) -> "Covariates":
        """Returns the covariates with the values of :meth:`to_list`.

        Raises:
            ValueError: If the values are not those of covariates.
        """
        if not isinstance(values, list) or not values:
            raise ValueError(f"Expected covariates to be a list, got {values!r:.50}")
        return cls(tuple(map(_parse_column, values)))


def parse_kinds(
    covariates: Any, size_factor: str | None = None, name: str = "covariates"
) -> dict[str, str | None]:
    """Returns the kind of each covariate, or ``None`` to infer it.

    Arguments:
        covariates: Names, or a mapping from names to kinds; or ``None``.
        size_factor: The name of the size factor, or ``None``.
        name: The name of the argument, for errors.

    Raises:
        ValueError: If these are not names, or a kind is unknown.
    """
    kinds: dict[str, str | None]
    if covariates is None:
        kinds = {}
    elif isinstance(covariates, str):
        kinds = {covariates: None}
    elif isinstance(covariates, Mapping):
        kinds = {str(key): check_choice(name, value, KINDS) for key, value in covariates.items()}
    elif isinstance(covariates, Sequence):
        names = list(map(str, covariates))
        if len(set(names)) < len(names):
            raise ValueError(f"Expected {name} to be different names, got {list_names(names)}")
        kinds = dict.fromkeys(names)
    else:
        raise ValueError(
            f"Expected {name} to be names, or names with kinds, got {describe_value(covariates)}"
        )
    if size_factor is None:
        return kinds
    if str(size_factor) in kinds:
        raise ValueError(
            f"Expected size_factor to be another column than {name}, got {size_factor!r} in both"
        )
    return {**kinds, str(size_factor): "size_factor"}


def _fit_column(name: str, values: Any, kind: str | None) -> Covariate:
    kind = _infer_kind(values) if kind is None else kind
    if kind == "categorical":
        names = _to_names(name, values)
        levels = sorted(set(names), key=_level_order)
        if len(levels) < 2:
            raise ValueError(
                f"Expected covariate {name!r} to vary over the training rows, got only "
                f"{list_names(levels)}"
            )
        if len(levels) > max(_MAX_LEVELS, len(names) // 2):
            raise ValueError(
                f"Expected covariate {name!r} to repeat its levels, got {len(levels):,} levels in "
                f"{len(names):,} training rows: an identifier is not a covariate"
            )
        return Covariate(name, kind, tuple(levels))
    numbers = _to_numbers(name, values)
    if kind == "size_factor":
        column = Covariate(name, kind)
        column.encode(values)
        return column
    scale = numbers.std(correction=0).item()
    if not math.isfinite(scale):
        raise ValueError(
            f"Expected covariate {name!r} to have finite squares, got values up to "
            f"{numbers.abs().max().item():g}"
        )
    if not scale > 1e-12 * abs(numbers.mean().item()):
        raise ValueError(
            f"Expected covariate {name!r} to vary over the training rows, got a constant"
        )
    return Covariate(name, kind, (), numbers.mean().item(), scale)


def _infer_kind(values: Any) -> str:
    array = _to_array(values)
    if array.dtype.kind == "f":
        return "continuous"
    if array.dtype.kind in "iu":
        return "categorical" if len(np.unique(array)) <= _MAX_LEVELS else "continuous"
    return "categorical"


def _to_array(values: Any) -> Any:
    if isinstance(values, (list, tuple)) and any(isinstance(value, str) for value in values):
        # NumPy would turn a missing value beside words into the word nan.
        values = np.array(values, dtype=object)
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype == object:
        # Numbers of Python in a table of objects are numbers too.
        converted = np.array(array.tolist())
        if converted.dtype.kind in "biuf" and converted.shape == array.shape:
            array = converted
    return array.reshape(1) if array.ndim == 0 else array


def _to_names(name: str, values: Any) -> list[str]:
    """Returns the names of levels; integers in floating-point columns get no decimal point."""
    import pandas

    array = _to_array(values)
    if array.ndim != 1:
        raise ValueError(f"Expected covariate {name!r} to be a column, got shape {array.shape}")
    is_missing = pandas.isna(array)
    if is_missing.any():
        raise ValueError(
            f"Expected covariate {name!r} in each row, got {is_missing.sum()} missing values: fill "
            f"them, or leave out the covariate"
        )
    if array.dtype.kind == "M":
        return [str(value) for value in np.datetime_as_string(array, unit="auto")]
    items = [v.decode() if isinstance(v, bytes) else v for v in array.tolist()]
    is_integral = array.dtype.kind == "f" and bool((array == np.floor(array)).all())
    return [str(int(value)) if is_integral else str(value) for value in items]


def _level_order(level: str) -> tuple[bool, float, str]:
    try:
        return False, float(level), level
    except ValueError:
        return True, 0.0, level


def _to_numbers(name: str, values: Any) -> Tensor:
    array = _to_array(values)
    try:
        if array.dtype.kind in "cmM":
            raise TypeError
        numbers = torch.from_numpy(np.array(array, dtype=np.float64))
    except (TypeError, ValueError):
        first = array.reshape(-1)[:1].tolist()[0]
        raise ValueError(f"Expected covariate {name!r} to be numbers, got {first!r:.50}") from None
    bad = int((~numbers.isfinite()).sum())
    if numbers.dim() != 1 or bad:
        fault = f"{bad} that are missing or infinite" if bad else f"shape {tuple(numbers.shape)}"
        raise ValueError(f"Expected covariate {name!r} to be a column of numbers, got {fault}")
    return numbers


def _parse_column(values: Any) -> Covariate:
    """Returns a covariate from plain values, or raises a ``ValueError`` for other values."""
    if not isinstance(values, dict) or set(values) != set(Covariate._fields):
        raise ValueError(f"Expected covariates with {Covariate._fields}, got {values!r:.50}")
    levels, kind = values["levels"], values["kind"]
    numbers = values["loc"], values["scale"]
    valid = (
        isinstance(values["name"], str)
        and kind in KINDS
        and isinstance(levels, list)
        and all(isinstance(level, str) for level in levels)
        and (kind == "categorical") == bool(levels)
        and all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers)
        and numbers[1] > 0
    )
    if not valid:
        raise ValueError(f"Expected a covariate, got {values!r:.100}")
    return Covariate(values["name"], kind, tuple(levels), float(numbers[0]), float(numbers[1]))
