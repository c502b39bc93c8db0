"""The cells of a column as numbers, truth values or words."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from pyro_vae.config import format_override
from pyro_vae.files.csv_cells import restore
from pyro_vae.tables.schema import format_levels

__all__ = ["EXACT", "INEXACT", "Cells", "is_grouped", "leave_out", "parse_cells"]

EXACT = 2**53
"""Double precision represents every integer up to this one."""

INEXACT = "integers above 2**53, which may be identifiers"
"""The fault of integers that double precision would change."""

_LEAST_NUMBERS = 0.5
"""The least share of numbers in a column of numbers; below it the cells are words."""

_MAX_SUGGESTED = 20
"""The most names in a suggested setting."""

_MISSING = {
    "", "#n/a", "#n/a n/a", "#na", "-nan", "<na>", "?", "n/a", "na", "nan", "none", "null",
    "-", "--", "---", ".", "..", "*", "-1.#ind", "-1.#qnan", "1.#ind", "1.#qnan",
}  # fmt: skip
"""Marks of missing values, in lower case."""

_MISSING_NUMBERS = {"missing", "unknown"}
"""Further marks between numbers; between words they may be words."""

_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d\d)( .*)?|"
    r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?( ?[ap]m)?",
    re.ASCII | re.IGNORECASE,
)

_POINT = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?", re.ASCII)
"""A number with commas between thousands."""

_COMMA = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][-+]?\d+)?", re.ASCII)
"""A number with a decimal comma."""

_GROUPED = re.compile(r"[-+]?\d{1,3}(\.\d{3})+", re.ASCII)
"""A number with a point before each three digits, which may be thousands or decimals."""

_WITH_UNIT = re.compile(
    r"(?P<prefix>[^\w\s.,+-]{0,3})\s*(?P<number>[-+]?[\d.,' \u00a0\u202f]*\d)\s*"
    r"(?P<suffix>[^\d\s.,+-]\S{0,9})?",
    re.ASCII,
)
"""A number between the signs of a currency or a unit."""

_SPACED = re.compile(r"(?<=\d)[ '\u00a0\u202f](?=\d{3})")
"""The mark between thousands that is neither a point nor a comma."""

_INTEGER = re.compile(r"\s*[-+]?\d+\s*", re.ASCII)


class Cells(NamedTuple):
    """The values of a column.

    Attributes:
        kind: ``"number"``, ``"truth"``, ``"word"`` or ``"date"``; ``"empty"`` without any value.
        values: A pandas series of numbers, truth values or texts, with gaps for missing values.
        missing: The marks of missing values that occur.
        note: The currency or unit that was removed from numbers, or ``None``.
        fault: Why numbers cannot be read, with the remedy; or ``None``.
        decimal: The decimal mark that follows from the numbers, or ``None``.
        order: The levels of an ordered pandas ``Categorical`` in their order, or none.
    """

    kind: Literal["number", "truth", "word", "date", "empty"]
    values: Any
    missing: tuple[str, ...] = ()
    note: str | None = None
    fault: str | None = None
    decimal: str | None = None
    order: tuple[str, ...] = ()


def leave_out(names: Sequence[str]) -> str:
    """Returns the advice to leave columns out, with the setting that does it."""
    # Nobody copies a thousand names.
    many = len(names) > _MAX_SUGGESTED
    setting = "data.drop" if many else format_override("data.drop", list(names))
    return f"leave {'it' if len(names) == 1 else 'them'} out ({setting})"


def parse_cells(
    column: Any,
    *,
    marks: Sequence[str] = (),
    decimal: str | None = None,
    quoted: bool = False,
    as_words: bool = False,
) -> Cells:
    """Returns the values of a column.

    Arguments:
        column: A pandas series.
        marks: Further marks of missing values.
        decimal: The decimal mark of numbers that are ambiguous, ``"."`` or ``","``; or ``None``.
        quoted: Whether a quote before a formula is removed, as in a csv file.
        as_words: Whether texts are words even if most of them are numbers.
    """
    import pandas
    from pandas.api import types

    dtype = column.dtype
    if isinstance(dtype, pandas.CategoricalDtype):
        plain = column.astype(object).infer_objects()
        cells = parse_cells(plain, marks=marks, decimal=decimal, quoted=quoted, as_words=as_words)
        order = format_levels(pandas.Series(dtype.categories)) if dtype.ordered else ()
        return cells._replace(order=tuple(order))
    if types.is_bool_dtype(dtype):
        return Cells("truth", column.astype("boolean"))
    if types.is_complex_dtype(dtype):
        return Cells("word", column.astype(object).map(str))
    if types.is_numeric_dtype(dtype):
        return _mask_marks(column, marks)
    if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        return Cells("date", column)
    return _parse_texts(column.astype(object), marks, decimal, quoted, as_words)


def _mask_marks(column: Any, marks: Sequence[str]) -> Cells:
    """Returns numbers, of which some may be declared as marks of missing values, such as -999."""
    import pandas

    numbers = pandas.to_numeric(pandas.Series(marks, dtype=object), errors="coerce").dropna()
    is_mark = column.isin(numbers.tolist())
    if not is_mark.any():
        return Cells("number" if column.notna().any() else "empty", column)
    values = column.astype("float64").mask(is_mark)
    return Cells("number" if values.notna().any() else "empty", values, tuple(marks))


def _parse_texts(
    column: Any, marks: Sequence[str], decimal: str | None, quoted: bool, as_words: bool
) -> Cells:
    import pandas

    present = column[column.notna()]
    texts = present.map(lambda value: str(value).strip())
    own = {mark.strip().lower() for mark in marks}
    lowered = texts.str.lower()
    # Beside a plus, as for blood groups, a minus is a word.
    known = _MISSING - {"-"} if (texts == "+").any() else _MISSING
    is_missing = lowered.isin(known | own)
    words, used = texts[~is_missing], texts[is_missing]
    if not len(words):
        return Cells("empty", pandas.Series(index=column.index, dtype="float64"), _list_marks(used))
    if words.str.lower().isin(["true", "false"]).all():
        truth = (words.str.lower() == "true").reindex(column.index).astype("boolean")
        return Cells("truth", truth, _list_marks(used))
    if not as_words:
        is_mark = lowered[~is_missing].isin(_MISSING_NUMBERS)
        cells = _parse_numbers(words[~is_mark], decimal, column.index[-1])
        if cells is not None:
            values = cells.values.reindex(column.index)
            return cells._replace(
                values=values, missing=_list_marks(pandas.concat([used, words[is_mark]]))
            )
    if quoted:
        words = words.map(restore)
    kind: Literal["word", "date"] = "date" if words.map(_is_date).mean() > 0.9 else "word"
    return Cells(kind, words.reindex(column.index), _list_marks(used))


def _is_date(text: str) -> bool:
    return _DATE.fullmatch(text) is not None


def _list_marks(texts: Any) -> tuple[str, ...]:
    return tuple(sorted(set(texts) - {""}))


def _parse_numbers(texts: Any, decimal: str | None, last_row: int) -> Cells | None:
    """Returns texts as numbers, with a fault if they are ambiguous; ``None`` for words."""
    if not len(texts):
        return None
    plain = _to_numeric(texts)
    if decimal != "," and plain.notna().all():
        return Cells("number", plain, fault=_find_inexact(texts, plain))
    bare, note = _remove_units(texts)
    bare = bare.str.replace(_SPACED, "", regex=True)
    plain = _to_numeric(bare)
    is_point, is_comma = (bare.map(partial(_matches, mark)) for mark in (_POINT, _COMMA))
    readable = plain.notna() | is_point | is_comma
    if readable.mean() < _LEAST_NUMBERS:
        return None
    if not readable.all():
        return Cells("number", plain, fault=_describe_words(texts[~readable], last_row))
    mark = decimal or _find_decimal(is_point, is_comma)
    # A point that is not before three digits is a decimal point.
    is_decimal = plain.notna() & bare.str.contains(".", regex=False)
    is_decimal &= ~bare.map(partial(_matches, _GROUPED))
    against = (is_comma & ~is_point) if mark == "." else (is_decimal | (is_point & ~is_comma))
    if mark is None and not (is_point | is_comma).any():
        return Cells("number", plain, note=note)
    if mark is None or against.any():
        first = texts[is_point & is_comma if mark is None else against].iloc[0]
        return Cells("number", plain, fault=_describe_ambiguity(first, mark))
    group = "," if mark == "." else "."
    values = bare.str.replace(group, "", regex=False).str.replace(",", ".", regex=False)
    return Cells("number", _to_numeric(values), note=note, decimal=mark)


def _to_numeric(texts: Any) -> Any:
    import pandas

    return pandas.to_numeric(texts, errors="coerce").astype("float64")


def _matches(pattern: re.Pattern, text: str) -> bool:
    return pattern.fullmatch(text) is not None


def _find_decimal(is_point: Any, is_comma: Any) -> str | None:
    """Returns the decimal mark of numbers, or ``None`` if they are ambiguous or contradictory."""
    points, commas = (is_point & ~is_comma).any(), (is_comma & ~is_point).any()
    return None if points == commas else "." if points else ","


def _remove_units(texts: Any) -> tuple[Any, str | None]:
    """Returns numbers without the currency or unit that all have, and a note about it."""
    parts = texts.str.extract(_WITH_UNIT.pattern + "$", flags=re.ASCII)
    signs = parts[["prefix", "suffix"]].fillna("")
    if parts["number"].isna().any() or len(signs.drop_duplicates()) > 1:
        return texts, None
    unit = "".join(signs.iloc[0])
    return (parts["number"], f"in {unit}") if unit else (texts, None)


def _find_inexact(texts: Any, values: Any) -> str | None:
    """Returns the fault of integers that double precision would change."""
    large = texts[values.abs() > EXACT]
    integers = large[large.map(partial(_matches, _INTEGER))]
    return INEXACT if len(integers) else None


def _describe_words(words: Any, last_row: int) -> str:
    row, text = words.index[0], words.iloc[0]
    mark = format_override("data.na", sorted(set(words))[:3])
    categorical = format_override("data.categorical", [str(words.name)])
    last = "leave out the last row (data.skip_last=1), " if row == last_row else ""
    return (
        f"numbers and words, such as {text!r:.30} in row {row}: {last}declare words that mean "
        f"missing ({mark}), or that the column has words ({categorical})"
    )


def _describe_ambiguity(text: str, mark: str | None) -> str:
    options = [format_override("data.decimal", choice) for choice in (".", ",")]
    meaning = (
        "is ambiguous" if mark is None else f"does not fit the decimal mark {mark!r} of others"
    )
    return f"{text!r}, which {meaning}: set the decimal mark ({options[0]} or {options[1]})"


def is_grouped(text: str) -> bool:
    """Whether a number has a point before each three digits, which may be thousands.

    Example:
        >>> is_grouped("1.234"), is_grouped("1.5"), is_grouped("12")
        (True, False, False)
    """
    return _matches(_GROUPED, text.strip())
