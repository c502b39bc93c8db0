"""The columns of a table of mixed kinds: how cells become numbers, and numbers cells again."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.display.text import describe_fields
from pyro_vae.validation import check_choice, check_tensor, describe_value, list_names

__all__ = ["CODED", "KINDS", "Column", "Schema", "format_levels", "order_levels"]

KINDS = ("real", "positive", "count", "binary", "categorical", "ordinal")
"""The kinds of columns."""

CODED = ("binary", "categorical", "ordinal")
"""The kinds whose values are codes of levels."""


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: Its name.
        kind: One of ``"real"``, ``"positive"``, ``"count"``, ``"binary"``, ``"categorical"`` and
            ``"ordinal"``.
        levels: The values of the last three kinds as texts; their code is their position.
        decimals: The decimals of real and positive numbers in the source, if they are few.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    decimals: int | None = None

    def __repr__(self) -> str:
        return describe_fields(self)

    @property
    def is_coded(self) -> bool:
        """Whether values are codes of levels."""
        return self.kind in CODED

    @property
    def is_discrete(self) -> bool:
        """Whether values have probabilities, not densities."""
        return self.is_coded or self.kind == "count"

    def contains(self, numbers: Tensor) -> Tensor:
        """Whether numbers are possible values of the column, or codes of its levels."""
        if self.is_coded:
            return (numbers >= 0) & (numbers < len(self.levels)) & (numbers == numbers.floor())
        valid = numbers.isfinite()
        if self.kind == "positive":
            return valid & (numbers > 0)
        if self.kind == "count":
            return valid & (numbers >= 0) & (numbers == numbers.floor())
        return valid

    def describe_support(self) -> str:
        """Returns the possible values in words."""
        if self.is_coded:
            return f"codes of {len(self.levels)} levels"
        return _MEANING[self.kind]

    def encode(self, values: Any) -> Tensor:
        """Returns values as numbers in double precision, with NaN for missing ones.

        Arguments:
            values: A pandas series of numbers, truth values or texts.

        Raises:
            ValueError: If a value is not a level or not a number of this kind.
        """
        if self.is_coded:
            return self._encode_levels(values)
        numbers = _to_numbers(values)
        if numbers is None:
            first = values.dropna().iloc[0]
            raise ValueError(
                f"Expected column {self.name!r} to be numbers ({self.kind}), got {str(first)!r:.30}"
            )
        valid = numbers.isnan() | self.contains(numbers)
        if not bool(valid.all()):
            row = int((~valid).nonzero()[0])
            raise ValueError(
                f"Expected column {self.name!r} to be {_MEANING[self.kind]}, got "
                f"{numbers[row].item():.6g} in row {row}"
            )
        return numbers

    def _encode_levels(self, values: Any) -> Tensor:
        texts = format_levels(values)
        numbers = {level: float(code) for code, level in enumerate(self.levels)}
        # A text such as 1.0 is the level 1, unless it is one itself.
        different = texts.dropna().unique()
        codes = texts.map({t: numbers.get(t, numbers.get(_normalize(t))) for t in different})
        unknown = texts[texts.notna() & codes.isna()]
        if len(unknown):
            raise ValueError(
                f"Expected column {self.name!r} to have the levels {list_names(self.levels)}, got "
                f"{list_names(sorted(set(unknown)))}, first in row {unknown.index[0]}"
            )
        return torch.from_numpy(codes.to_numpy(dtype=np.float64, copy=True))

    def decode(self, numbers: Any) -> Any:
        """Returns values as a pandas series in the units and words of the source.

        Arguments:
            numbers: A NumPy array of numbers, with NaN for missing values.

        Raises:
            ValueError: If a number is not a code of a level.
        """
        if self.is_coded:
            return self._decode_levels(numbers)
        import pandas

        if self.kind == "count":
            return _to_integers(pandas.Series(np.round(numbers)))
        if self.decimals is None:
            return pandas.Series(numbers)
        # Single precision would show more decimals than there are.
        rounded = np.round(numbers.astype(np.float64), self.decimals)
        if self.kind == "positive":
            rounded = np.where(rounded > 0, rounded, 10.0**-self.decimals + 0 * numbers)
        values = pandas.Series(rounded)
        return _to_integers(values) if self.decimals == 0 else values

    def _decode_levels(self, numbers: Any) -> Any:
        import pandas

        missing = np.isnan(numbers)
        codes = np.where(missing, 0, numbers).round().astype(int)
        wrong = (codes < 0) | (codes >= len(self.levels))
        if wrong.any():
            raise ValueError(
                f"Expected column {self.name!r} to be {self.describe_support()}, got "
                f"{numbers[wrong][0]:g}"
            )
        levels = np.array(self.levels, dtype=object)[codes]
        levels[missing] = None
        values = pandas.Series(levels, dtype=object)
        if all(map(_is_integer, self.levels)):
            return values.astype("Int64")
        if self.levels == ("False", "True"):
            return values.map({"False": False, "True": True}).astype("boolean")
        return values

    def describe(self) -> str:
        """Returns name and kind in one line, with the levels."""
        levels = f": {list_names(self.levels)}" if self.levels else ""
        return f"{self.name!r} ({self.kind}{levels})"


class Schema(NamedTuple):
    """The columns of a table, in their order.

    Attributes:
        columns: The columns.

    Example:
        >>> import pandas
        >>> island = Column("island", "categorical", ("Biscoe", "Dream"))
        >>> schema = Schema((Column("mass", "real"), island))
        >>> table = pandas.DataFrame({"mass": [3.75, 4.1], "island": ["Dream", None]})
        >>> x = schema.encode(table)
        >>> x
        tensor([[3.7500, 1.0000],
                [4.1000,    nan]], dtype=torch.float64)
        >>> schema.decode(x)["island"].tolist()
        ['Dream', None]
    """

    columns: tuple[Column, ...]

    def __repr__(self) -> str:
        return f"Schema({self.describe()})".replace("\n", "; ")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    def encode(self, table: Mapping[str, Any]) -> Tensor:
        """Returns a table as numbers in double precision, ``(N, columns)``, NaN where missing.

        Arguments:
            table: A pandas DataFrame, or columns of equal length by their names.

        Raises:
            ValueError: If a column is missing, repeated, or has other values.
        """
        frame = _to_frame(table)
        twice = [name for name in self.names if list(frame.columns).count(name) > 1]
        if twice:
            raise ValueError(f"Expected each column once, got duplicates of {list_names(twice)}")
        absent = [name for name in self.names if name not in frame]
        if absent:
            raise ValueError(
                f"Expected a table with the columns {list_names(self.names)}, got none named "
                f"{list_names(absent)}"
            )
        return torch.stack([column.encode(frame[column.name]) for column in self.columns], 1)

    def decode(self, x: Tensor) -> Any:
        """Returns rows of numbers as a pandas DataFrame in the units and words of the source.

        Arguments:
            x: Rows of shape ``(N, columns)``; NaN is a missing value.
        """
        check_tensor("x", x)
        if x.dim() != 2 or x.shape[1] != len(self.columns):
            raise ValueError(f"Expected x of shape (N, {len(self.columns)}), got {tuple(x.shape)}")
        import pandas

        # Single precision has more digits than the source; double precision would show them.
        numbers = x.detach().cpu().numpy()
        parts = [column.decode(numbers[:, i]) for i, column in enumerate(self.columns)]
        frame = pandas.concat(parts, axis=1) if parts else pandas.DataFrame()
        frame.columns = list(self.names)
        return frame

    def describe(self) -> str:
        """Returns the columns by kind, one line for each kind."""
        lines = []
        for kind in KINDS:
            names = [c.name for c in self.columns if c.kind == kind]
            if names:
                lines.append(f"{kind}: {list_names(names)}")
        return "\n".join(lines)

    def to_list(self) -> list[dict[str, Any]]:
        """Returns plain values for JSON."""
        return [{**c._asdict(), "levels": list(c.levels)} for c in self.columns]

    @classmethod
    def from_list(cls, values: Any) -> "Schema":
        """Returns the schema with the values of :meth:`to_list`, or of the columns themselves.

        Raises:
            ValueError: If these are not columns, or two have one name.
        """
        if isinstance(values, cls):
            values = values.columns
        is_list = isinstance(values, Sequence) and not isinstance(values, (str, bytes))
        if not is_list or not values:
            raise ValueError(f"Expected columns to be a list of columns, got {values!r:.50}")
        columns = tuple(map(_parse_column, values))
        names = [column.name for column in columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"Expected columns of different names, got {list_names(twice)} twice")
        return cls(columns)

    @classmethod
    def for_shape(cls, values: Any, event_shape: Sequence[int]) -> "Schema":
        """Returns the schema of :meth:`from_list` for data of a shape.

        Raises:
            ValueError: If there is none, or it has another number of columns.
        """
        if values is None:
            raise ValueError(
                "Expected columns, the kinds of the columns of the data, as in partial(Columns, "
                "columns=data.schema) with data.table(..., mixed=True), got None"
            )
        schema = cls.from_list(values)
        if tuple(event_shape) != (len(schema.columns),):
            raise ValueError(
                f"Expected event_shape ({len(schema.columns)},), the number of columns, got "
                f"{tuple(event_shape)}"
            )
        return schema


_MEANING = {
    "real": "finite",
    "positive": "positive",
    "count": "non-negative integers (counts)",
}


def format_levels(values: Any) -> Any:
    """Returns a pandas series of levels as texts, with ``None`` for missing values.

    Integers have no decimal point, also where gaps make them floating-point numbers.
    """
    present = values[values.notna()]
    # Levels repeat, so only the different ones are formatted.
    texts = {value: _format_level(value) for value in present.unique()}
    return present.map(texts).astype(object).reindex(values.index)


def order_levels(levels: Sequence[str]) -> tuple[str, ...]:
    """Returns levels in order: numbers by value, before words."""
    return tuple(sorted(levels, key=_get_order))


def _get_order(level: str) -> tuple[bool, float, str]:
    try:
        number = float(level)
    except ValueError:
        number = math.nan
    return (True, 0.0, level) if math.isnan(number) else (False, number, level)


def _format_level(value: Any) -> str:
    if isinstance(value, (bool, np.bool_, str)):
        return str(value).strip()
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)


def _normalize(text: str) -> str:
    """Returns the level of a number that is written in another form."""
    try:
        return _format_level(float(text))
    except ValueError:
        return text


def _is_integer(level: str) -> bool:
    return level.lstrip("-").isascii() and level.lstrip("-").isdigit() and str(int(level)) == level


def _to_integers(values: Any) -> Any:
    """Returns a pandas series of integers, or unchanged if they exceed 64 bits."""
    return values if (values.abs() >= 2**63).any() else values.astype("Int64")


def _to_frame(table: Any) -> Any:
    """Returns a table with texts as names."""
    import pandas

    if not isinstance(table, pandas.DataFrame):
        table = {name: pandas.Series(values) for name, values in table.items()}
        sizes = {len(column) for column in table.values()}
        if len(sizes) > 1:
            raise ValueError(f"Expected columns of equal length, got {sorted(sizes)}")
    frame = pandas.DataFrame(table)
    frame.columns = [str(name) for name in frame.columns]
    return frame.reset_index(drop=True)


def _to_numbers(values: Any) -> Tensor | None:
    """Returns a series as numbers, or ``None`` for words."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if not (is_numeric_dtype(values.dtype) or is_bool_dtype(values.dtype)) and values.notna().any():
        return None
    numbers = values.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    return torch.from_numpy(np.array(numbers))


def _parse_column(values: Any) -> Column:
    """Returns a column from a column, a mapping or a list of its fields."""
    if isinstance(values, Mapping):
        fields = dict(values)
    elif isinstance(values, Sequence) and not isinstance(values, str):
        fields = dict(zip(Column._fields, values, strict=False))
        if len(values) > len(Column._fields):
            fields = {}
    else:
        fields = {}
    if not {"name", "kind"} <= set(fields) <= set(Column._fields):
        raise ValueError(f"Expected a column with {Column._fields}, got {describe_value(values)}")
    name, levels = fields["name"], fields.get("levels") or ()
    kind = check_choice(f"the kind of column {name!r}", fields["kind"], KINDS)
    is_list = isinstance(levels, Sequence) and not isinstance(levels, str)
    valid = isinstance(name, str) and is_list and all(isinstance(n, str) for n in levels)
    if not valid or len(set(levels)) < len(levels):
        raise ValueError(
            f"Expected column {name!r} to have different texts as levels, got {levels!r:.50}"
        )
    count = len(levels)
    if count < 2 if kind in CODED else count:
        expected = "at least two levels" if kind in CODED else "no levels"
        raise ValueError(f"Expected {kind} column {name!r} to have {expected}, got {list(levels)}")
    if kind == "binary" and count != 2:
        raise ValueError(f"Expected binary column {name!r} to have two levels, got {count}")
    decimals = fields.get("decimals")
    if decimals is not None and not (type(decimals) is int and 0 <= decimals <= 15):
        raise ValueError(f"Expected decimals of column {name!r} as 0 to 15, got {decimals!r}")
    return Column(name, kind, tuple(levels), decimals)
