"""Tables in csv and parquet files: their columns and labels."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.config import format_override
from pyro_vae.files.csv_cells import NUMBER, restore
from pyro_vae.validation import describe_value

__all__ = [
    "check_header",
    "check_label",
    "check_separator",
    "leave_out",
    "number_labels",
    "read_csv",
    "read_table",
]

_MAX_SUGGESTED = 20
"""The most names in a suggested setting."""

_UNNAMED = re.compile(r"Unnamed: \d+")
"""The name that pandas gives to a column without one."""


def read_table(file: Path, separator: str) -> Any:
    """Reads the table in a file, or raises a ``ValueError`` with the reason of a failure."""
    import pandas

    try:
        if file.suffix.lower() == ".parquet":
            frame = pandas.read_parquet(file)
        else:
            with warnings.catch_warnings():
                # Otherwise pandas drops values of a row with more values than names.
                warnings.simplefilter("error", pandas.errors.ParserWarning)
                frame = read_csv(file, separator)
                frame.columns = _read_header(file, separator, list(frame.columns))
    except ImportError as error:
        raise ValueError(
            f"Expected the extra parquet for '{file}', got none: pip install 'pyro_vae[parquet]'"
        ) from error
    except (pandas.errors.ParserWarning, OSError, ValueError) as error:
        raise ValueError(
            f"Expected '{file}' to be a table, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    frame.columns = [str(name).strip() for name in frame.columns]
    if not len(frame.columns):
        raise ValueError(f"Expected '{file}' to have columns, got none")
    other = next((mark for mark in ";\t|," if mark in frame.columns[0]), None)
    if len(frame.columns) == 1 and other:
        raise ValueError(
            f"Expected values in '{file}' to be separated by {separator!r}, got one column "
            f"{frame.columns[0]!r}: set the separator ({format_override('data.separator', other)})"
        )
    if not len(frame):
        raise ValueError(f"Expected '{file}' to have rows, got none")
    return frame


def read_csv(file: Path, separator: str, **options: Any) -> Any:
    """Reads a csv file, with options of ``pandas.read_csv``."""
    import pandas

    return pandas.read_csv(file, sep=separator, index_col=False, encoding="utf-8-sig", **options)


def _read_header(file: Path, separator: str, pandas_names: list[Any]) -> list[str]:
    """Returns the names in the first line of a csv file; pandas renames duplicates.

    Arguments:
        file: The file.
        separator: The separator between values.
        pandas_names: The names given by pandas, which a column without a name keeps.
    """
    options = {"header": None, "nrows": 1, "dtype": str, "keep_default_na": False}
    line = read_csv(file, separator, **options).iloc[0]
    names = [restore(str(name).strip()) for name in line]
    if len(names) != len(pandas_names):
        raise ValueError(f"{len(names)} names for {len(pandas_names)} columns")
    return [name or str(other) for name, other in zip(names, pandas_names, strict=True)]


def leave_out(names: Sequence[str]) -> str:
    """Returns the advice to leave columns out, with the setting that does it."""
    return f"leave {'it' if len(names) == 1 else 'them'} out ({_suggest('data.drop', names)})"


def _suggest(setting: str, names: Sequence[str]) -> str:
    # Nobody copies a thousand names.
    return setting if len(names) > _MAX_SUGGESTED else format_override(setting, list(names))


def check_header(file: Path, names: list[str], all_names: list[str]) -> None:
    """Raises a ``ValueError`` for a pandas index, and for a first line of numbers."""
    unnamed = [name for name in names if _UNNAMED.fullmatch(name)]
    if unnamed:
        raise ValueError(
            f"Expected a name for each column of '{file}', got {unnamed[0]!r}, which may be an "
            f"index: {leave_out(unnamed)}, or write the file without an index "
            f"(to_csv(..., index=False))"
        )
    numeric = [name for name in names if NUMBER.fullmatch(name)]
    counted = all_names == [str(index) for index in range(len(all_names))]
    plain = all(name.isdigit() for name in numeric)
    if numeric and not counted and not (plain and len(numeric) < len(all_names)):
        raise ValueError(
            f"Expected the first line of '{file}' to name the columns, got the number "
            f"{numeric[0]}: write a line of names above it, or list the columns if these are names "
            f"({_suggest('data.columns', names)})"
        )


def check_separator(separator: Any) -> str:
    """Returns the separator of a csv file, or raises a ``ValueError``."""
    if not isinstance(separator, str) or not separator:
        raise ValueError(f"Expected separator to be a string, got {describe_value(separator)}")
    return separator


def check_label(label: Any) -> str | None:
    """Returns the name of a label, or raises a ``ValueError`` for something else."""
    if label is not None and not isinstance(label, (str, int)):
        raise ValueError(f"Expected label to be the name of a column, got {describe_value(label)}")
    return None if label is None else str(label)


def number_labels(
    frame: Any, name: str | None, *, quoted: bool = False
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Returns integer labels unchanged, and other values as ranks with their names.

    Arguments:
        frame: The table.
        name: The name of the column, or ``None``.
        quoted: Whether formulas are preceded by a quote, as in a csv file.
    """
    import pandas

    if name is None:
        return None, None
    column = frame[name]
    if column.isna().any():
        raise ValueError(f"Expected label {name!r} in each row, got {column.isna().sum()} missing")
    if pandas.api.types.is_integer_dtype(column.dtype) and column.max() < 2**63:
        return torch.from_numpy(column.to_numpy(dtype="int64", copy=True)), None
    if quoted and not pandas.api.types.is_numeric_dtype(column.dtype):
        column = column.map(lambda value: restore(value) if isinstance(value, str) else value)
    labels, values = pandas.factorize(column, sort=True)
    return torch.from_numpy(labels.astype("int64")), tuple(map(str, values))
