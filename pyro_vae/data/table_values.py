"""The values of a table as numbers, with all its problems in one error."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.config import format_override
from pyro_vae.data.preparation import Scaling
from pyro_vae.data.table_files import TableSource
from pyro_vae.tables.cells import INEXACT, Cells, leave_out
from pyro_vae.tables.kinds import fit_column
from pyro_vae.tables.schema import CODED, Column, Schema
from pyro_vae.validation import list_names

__all__ = [
    "Problems",
    "check_kinds",
    "check_range",
    "check_resolution",
    "describe_source",
    "fit_scaling",
    "fit_schema",
    "read_numbers",
]

_MAX_SHOWN = 8

_LEAST_ROWS = 4
"""The least rows of which the last can be recognized as their sum."""

_LEAST_STEPS = 1000.0
"""The least ratio of a column's standard deviation to the rounding error of its values."""


class Problems:
    """The problems of a table, for one error.

    Arguments:
        place: The name of the table.
        must_keep: Whether columns cannot be left out, because they are those of the training data.

    Attributes:
        texts: The problems of columns.
        last: Further problems, which are listed last.
        names: The columns with problems.
    """

    def __init__(self, place: str, *, must_keep: bool = False) -> None:
        self.place, self.must_keep = place, must_keep
        self.texts: list[str] = []
        self.last: list[str] = []
        self.names: list[str] = []

    def add(self, text: str, names: Sequence[str] = ()) -> None:
        """Adds a problem of some columns."""
        self.texts.append(text)
        self.names += [name for name in names if name not in self.names]

    @contextmanager
    def collect(self, *names: str) -> Iterator[None]:
        """Adds the ``ValueError`` of its context as a problem of some columns."""
        try:
            yield
        except ValueError as error:
            self.add(str(error), names)

    def raise_any(self) -> None:
        """Raises a ``ValueError`` with all problems, if there are any."""
        texts = self.texts + self.last
        if not texts:
            return
        if len(texts) == 1:
            raise ValueError(texts[0])
        lines = [f"  {number}. {text}" for number, text in enumerate(texts, 1)]
        if self.names and not self.must_keep:
            lines.append(f"  To go on without the columns with problems, {leave_out(self.names)}.")
        raise ValueError(
            f"Expected {self.place} to be a table without problems, got {len(texts)}:\n"
            + "\n".join(lines)
        )


class Numbers(NamedTuple):
    """Values with a mask of observed ones, for the columns that have numbers."""

    names: list[str]
    values: Tensor
    observed: Tensor


def read_numbers(cells: Mapping[str, Cells], missing: str, problems: Problems) -> Numbers:
    """Returns columns of numbers in double precision; other columns are problems."""
    _report_faults(cells, problems)
    for kind, what, remedy in (
        ("word", "categorical values", _suggest_words),
        ("date", "dates", _suggest_dates),
    ):
        bad = [name for name, c in cells.items() if c.kind == kind]
        if bad:
            shown = [f"{n!r} (as {cells[n].values.dropna().iloc[0]!s:.20})" for n in bad]
            listed = ", ".join(shown[:_MAX_SHOWN])
            more = f" and {len(bad) - _MAX_SHOWN:,} others" if len(bad) > _MAX_SHOWN else ""
            problems.add(
                f"Expected columns of numbers, got {what} in {listed}{more}: {remedy(bad)}", bad
            )
    names = [n for n, c in cells.items() if c.kind in ("number", "truth", "empty") and not c.fault]
    values = [_to_float(cells[name].values) for name in names]
    if not values:
        size = len(next(iter(cells.values())).values)
        return Numbers([], torch.zeros(size, 0), torch.ones(size, 0, dtype=torch.bool))
    numbers = torch.from_numpy(np.stack(values, 1))
    infinite = _select(names, numbers.isinf().any(0))
    if infinite:
        problems.add(
            f"Expected finite values, got infinite ones in columns {list_names(infinite)}: "
            f"{leave_out(infinite)}",
            infinite,
        )
    observed = ~numbers.isnan()
    _report_totals(names, numbers, problems)
    _report_missing(names, observed, cells, missing, problems)
    return Numbers(names, numbers, observed)


def fit_schema(
    cells: Mapping[str, Cells],
    declared: Mapping[str, tuple[str, tuple[str, ...]]],
    missing: str,
    problems: Problems,
    own: Schema | None = None,
) -> Schema:
    """Returns the kinds of columns; columns without one are problems.

    Arguments:
        cells: The cells of each column.
        declared: The declared kinds; others are inferred.
        missing: Whether missing values are an error, ``"raise"`` or ``"nan"``.
        problems: Gets the problems.
        own: The kinds of the training data, with which the cells have to agree; or ``None``.
    """
    _report_faults(cells, problems)
    dates = [name for name, c in cells.items() if c.kind == "date" and name not in declared]
    if dates:
        shown = ", ".join(f"{n!r} (as {cells[n].values.dropna().iloc[0]!s:.20})" for n in dates)
        problems.add(f"Expected no dates, got {shown}: {_suggest_dates(dates)}", dates)
    fits: dict[str, Column] = {} if own is None else {c.name: c for c in own.columns}
    good = [name for name, c in cells.items() if c.fault is None and name not in dates]
    columns: list[Column] = []
    for name in good:
        with problems.collect(name):
            columns.append(_fit_column(name, cells[name], declared.get(name), fits.get(name)))
    totals = [n for n in good if cells[n].kind == "number"]
    if totals:
        numbers = torch.from_numpy(np.stack([_to_float(cells[n].values) for n in totals], 1))
        _report_totals(totals, numbers, problems)
    if good:
        masks = [torch.from_numpy(cells[n].values.notna().to_numpy(copy=True)) for n in good]
        _report_missing(good, torch.stack(masks, 1), cells, missing, problems)
    return Schema(tuple(columns))


def _fit_column(
    name: str, cells: Cells, declared: tuple[str, tuple[str, ...]] | None, own: Column | None
) -> Column:
    if own is not None:
        own.encode(cells.values)
        return own
    kind, levels = (None, ()) if declared is None else declared
    if cells.categories and kind in (None, *CODED):
        # Categories that do not occur in these rows may occur in others.
        kind = kind or ("ordinal" if cells.is_ordered else _choose_coded(cells.categories))
        levels = levels or cells.categories
    return fit_column(name, cells.values, kind, levels)


def _choose_coded(categories: Sequence[str]) -> str:
    return "binary" if len(categories) == 2 else "categorical"


def _report_faults(cells: Mapping[str, Cells], problems: Problems) -> None:
    inexact = [name for name, c in cells.items() if c.fault == INEXACT]
    if inexact:
        problems.add(
            f"Expected numbers that are exact in double precision, got {INEXACT.split(',')[0]} in "
            f"columns {list_names(inexact)}, which may be identifiers: {leave_out(inexact)}, or "
            f"write them with a decimal point to accept rounding",
            inexact,
        )
    for name, c in cells.items():
        if c.fault is not None and c.fault != INEXACT:
            problems.add(f"Expected numbers in column {name!r}, got {c.fault}", [name])


def _report_totals(names: Sequence[str], numbers: Tensor, problems: Problems) -> None:
    """Adds a problem if the last row holds the sums of all others."""
    if len(numbers) < _LEAST_ROWS or len(names) < 2:
        return
    sums, last = numbers[:-1].nansum(0), numbers[-1]
    alike = (last - sums).abs() <= 1e-9 * sums.abs()
    if bool((alike & (sums != 0)).all()):
        problems.add(
            "Expected rows of one kind, got the sums of the others in the last one: leave it out "
            "(data.skip_last=1)"
        )


def _report_missing(
    names: list[str],
    observed: Tensor,
    cells: Mapping[str, Cells],
    missing: str,
    problems: Problems,
) -> None:
    if missing == "nan" or bool(observed.all()):
        return
    bad = _select(names, ~observed.all(0))
    marks = sorted({mark for name in bad for mark in cells[name].missing})
    written = f", some written as {list_names(marks)}" if marks else ""
    problems.add(
        f"Expected no missing values, got {int((~observed).sum())} in "
        f"{int((~observed).any(1).sum())} of {len(observed)} rows, in columns {list_names(bad)}"
        f"{written}: missing='nan' (data.missing=nan) leaves them out of the likelihood"
    )


def _suggest_words(names: Sequence[str]) -> str:
    label = format_override("data.label", names[0])
    covariate = format_override("data.covariates", [names[0]])
    return (
        f"{leave_out(names)}, model words too (vae/likelihood=columns), or use one as the label "
        f"that colours figures ({label}) or as a covariate ({covariate})"
    )


def _suggest_dates(names: Sequence[str]) -> str:
    return f"{leave_out(names)}, or convert them to numbers, such as days since a date"


def _to_float(values: Any) -> Any:
    return values.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)


def _select(names: Sequence[str], chosen: Tensor) -> list[str]:
    return [name for name, is_chosen in zip(names, chosen.tolist(), strict=True) if is_chosen]


def check_range(x: Tensor, names: Sequence[str], problems: Problems) -> None:
    """Adds a problem for values that overflow in the precision of the data."""
    bad = _select(names, ~(x.isfinite() | x.isnan()).all(0))
    if bad:
        problems.add(
            f"Expected values within the range of {x.dtype}, got larger ones in columns "
            f"{list_names(bad)}: {leave_out(bad)}, or rescale them",
            bad,
        )


def fit_scaling(
    train: Tensor, observed: Tensor, names: Sequence[str], problems: Problems
) -> Scaling:
    """Returns mean and standard deviation of the observed values of each column."""
    scaling = Scaling.fit(train, observed)
    scales = dict(zip(names, scaling.scale.tolist(), strict=True))
    huge = [name for name, scale in scales.items() if not math.isfinite(scale)]
    if huge:
        problems.add(
            f"Expected values whose squares are finite, got larger ones in columns "
            f"{list_names(huge)}: {leave_out(huge)}, or rescale them",
            huge,
        )
    constant = [name for name, scale in scales.items() if not scale]
    if constant:
        problems.add(
            f"Expected columns that vary over the training rows, got constant or empty "
            f"{list_names(constant)}: {leave_out(constant)}",
            constant,
        )
    return scaling


def check_resolution(x: Tensor, numbers: Tensor, names: Sequence[str], problems: Problems) -> None:
    """Adds a problem for numbers whose differences the precision of the data loses."""
    _, scale = Scaling.fit(numbers, ~numbers.isnan())
    error = (x.double() - numbers).nan_to_num().abs().amax(0)
    info = torch.finfo(x.dtype)
    is_lost = (scale > 0) & (_LEAST_STEPS * error > scale)
    # Densities need the squares of standardized values.
    is_extreme = (scale > 0) & ((scale < 1e3 * info.tiny**0.5) | (scale > 1e-3 * info.max**0.5))
    bad = _select(names, is_lost | is_extreme)
    if bad:
        problems.add(
            f"Expected columns whose differences {x.dtype} represents, got too small or too large "
            f"ones in {list_names(bad)}: subtract a constant or rescale them, or {leave_out(bad)}",
            bad,
        )


def check_kinds(x: Tensor, numbers: Tensor, schema: Schema, problems: Problems) -> None:
    """Adds a problem for values that leave their kind in the precision of the data."""
    for index, column in enumerate(schema.columns):
        observed = ~numbers[:, index].isnan()
        values = x[:, index][observed]
        is_exact = column.kind != "count" or torch.equal(
            values.double(), numbers[:, index][observed]
        )
        if not is_exact or not bool(column.contains(values).all()):
            problems.add(
                f"Expected column {column.name!r} to be {column.describe_support()} in {x.dtype}, "
                f"got values that are rounded to others: rescale it, declare another kind, or "
                f"{leave_out([column.name])}",
                [column.name],
            )


def describe_source(source: TableSource, names: Sequence[str], state: str | None) -> str:
    """Returns the origin of a table in one line."""
    parts = [source.place.strip("'"), f"{len(names)} columns", *([state] if state else [])]
    return ", ".join([*parts, *source.notes])
