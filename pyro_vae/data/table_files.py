"""Tables from files and from memory, with parsed columns."""

import codecs
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.config import format_override
from pyro_vae.data.base import check_data_file
from pyro_vae.files.csv_cells import NUMBER
from pyro_vae.tables.cells import EXACT, INEXACT, Cells, is_grouped, leave_out, parse_cells
from pyro_vae.tables.schema import format_levels, order_levels
from pyro_vae.tables.text_file import RawTable, ReadOptions, is_text_file, read_text_file
from pyro_vae.validation import check_choice, check_flag, check_size, describe_value

__all__ = [
    "MISSING",
    "SUFFIXES",
    "TableSource",
    "check_header",
    "check_label",
    "check_read_options",
    "load_table",
    "number_labels",
]

SUFFIXES = (".csv", ".tsv", ".txt", ".data", ".gz", ".bz2", ".xz", ".zip", ".parquet")

MISSING = "missing"
"""The name of a missing label."""

_UNNAMED = re.compile(r"Unnamed: \d+")
"""The name that pandas gives to a column without one."""

_MAX_SUGGESTED = 20
"""The most names in a suggested setting."""


class TableSource:
    """A table whose columns are parsed when they are needed.

    Arguments:
        raw: The table as it is in its source.
        name: The name of the data.
        place: The name of the source in errors.
        marks: Further marks of missing values.

    Attributes:
        names: The names of the columns; those without a name get one, as pandas does it.
        index_names: The names of columns without a name that only number or name the rows.
        notes: What was detected in the source.
    """

    def __init__(self, raw: RawTable, name: str, place: str, marks: Sequence[str] = ()) -> None:
        self.raw, self.name, self.place, self.marks = raw, name, place, tuple(marks)
        self._decimal: str | None = None
        self.names = [
            given or f"Unnamed: {index}" for index, given in enumerate(map(str.strip, raw.names))
        ]
        self.index_names = self._find_index_names()
        self.notes = list(raw.notes)
        if self.index_names:
            self.notes.append(f"{len(self.index_names)} unnamed columns of row names left out")

    def __len__(self) -> int:
        return len(self.raw.frame)

    @property
    def is_text(self) -> bool:
        """Whether the source is a text file."""
        return self.raw.read_texts is not None

    def _find_index_names(self) -> list[str]:
        """Returns the names of empty columns and of those that number or name the rows."""
        found = []
        for index, name in enumerate(self.names):
            if not _UNNAMED.fullmatch(name):
                continue
            column = self.raw.frame.iloc[:, index]
            is_empty = bool(column.isna().all())
            if is_empty or (index == 0 and _identifies_rows(column)):
                found.append(name)
        return found

    def parse(self, names: Sequence[str], words: Collection[str] = ()) -> dict[str, Cells]:
        """Returns the cells of columns by name.

        A decimal mark that follows from one column also holds for the others.

        Arguments:
            names: The names of the columns.
            words: The names of those whose texts are words.
        """
        cells = {name: self._parse(name, name in words) for name in names}
        marks = {c.decimal for c in cells.values()} - {None}
        if len(marks) == 1 and self.raw.options.decimal is None:
            self._decimal = marks.pop()
            for name in names:
                cells[name] = self._parse_again(name, cells[name], as_words=name in words)
        if any(c.decimal == "," for c in cells.values()):
            self.notes.append("decimal commas")
        self.notes += [f"{name} {c.note}" for name, c in cells.items() if c.note is not None]
        return cells

    def _parse_again(self, name: str, cells: Cells, *, as_words: bool) -> Cells:
        """Returns the cells of a column, given the decimal mark of others."""
        if cells.is_ambiguous:
            return self._parse(name, as_words)
        if self._decimal == "," and self._is_grouped(name, cells):
            return cells._replace(
                is_ambiguous=True,
                fault=f"points before three digits, which may be decimals or thousands beside "
                f"decimal commas: set the decimal mark ({format_override('data.decimal', ',')})",
            )
        return cells

    def read_described(self, label: str | None, kinds: Mapping[str, str | None]) -> Any:
        """Returns label and covariates as a pandas DataFrame.

        Texts of which only some are numbers are words.

        Arguments:
            label: The name of the label, or ``None``.
            kinds: The kinds of covariates by name.

        Raises:
            ValueError: If the numbers of a covariate are ambiguous.
        """
        import pandas

        columns = {}
        for name in dict.fromkeys([*kinds, *([] if label is None else [label])]):
            cells = self._parse(name, as_words=kinds.get(name) == "categorical")
            if cells.fault is not None and name in kinds and cells.is_ambiguous:
                raise ValueError(f"Expected numbers in covariate {name!r}, got {cells.fault}")
            columns[name] = (self._parse(name, as_words=True) if cells.fault else cells).values
        return pandas.DataFrame(columns, index=self.raw.frame.index)

    def to_frame(self) -> Any:
        """Returns all columns, parsed, as a pandas DataFrame; names may be repeated."""
        frame = self.raw.frame.copy(deep=False)
        for index in frame.columns:
            if _has_texts(frame[index]):
                frame[index] = parse_cells(frame[index], quoted=self.is_text).values
        frame.columns = self.names
        return frame

    def _parse(self, name: str, as_words: bool) -> Cells:
        index, decimal = self.names.index(name), self.raw.options.decimal or self._decimal
        column = self.raw.frame.iloc[:, index].rename(name)
        is_plain = column.dtype.kind in "iuf"
        if (
            self.raw.read_texts is not None
            and is_plain
            and (as_words or (self.raw.options.decimal == "," and column.dtype.kind == "f"))
        ):
            # The texts of words are levels, and a point may be a mark between thousands.
            column = self.raw.read_texts(index).rename(name)
        cells = parse_cells(
            column,
            marks=self.marks,
            decimal=decimal,
            quoted=self.is_text,
            as_words=as_words,
            skipped=self.raw.options.skip_last,
        )
        return self._find_large_integers(index, cells)

    def _find_large_integers(self, index: int, cells: Cells) -> Cells:
        """Returns cells with the fault of integers that pandas rounded because of gaps."""
        from pandas.api.types import is_float_dtype, is_integer_dtype

        column = self.raw.frame.iloc[:, index]
        if cells.kind != "number" or cells.fault is not None:
            return cells
        if is_integer_dtype(column.dtype):
            large = ((column > EXACT) | (column < -EXACT)).fillna(False).any()
            return cells._replace(fault=INEXACT) if large else cells
        if not is_float_dtype(column.dtype) or self.raw.read_texts is None:
            return cells
        large = (column.abs() >= EXACT).to_numpy()
        if not large.any():
            return cells
        texts = self.raw.read_texts(index)
        return cells._replace(fault=parse_cells(texts[large].rename(self.names[index])).fault)

    def _is_grouped(self, name: str, cells: Cells) -> bool:
        """Whether a column of plain numbers may have points between thousands."""
        column = self.raw.frame.iloc[:, self.names.index(name)]
        if self.raw.read_texts is None or cells.kind != "number" or column.dtype.kind != "f":
            return False
        texts = self.raw.read_texts(self.names.index(name)).dropna()
        reals = texts[texts.str.contains(".", regex=False)]
        return len(reals) > 0 and bool(reals.map(is_grouped).all())


def load_table(
    source: Any,
    options: ReadOptions = ReadOptions(),  # noqa: B008
    marks: Sequence[str] = (),
    argument: str = "data.path",
) -> TableSource:
    """Returns a table from a file or from memory.

    Arguments:
        source: A path, or a pandas table, or one that converts to it (``to_pandas``).
        options: How a text file is written.
        marks: Further marks of missing values.
        argument: The name of the setting, for errors.

    Raises:
        ValueError: If it cannot be read.
    """
    import pandas

    if hasattr(source, "to_pandas"):
        try:
            source = source.to_pandas()
        except ImportError as error:
            raise ValueError(
                f"Expected a table that converts to pandas, got {describe_value(source)}, which "
                f"needs another package: {error}"
            ) from error
    if isinstance(source, pandas.DataFrame):
        raw = _wrap_frame(source, "the table")
        return TableSource(raw, "table", "the table", marks)
    file = check_data_file(source, SUFFIXES, argument, (".csv", ".parquet"))
    if file.suffix.lower() == ".parquet":
        raw = _wrap_frame(_read_parquet(file), f"'{file}'")
    elif is_text_file(file):
        raw = read_text_file(file, options)
    else:
        raise ValueError(
            f"Expected {argument} to name a compressed csv file, such as table.csv.gz, got '{file}'"
        )
    return TableSource(raw, file.name.partition(".")[0] or file.stem, f"'{file}'", marks)


def _wrap_frame(frame: Any, place: str) -> RawTable:
    import pandas

    if isinstance(frame.columns, pandas.MultiIndex):
        raise ValueError(f"Expected {place} to have one name for each column, got several")
    if not len(frame.columns):
        raise ValueError(f"Expected {place} to have columns, got none")
    if not len(frame):
        raise ValueError(f"Expected {place} to have rows, got none")
    names = ["" if name is None else str(name).strip() for name in frame.columns]
    frame = frame.reset_index(drop=True)
    frame.columns = range(len(names))
    return RawTable(frame, names)


def _read_parquet(file: Path) -> Any:
    import pandas

    try:
        return pandas.read_parquet(file)
    except ImportError as error:
        raise ValueError(
            f"Expected the extra parquet for '{file}', got none: pip install 'pyro_vae[parquet]'"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected '{file}' to be a table, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error


def _identifies_rows(column: Any) -> bool:
    """Whether a column numbers or names each row differently."""
    from pandas.api.types import is_integer_dtype, is_numeric_dtype

    is_index = is_integer_dtype(column.dtype) or not is_numeric_dtype(column.dtype)
    return bool(is_index and column.notna().all() and column.is_unique)


def check_header(source: TableSource, names: Sequence[str]) -> None:
    """Raises a ``ValueError`` for a used column without a name, and for a first line of values."""
    unnamed = [name for name in names if _UNNAMED.fullmatch(name)]
    if len(unnamed) > 1 and len(unnamed) > len(names) // 2:
        raise ValueError(
            f"Expected the first line of {source.place} to name the columns, got "
            f"{source.names[0]!r} alone, which may be a title: remove it from the file"
        )
    if unnamed:
        raise ValueError(
            f"Expected a name for each column of {source.place}, got {unnamed[0]!r}, which may be "
            f"an index: {leave_out(unnamed)}, or name it"
        )
    value = _find_value(source, names) if source.is_text else None
    if value is None:
        return
    listed = list(names) if len(names) <= _MAX_SUGGESTED else None
    hint = "" if listed is None else f" ({format_override('data.columns', listed)})"
    raise ValueError(
        f"Expected the first line of {source.place} to name the columns, got {value}: write a line "
        f"of names above it, number the columns (data.header=false), or list the columns if these "
        f"are names{hint}"
    )


def _find_value(source: TableSource, names: Sequence[str]) -> str | None:
    """Returns a name that may be a value, in words; ``None`` if the names may be names."""
    numeric = [name for name in names if NUMBER.fullmatch(name)]
    counted = source.names == [str(index) for index in range(len(source.names))]
    plain = all(name.isdigit() for name in numeric)
    if numeric and not counted and not (plain and len(numeric) < len(source.names)):
        return f"the number {numeric[0]}"
    for name in names:
        cells = parse_cells(_make_cell(name))
        if cells.kind == "truth" or (cells.kind == "number" and not NUMBER.fullmatch(name)):
            return f"the value {name!r}"
        column = source.raw.frame.iloc[:, source.names.index(name)]
        if _has_texts(column) and (column == name).any():
            return f"{name!r}, which is a value of this column too"
    return None


def _has_texts(column: Any) -> bool:
    """Whether pandas keeps a column as texts, in any of its versions."""
    from pandas.api.types import is_object_dtype, is_string_dtype

    return is_object_dtype(column.dtype) or is_string_dtype(column.dtype)


def _make_cell(text: str) -> Any:
    import pandas

    return pandas.Series([text], dtype=object)


def check_read_options(
    separator: Any = None,
    encoding: Any = None,
    decimal: Any = None,
    header: Any = True,
    skip_last: Any = 0,
) -> ReadOptions:
    """Returns the options of a text file, or raises a ``ValueError``."""
    if separator is not None and not (isinstance(separator, str) and len(separator) == 1):
        raise ValueError(f"Expected separator to be one character, got {describe_value(separator)}")
    check_choice("decimal", decimal, (None, ".", ","))
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except (LookupError, TypeError):
            raise ValueError(
                f"Expected encoding to be the name of an encoding, such as latin-1, got "
                f"{describe_value(encoding)}"
            ) from None
    skip_last = check_size("skip_last", skip_last, least=0)
    return ReadOptions(separator, encoding, decimal, check_flag("header", header), skip_last)


def check_label(label: Any) -> Any:
    """Returns the name of a label, perhaps as YAML reads it, or raises a ``ValueError``."""
    if label is not None and not isinstance(label, (str, int, float)):
        raise ValueError(f"Expected label to be the name of a column, got {describe_value(label)}")
    return label


def number_labels(column: Any) -> tuple[Tensor, tuple[str, ...] | None]:
    """Returns integer labels unchanged, and other values as ranks with their names.

    Missing labels get the last rank and the name ``missing``.

    Arguments:
        column: A pandas series.
    """
    import pandas

    has_gaps = bool(column.isna().any())
    if not has_gaps and pandas.api.types.is_integer_dtype(column.dtype) and column.max() < 2**63:
        return torch.from_numpy(column.to_numpy(dtype="int64", copy=True)), None
    if pandas.api.types.is_numeric_dtype(column.dtype) and has_gaps:
        column = format_levels(column)
        names = list(order_levels(sorted(set(column.dropna()))))
        labels = pandas.Categorical(column, categories=names).codes
    else:
        labels, values = pandas.factorize(column, sort=True)
        names = list(map(str, values))
    if has_gaps:
        labels = np.where(labels < 0, len(names), labels)
        names.append(MISSING if MISSING not in names else f"({MISSING})")
    return torch.from_numpy(labels.astype("int64")), tuple(names)
