"""Chooses the columns of a table by name."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pyro_vae.tables.cells import leave_out
from pyro_vae.validation import describe_value, list_names

__all__ = ["check_once", "match_name", "match_names", "select_columns"]


def match_name(value: Any, available: Sequence[str]) -> str:
    """Returns the name of a column, also if YAML reads it as a number, a boolean or null.

    Example:
        >>> match_name(1.5, ["1.50", "b"]), match_name(None, ["null"]), match_name(True, ["true"])
        ('1.50', 'null', 'true')
    """
    text = str(value)
    if isinstance(value, str) or text in available:
        return text
    alike = [name for name in available if _reads_as(name.strip(), value)]
    return alike[0] if len(alike) == 1 else text


def _reads_as(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return name.lower() in (("null", "~", "none") if value is None else (str(value).lower(),))
    try:
        number = float(name)
    except ValueError:
        return False
    return number == value or (math.isnan(number) and value != value)


def match_names(argument: str, wanted: Any, available: Sequence[str]) -> list[str]:
    """Returns a list of names of columns.

    Arguments:
        argument: The name of the argument, for errors.
        wanted: Names.
        available: The names of all columns.

    Raises:
        ValueError: If this is not a list, is empty, or a name is unknown.
    """
    if isinstance(wanted, str) or not isinstance(wanted, (Sequence, Mapping)):
        raise ValueError(f"Expected {argument} to be a list of names, got {describe_value(wanted)}")
    names = [match_name(value, available) for value in wanted]
    known = set(available)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"Expected {argument} to be some of {list_names(available)}, got "
            f"{list_names(unknown) or 'none'}"
        )
    return names


def select_columns(
    available: Sequence[str],
    *,
    columns: Any = None,
    drop: Any = None,
    label: str | None = None,
    reserved: Collection[str] = (),
    left_out: Collection[str] = (),
    like: Sequence[str] | None = None,
    source: str = "the table",
) -> list[str]:
    """Returns the names of the columns of a datum.

    Arguments:
        available: The names of all columns.
        columns: The names to use; ``None`` for all but the others here.
        drop: The names to leave out.
        label: The name of the label, which may be a column of the datum if it is listed.
        reserved: The names of covariates, which may not.
        left_out: The names of columns that are no data unless they are listed.
        like: The columns of the training data, which have to be there.
        source: The name of the table, for errors.

    Raises:
        ValueError: If a name is unknown, or these contradict each other.
    """
    dropped = set() if drop is None else set(match_names("drop", drop, available))
    if columns is not None and drop is not None:
        raise ValueError("Expected either columns or drop, got both")
    if columns is None:
        absent = {*dropped, *reserved, *left_out, label}
        names = [name for name in available if name not in absent]
    else:
        names = match_names("columns", columns, available)
    both = [name for name in names if name in reserved]
    if both:
        raise ValueError(
            f"Expected columns without the covariates and the size factor, got "
            f"{list_names(both)} in both"
        )
    if like is None:
        if not names:
            raise ValueError(
                f"Expected columns of {source} besides label and covariates, got none of "
                f"{list_names(available)}"
            )
        return names
    missing = [name for name in like if name not in available]
    if missing:
        raise ValueError(
            f"Expected {source} to have the columns of the training data, {list_names(like)}, got "
            f"{list_names(available)}, without {list_names(missing)}"
        )
    contradicts = columns is not None and set(names) != set(like)
    if contradicts or dropped & set(like):
        raise ValueError(
            f"Expected columns and drop to leave the columns of the training data, "
            f"{list_names(like)}, got {list_names(names)}"
        )
    return list(like)


def check_once(available: Sequence[str], names: Sequence[str], label: str | None = None) -> None:
    """Raises a ``ValueError`` for a column that is used and duplicated."""
    frequency, chosen = Counter(available), Counter(names)
    twice = {name for name in chosen if frequency[name] + chosen[name] > 2}
    twice |= {label} if label is not None and frequency[label] > 1 else set()
    if twice:
        raise ValueError(
            f"Expected each column once, got duplicates of {list_names(sorted(twice))}: rename "
            f"them, or {leave_out(sorted(twice))}"
        )
