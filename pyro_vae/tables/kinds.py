"""The kinds of columns, declared or inferred from their values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae.config import format_override
from pyro_vae.tables.cells import leave_out
from pyro_vae.tables.schema import KINDS, Column, format_levels, order_levels
from pyro_vae.validation import describe_value, list_names

__all__ = ["fit_column", "parse_declared"]

_MAX_LEVELS = 10
"""The most distinct integers that are taken as categories."""

_MIN_REPEATS = 10
"""The least mean frequency of other numbers that are taken as categories."""

_MAX_WORDS = 1000
"""The most levels of a column."""

_MIN_NUMBERED = 10
"""The least rows of a column of consecutive integers that is taken as row numbers."""

_MAX_DECIMALS = 6

_SKEWNESS = 1.0
"""The least skewness of positive numbers that are modelled on a logarithmic scale."""


def parse_declared(declared: Mapping[str, Any]) -> dict[Any, tuple[str, tuple[str, ...]]]:
    """Returns the kind and the ordered levels of each declared column.

    Arguments:
        declared: For each kind a list of names or ``None``; for ordinal columns also a mapping from
            names to their levels in order.

    Raises:
        ValueError: If these are not names, or a column has two kinds.
    """
    # YAML reads some names as numbers, which are matched with the names of the table later.
    result: dict[Any, tuple[str, tuple[str, ...]]] = {}
    for kind in KINDS:
        names = declared.get(kind)
        if names is None:
            continue
        if isinstance(names, Mapping) and kind == "ordinal":
            items = {name: _check_levels(name, levels) for name, levels in names.items()}
        elif isinstance(names, Sequence) and not isinstance(names, str):
            items = dict.fromkeys(names, ())
        else:
            raise ValueError(f"Expected {kind} to be a list of names, got {describe_value(names)}")
        twice = [name for name in items if name in result]
        if twice:
            raise ValueError(
                f"Expected one kind for each column, got {result[twice[0]][0]} and {kind} for "
                f"{twice[0]!r}"
            )
        result |= {name: (kind, levels) for name, levels in items.items()}
    return result


def _check_levels(name: Any, levels: Any) -> tuple[str, ...]:
    is_list = isinstance(levels, Sequence) and not isinstance(levels, str)
    texts = [level if isinstance(level, str) else f"{level}" for level in levels] if is_list else []
    if len(set(texts)) < max(2, len(texts)) or any(level is None for level in levels):
        raise ValueError(
            f"Expected ordinal to give different levels of {str(name)!r} in order, got "
            f"{describe_value(levels)}"
        )
    return tuple(texts)


def fit_column(name: str, values: Any, kind: str | None, levels: Sequence[str] = ()) -> Column:
    """Returns a column from its values.

    Arguments:
        name: The name of the column.
        values: A pandas series of numbers, truth values or words, with gaps.
        kind: Its kind, or ``None`` to infer it.
        levels: The levels of a coded column in order, or none.

    Raises:
        ValueError: If the values do not fit the kind, are constant, or identify the rows.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    present = values[values.notna()]
    is_number = is_numeric_dtype(values.dtype) and not is_bool_dtype(values.dtype)
    count = present.nunique()
    if count < 2:
        value = f"only {str(present.iloc[0])!r:.30}" if count else "none"
        raise ValueError(f"Expected column {name!r} to vary, got {value}: {leave_out([name])}")
    if kind is None:
        kind = _infer_kind(name, present, is_number, count)
    if kind in ("binary", "categorical", "ordinal"):
        return _fit_levels(name, values, kind, levels, is_number)
    column = Column(name, kind)
    numbers = column.encode(values)
    numbers = numbers[numbers.isfinite()]
    return column if kind == "count" else column._replace(decimals=_count_decimals(numbers))


def _infer_kind(name: str, present: Any, is_number: bool, count: int) -> str:
    if count == 2:
        return "binary"
    if not is_number:
        if count > max(_MAX_LEVELS, len(present) // 2):
            raise ValueError(
                f"Expected column {name!r} to repeat its words, got {count:,} different ones in "
                f"{len(present):,} rows, such as {str(present.iloc[0])!r:.30}, which may be "
                f"identifiers or free text: {leave_out([name])}"
            )
        return "categorical"
    numbers = present.to_numpy(dtype=np.float64)
    is_integer = bool((numbers == np.floor(numbers)).all())
    if not is_integer and count <= _MAX_LEVELS and len(numbers) >= _MIN_REPEATS * count:
        return "categorical"
    if not is_integer:
        return "positive" if _is_skewed(numbers) else "real"
    if _numbers_rows(numbers):
        raise ValueError(
            f"Expected column {name!r} to describe the rows, got their numbers from "
            f"{numbers[0]:.0f} to {numbers[-1]:.0f}: {leave_out([name])}, or declare its kind "
            f"({format_override('data.real', [name])})"
        )
    if count <= _MAX_LEVELS:
        return "categorical"
    # A negative binomial varies at least as much as a Poisson.
    if numbers.min() >= 0 and numbers.var() >= numbers.mean():
        return "count"
    return "real"


def _numbers_rows(numbers: Any) -> bool:
    """Whether integers are the numbers of the rows in their order."""
    consecutive = len(numbers) >= _MIN_NUMBERED and numbers[0] in (0, 1)
    return bool(consecutive and (np.diff(numbers) == 1).all())


def _is_skewed(numbers: Any) -> bool:
    """Whether positive numbers are more symmetric on a logarithmic scale."""
    if numbers.min() <= 0:
        return False
    skewness, of_logarithms = _compute_skewness(numbers), _compute_skewness(np.log(numbers))
    return skewness > _SKEWNESS and abs(of_logarithms) < skewness


def _compute_skewness(numbers: Any) -> float:
    centred = numbers - numbers.mean()
    scale = np.sqrt((centred**2).mean())
    return float(((centred / scale) ** 3).mean()) if scale > 0 else 0.0


def _fit_levels(
    name: str, values: Any, kind: str, levels: Sequence[str], is_number: bool
) -> Column:
    texts = format_levels(values).dropna()
    found = set(texts)
    if kind == "binary" and len(levels or found) != 2:
        raise ValueError(
            f"Expected column {name!r} to have two values (binary), got {len(levels or found)}"
        )
    if len(found) > _MAX_WORDS:
        raise ValueError(
            f"Expected column {name!r} to have at most {_MAX_WORDS:,} levels, got {len(found):,}: "
            f"{leave_out([name])}"
        )
    if levels:
        unknown = sorted(found - set(levels))
        if unknown:
            raise ValueError(
                f"Expected column {name!r} to have the levels {list_names(levels)}, got "
                f"{list_names(unknown)}"
            )
        return Column(name, kind, tuple(levels))
    if kind == "ordinal" and not is_number:
        listed = ",".join(sorted(found)[:5])
        raise ValueError(
            f"Expected column {name!r} to have words in order, got no order: give it "
            f"('data.ordinal={{{name}: [{listed}]}}')"
        )
    return Column(name, kind, order_levels(sorted(found)))


def _count_decimals(numbers: Tensor) -> int | None:
    """Returns the decimals of numbers, or ``None`` if they are many."""
    for decimals in range(_MAX_DECIMALS + 1):
        scaled = numbers * 10**decimals
        if bool(((scaled - scaled.round()).abs() <= 1e-12 * scaled.abs()).all()):
            return decimals
    return None
