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

_LEAST_DATES = 0.9
"""The least share of dates in a column of dates."""

_MISSING = {
    "", "#n/a", "#n/a n/a", "#na", "-nan", "<na>", "?", "n.a", "n.a.", "n/a", "na", "nan", "none",
    "null", "-", "--", "---", ".", "..", "*", "-1.#ind", "-1.#qnan", "1.#ind", "1.#qnan",
}  # fmt: skip
"""Marks of missing values, in lower case."""

_MISSING_NUMBERS = {"missing", "unknown"}
"""Further marks between numbers; between words they may be words."""

_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d\d)( .*)?|"
    r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?( ?[ap]m)?",
    re.ASCII | re.IGNORECASE,
)

_POINT = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", re.ASCII)
"""A number with commas between thousands."""

_COMMA = re.compile(
    r"[-+]?(\d+|[1-9]\d{0,2}(\.\d{3})+),\d+([eE][-+]?\d+)?|[-+]?[1-9]\d{0,2}(\.\d{3}){2,}",
    re.ASCII,
)
"""A number with a decimal comma, or with points between thousands."""

_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}\.\d{3}", re.ASCII)
"""A number with a point before its last three digits, which may be thousands or decimals."""

_CURRENCY = "$\u00a2\u00a3\u00a5\u0e3f\u20a9\u20aa\u20ac\u20b9\u20bd"

_WITH_UNIT = (
    rf"^(?P<sign>[-+]?)\s*(?P<prefix>[{_CURRENCY}]?)\s*"
    rf"(?P<number>[-+]?\d[\d.,' \u00a0\u202f]*(?:[eE][-+]?\d+)?|[-+]?\.\d+)"
    rf"(?P<suffix>\s*[{_CURRENCY}%\u2030\u00b0]|\s+[^\W\d]\S{{0,9}})?$"
)
"""A number with a currency, a percent sign, or the name of a unit after a space."""

_SPACED = re.compile(r"(?<=\d)[ '\u00a0\u202f](?=\d{3})")
"""The mark between thousands that is neither a point nor a comma."""

_INTEGER = re.compile(r"\s*[-+]?\d+\s*", re.ASCII)

_DIGIT = re.compile(r".*\d.*", re.DOTALL)

_CODE = re.compile(r"\s*[-+]?0\d+\s*", re.ASCII)
"""Digits with a leading zero, such as a postal code, which a number would lose."""


class Cells(NamedTuple):
    """The values of a column.

    Attributes:
        kind: ``"number"``, ``"truth"``, ``"word"`` or ``"date"``; ``"empty"`` without any value.
        values: A pandas series of numbers, truth values or texts, with gaps for missing values.
        missing: The marks of missing values that occur.
        note: The currency or unit that was removed from numbers, or ``None``.
        fault: Why numbers cannot be read, with the remedy; or ``None``.
        is_ambiguous: Whether the fault is that numbers have several meanings.
        decimal: The decimal mark that follows from the numbers, or ``None``.
        categories: The levels of a pandas ``Categorical``, or none.
        is_ordered: Whether they are ordered.
    """

    kind: Literal["number", "truth", "word", "date", "empty"]
    values: Any
    missing: tuple[str, ...] = ()
    note: str | None = None
    fault: str | None = None
    is_ambiguous: bool = False
    decimal: str | None = None
    categories: tuple[str, ...] = ()
    is_ordered: bool = False


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
    skipped: int = 0,
) -> Cells:
    """Returns the values of a column.

    Arguments:
        column: A pandas series.
        marks: Further marks of missing values.
        decimal: The decimal mark of numbers that are ambiguous, ``"."`` or ``","``; or ``None``.
        quoted: Whether a quote before a formula is removed, as in a csv file.
        as_words: Whether texts are words even if most of them are numbers.
        skipped: The number of last rows that are left out already.
    """
    import pandas
    from pandas.api import types

    dtype = column.dtype
    if isinstance(dtype, pandas.CategoricalDtype):
        plain = column.astype(object).infer_objects()
        cells = parse_cells(
            plain, marks=marks, decimal=decimal, quoted=quoted, as_words=as_words, skipped=skipped
        )
        categories = format_levels(pandas.Series(dtype.categories))
        return cells._replace(categories=tuple(categories), is_ordered=dtype.ordered)
    if types.is_bool_dtype(dtype):
        return Cells("truth", column.astype("boolean"))
    if types.is_complex_dtype(dtype):
        return Cells("word", column.astype(object).map(str))
    if types.is_numeric_dtype(dtype):
        return _mask_marks(column, marks)
    if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        return Cells("date", column)
    return _parse_texts(
        column.astype(object), marks, decimal, quoted=quoted, as_words=as_words, skipped=skipped
    )


def _mask_marks(column: Any, marks: Sequence[str]) -> Cells:
    """Returns numbers, of which some may be declared as marks of missing values, such as -999."""
    is_mark = column.isin(_list_numbers(marks))
    if not is_mark.any():
        return Cells("number" if column.notna().any() else "empty", column)
    values = column.astype("float64").mask(is_mark)
    return Cells("number" if values.notna().any() else "empty", values, tuple(marks))


def _list_numbers(marks: Sequence[str]) -> list[float]:
    return _to_numeric(_make_series(marks)).dropna().tolist()


def _make_series(values: Sequence[str]) -> Any:
    import pandas

    return pandas.Series(list(values), dtype=object)


def _parse_texts(
    column: Any,
    marks: Sequence[str],
    decimal: str | None,
    *,
    quoted: bool,
    as_words: bool,
    skipped: int,
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
        cells = _parse_numbers(words[~is_mark], decimal, (column.index[-1], skipped))
        if cells is not None:
            is_declared = cells.values.isin(_list_numbers(marks))
            values = cells.values.mask(is_declared).reindex(column.index)
            used = pandas.concat([used, words[is_mark], words[~is_mark][is_declared]])
            return cells._replace(values=values, missing=_list_marks(used))
    if quoted:
        words = words.map(restore)
    kind: Literal["word", "date"] = "date" if _share(words, _DATE) > _LEAST_DATES else "word"
    return Cells(kind, words.reindex(column.index), _list_marks(used))


def _list_marks(texts: Any) -> tuple[str, ...]:
    return tuple(sorted(set(texts) - {""}))


def _parse_numbers(texts: Any, decimal: str | None, last: tuple[int, int]) -> Cells | None:
    """Returns texts as numbers, with a fault if they are ambiguous; ``None`` for words.

    Arguments:
        texts: The texts, at least one.
        decimal: The decimal mark, if it is known.
        last: The number of the last row, and of rows after it that are left out.
    """
    # Words repeat, so patterns are matched with the different texts only.
    if not len(texts) or _share(texts, _DIGIT) < _LEAST_NUMBERS or _share(texts, _CODE) > 0:
        return None
    texts = texts.str.replace("\u2212", "-", regex=False)
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
        return Cells("number", plain, fault=_describe_words(texts[~readable], last))
    mark, wrong = _choose_decimal(bare, plain, is_point, is_comma, decimal, has_unit=bool(note))
    if wrong.any():
        fault = _describe_ambiguity(texts[wrong].iloc[0], decimal)
        return Cells("number", plain, fault=fault, is_ambiguous=True)
    if mark is not None:
        bare = bare.str.replace("," if mark == "." else ".", "", regex=False)
        bare = bare.str.replace(",", ".", regex=False)
        plain = _to_numeric(bare)
    # Plain numbers say nothing about those of other columns.
    own = mark if (is_point | is_comma).any() else None
    return Cells("number", plain, note=note, decimal=own, fault=_find_inexact(bare, plain))


def _choose_decimal(
    texts: Any, plain: Any, is_point: Any, is_comma: Any, decimal: str | None, *, has_unit: bool
) -> tuple[str | None, Any]:
    """Returns the decimal mark, if it matters, and which numbers are unclear or contradict it."""
    is_grouped = texts.map(partial(_matches, _GROUPED))
    is_real = plain.notna() & texts.str.contains(".", regex=False)
    needs_point = (is_point & ~is_comma) | (is_real & ~is_grouped)
    needs_comma = is_comma & ~is_point
    # A price with three decimals is more likely to be in thousands.
    unclear = (is_point & is_comma) | (is_grouped & has_unit)
    if decimal is not None:
        return decimal, needs_comma if decimal == "." else needs_point
    if needs_point.any() or needs_comma.any():
        return ("." if needs_point.any() else ","), needs_point & needs_comma.any()
    return None, unclear


def _share(texts: Any, pattern: re.Pattern) -> float:
    """Returns the share of texts that match a pattern."""
    different = _make_series(texts.unique())
    return float(texts.isin(different[different.map(partial(_matches, pattern))]).mean())


def _to_numeric(texts: Any) -> Any:
    import pandas

    return pandas.to_numeric(texts, errors="coerce").astype("float64")


def _matches(pattern: re.Pattern, text: str) -> bool:
    return pattern.fullmatch(text) is not None


def _remove_units(texts: Any) -> tuple[Any, str | None]:
    """Returns numbers without the currency or unit that all have, and a note about it."""
    parts = texts.str.extract(_WITH_UNIT, flags=re.ASCII)
    units = (parts["prefix"].fillna("") + " " + parts["suffix"].fillna("").str.strip()).str.strip()
    if parts["number"].isna().any() or units.nunique() > 1 or not units.iloc[0]:
        return texts, None
    return parts["sign"] + parts["number"].str.strip(), f"in {units.iloc[0]}"


def _find_inexact(texts: Any, values: Any) -> str | None:
    """Returns the fault of integers that double precision would change."""
    large = texts[values.abs() >= EXACT]
    integers = large[large.map(partial(_matches, _INTEGER))]
    return INEXACT if any(abs(int(text)) > EXACT for text in integers) else None


def _describe_words(words: Any, last: tuple[int, int]) -> str:
    row, text = words.index[0], words.iloc[0]
    remedies = []
    if row + len(words) - 1 == last[0]:
        count = last[1] + len(words)
        remedies.append(f"leave out the last rows (data.skip_last={count})")
    marks = sorted({word for word in words if not any(map(str.isdigit, word))})
    if len(marks) == words.nunique():
        mark = format_override("data.na", marks[:_MAX_SUGGESTED])
        remedies.append(f"declare words that mean missing ({mark})")
    else:
        remedies.append("write them as numbers")
    categorical = format_override("data.categorical", [str(words.name)])
    remedies.append(f"declare that the column has words ({categorical})")
    return f"numbers and words, such as {text!r:.30} in row {row}: {', or '.join(remedies)}"


def _describe_ambiguity(text: str, decimal: str | None) -> str:
    if decimal is not None:
        return f"{text!r}, which is not a number with the decimal mark {decimal!r}"
    point, comma = (format_override("data.decimal", mark) for mark in (".", ","))
    return f"{text!r}, which is ambiguous: set the decimal mark ({point} or {comma})"


def is_grouped(text: str) -> bool:
    """Whether a number has a point before each three digits, which may be thousands.

    Example:
        >>> is_grouped("1.234"), is_grouped("1.5"), is_grouped("12")
        (True, False, False)
    """
    return _matches(_GROUPED, text.strip())
