"""Tables in text and parquet files, and in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.base import Data, Split, split_row_numbers
from pyro_vae.data.preparation import Preparation, Scaling
from pyro_vae.data.table_files import (
    TableSource,
    check_header,
    check_label,
    check_read_options,
    load_table,
    number_labels,
)
from pyro_vae.data.table_roles import (
    choose_encoding,
    choose_kinds,
    load_preparation,
    match_reserved,
)
from pyro_vae.data.table_values import (
    Problems,
    check_kinds,
    check_range,
    check_resolution,
    describe_source,
    fit_scaling,
    fit_schema,
    read_numbers,
)
from pyro_vae.files.csv_cells import NUMBER
from pyro_vae.tables.kinds import parse_declared
from pyro_vae.tables.schema import CODED, Schema
from pyro_vae.tables.selection import check_once, match_name, select_columns
from pyro_vae.validation import check_choice, check_flag, describe_value, list_names

__all__ = ["encode_frame", "table"]

_MISSING = ("raise", "nan")


def table(
    path: Any = None,
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    label: str | None = None,
    covariates: Sequence[str] | Mapping[str, str] | str | None = None,
    size_factor: str | None = None,
    like: Preparation | Path | str | None = None,
    mixed: bool | None = None,
    real: Sequence[str] | None = None,
    positive: Sequence[str] | None = None,
    count: Sequence[str] | None = None,
    binary: Sequence[str] | None = None,
    categorical: Sequence[str] | None = None,
    ordinal: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    standardize: bool = True,
    missing: str = "raise",
    na: Sequence[str] = (),
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    header: bool = True,
    skip_last: int = 0,
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Data:
    r"""Returns the rows of a table, one datum of shape ``(columns,)`` each.

    By default all columns are numbers. With ``standardize`` each is :math:`(x - m) / s`, with the
    mean and standard deviation of its observed training values; ``Data.scaling`` undoes it. The log
    evidence of standardized values exceeds that of the original values by
    :math:`\sum_j \log s_j` nats per datum.

    With ``mixed``, for :class:`pyro_vae.likelihoods.Columns`, columns may be of different kinds:
    numbers in their own units, and words as codes. ``Data.schema`` lists the kinds. A kind that is
    not declared is inferred from the values:

    - two values: ``binary``;
    - other words, at most 10 distinct integers, and at most 10 other numbers that occur ten times
      on average: ``categorical``;
    - an ordered pandas ``Categorical``: ``ordinal``;
    - non-negative integers with a variance of at least their mean: ``count``;
    - positive numbers with a skewness above 1, which the logarithm reduces: ``positive``;
    - other numbers: ``real``.

    Encoding, separator, decimal commas, units such as ``$`` and ``%``, and common marks of missing
    values are detected. Columns without a name that are empty or identify the rows are left out.

    Arguments:
        path: A csv, tsv, txt or data file, also compressed (gz, bz2, xz or zip), whose first line
            names the columns; a parquet file (needs the extra ``parquet``); or a pandas table,
            or one with the method ``to_pandas``. In a text file, the quote before a name or a word
            that a spreadsheet would calculate, as in ``'=1+1``, is removed.
        columns: The names of the columns to use; by default all but the label, covariates and size
            factor.
        drop: The names of columns to leave out instead.
        label: The name of a column that colours figures: integers, or any values, which are then
            numbered in sorted order and listed in ``Data.label_names``. It may have gaps.
        covariates: The names of columns that describe the rows: words, booleans and up to 10
            distinct integers are categories, other numbers are standardized. A mapping from names
            to ``"categorical"`` or ``"continuous"`` sets the kinds.
        size_factor: The name of a column of size factors, the last covariate, for a likelihood with
            ``size_factor="covariate"``.
        like: The preparation of another table, its ``Data.preparation`` or the folder of a run:
            columns, their order, kinds, scaling and covariates are those of that table, and
            ``standardize`` is ignored.
        mixed: As above; ``None``: whether a kind is declared.
        real: The names of columns of real numbers.
        positive: The names of columns of positive numbers.
        count: The names of columns of counts.
        binary: The names of columns with two values.
        categorical: The names of columns with categories.
        ordinal: The names of columns with ordered numbers, or a mapping from names to their levels
            in order.
        standardize: Whether columns are standardized, unless ``mixed``.
        missing: ``"raise"``: missing values are an error; ``"nan"``: they become zeros after
            the standardization, and ``Data.mask`` is True where a value was observed.
        na: Further marks of missing values, such as ``-999``.
        separator: The separator between the values of a text file; ``None`` to detect it.
        decimal: The decimal mark, ``"."`` or ``","``; the other one, a space or an apostrophe is
            between thousands. ``None`` to detect it.
        encoding: The encoding of a text file; ``None`` to detect it.
        header: Whether the first line names the columns; False: they are called ``column_0`` etc.
        skip_last: The number of last rows to leave out, such as a row of totals.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise; both 0: no split, all are training rows.
        seed: The seed of the split.

    Raises:
        ValueError: If the source is missing, damaged or not a table, a column is unknown, unnamed,
            duplicated or of another kind, constant if it is standardized or ``mixed``, identifies
            the rows if ``mixed``, or has integers above 2**53, the first line has values, values
            are missing, ambiguous or infinite, or an argument is out of range. The message lists
            all problems of the columns.

    Example:
        >>> import pandas
        >>> frame = pandas.DataFrame({"age": [31.5, 40.2, 25.1], "city": ["Bern", "Rome", "Rome"]})
        >>> people = table(frame, mixed=True, valid=0, test=0)
        >>> people.x.train
        tensor([[31.5000,  0.0000],
                [40.2000,  1.0000],
                [25.1000,  1.0000]])
        >>> print(people.schema.describe())
        real: 'age'
        binary: 'city'
    """
    kinds = {
        "real": real, "positive": positive, "count": count, "binary": binary,
        "categorical": categorical, "ordinal": ordinal,
    }  # fmt: skip
    settings = _check_settings(missing, standardize, like, mixed, kinds)
    options = check_read_options(separator, encoding, decimal, header, skip_last)
    source = load_table(path, options, _check_marks(na))
    roles = choose_kinds(covariates, size_factor, settings.like)
    label, roles = match_reserved(source.names, check_label(label), roles)
    names = select_columns(
        source.names, columns=columns, drop=drop, label=label, reserved=roles,
        left_out=source.index_names, like=settings.like and settings.like.columns,
        source=source.place,
    )  # fmt: skip
    declared = {match_name(name, source.names) for name in settings.declared}
    unsure = [] if columns is not None else [name for name in names if name not in declared]
    problems = _check_names(source, names, unsure, must_keep=settings.like is not None)
    try:
        rows = split_row_numbers(len(source), valid=valid, test=test, seed=seed)
    except ValueError as error:
        # The problems of the values belong to the same message.
        problems.last.append(str(error))
        rows = split_row_numbers(len(source), valid=0, test=0, seed=0)
    fields: dict[str, Any] = {}
    with problems.collect():
        fields = _describe_rows(source, rows, label, roles, settings.like)
    return _read_values(source, names, rows, settings, problems)._replace(**fields)


class _Settings(NamedTuple):
    """Checked arguments of :func:`table`."""

    missing: str
    standardize: bool
    like: Preparation | None
    mixed: bool
    declared: Mapping[str, tuple[str, tuple[str, ...]]]


def _check_settings(
    missing: Any, standardize: Any, like: Any, mixed: Any, kinds: Mapping[str, Any]
) -> _Settings:
    if isinstance(missing, float) and missing != missing:
        # Hydra reads nan on a command line as a number.
        missing = "nan"
    missing = check_choice("missing", missing, _MISSING)
    declared = parse_declared(kinds)
    like = load_preparation(like)
    return _Settings(
        missing,
        check_flag("standardize", standardize),
        like,
        _check_mixed(mixed, list(declared), like),
        declared,
    )


def _check_mixed(mixed: Any, declared: Sequence[str], like: Preparation | None) -> bool:
    """Returns whether columns are of different kinds, or raises a ``ValueError``."""
    if like is not None:
        own = like.schema is not None
        if mixed is not None and check_flag("mixed", mixed) != own:
            raise ValueError(f"Expected mixed={own} as in like, got {mixed}")
        if declared and not own:
            raise ValueError(
                f"Expected no kinds of columns with a like that has none, got those of "
                f"{list_names(declared)}"
            )
        return own
    if mixed is None:
        return bool(declared)
    if not check_flag("mixed", mixed) and declared:
        raise ValueError(
            f"Expected mixed=True (vae/likelihood=columns) with the kinds of columns, got "
            f"mixed={mixed} and the kinds of {list_names(declared)}"
        )
    return bool(mixed)


def _check_marks(na: Any) -> tuple[str, ...]:
    marks = [na] if isinstance(na, (str, int, float)) else na
    if not isinstance(marks, Sequence) or not all(isinstance(m, (str, int, float)) for m in marks):
        raise ValueError(
            f"Expected na to be marks of missing values, such as [-999], got {describe_value(na)}"
        )
    return tuple(map(str, marks))


def _check_names(
    source: TableSource, names: list[str], unsure: list[str], *, must_keep: bool
) -> Problems:
    """Returns the problems of the names of the used columns.

    Arguments:
        source: The table.
        names: The names of the used columns.
        unsure: Those that no argument names.
        must_keep: As of :class:`Problems`.
    """
    # Values below a missing header are not checked.
    check_header(source, unsure)
    problems = Problems(source.place, must_keep=must_keep)
    with problems.collect(*sorted({n for n in names if source.names.count(n) > 1})):
        check_once(source.names, names)
    return problems


def _read_values(
    source: TableSource,
    names: list[str],
    rows: Split,
    settings: _Settings,
    problems: Problems,
) -> Data:
    """Returns the data without labels and covariates."""
    read = _read_mixed if settings.mixed else _read_numbers
    x, mask, scaling, schema = read(source, names, rows, settings, problems)
    return Data(
        name=source.name,
        binarize="none",
        x=x,
        labels=None,
        source=describe_source(source, names, "standardized" if scaling else None),
        mask=mask if settings.missing == "nan" else None,
        scaling=scaling,
        columns=tuple(names),
        row_numbers=rows,
        schema=schema,
    )


_Values = tuple[Split, Split, Scaling | None, Schema | None]
"""Values, the mask of observed ones, their scaling and the kinds of columns."""


def _describe_rows(
    source: TableSource,
    rows: Split,
    label: str | None,
    kinds: Mapping[str, str | None],
    like: Preparation | None,
) -> dict[str, Any]:
    """Returns labels and covariates, as fields of :class:`Data`."""
    check_once(source.names, [*kinds, *([] if label is None else [label])])
    described = source.read_described(label, kinds)
    fields: dict[str, Any] = {}
    if label is not None:
        labels, fields["label_names"] = number_labels(described[label])
        fields["labels"] = rows.select(labels)
    encoding = choose_encoding(described, rows, kinds, like)
    if encoding is not None:
        fields["covariates"] = rows.select(encoding.encode(described))
        fields["covariate_columns"] = encoding
    return fields


def _read_numbers(
    source: TableSource,
    names: list[str],
    rows: Split,
    settings: _Settings,
    problems: Problems,
) -> _Values:
    """Returns numbers, standardized if that is chosen."""
    numbers = read_numbers(source.parse(names), settings.missing, problems)
    parts, masks = rows.select(numbers.values), rows.select(numbers.observed)
    scaling = None if settings.like is None else settings.like.scaling
    if settings.like is None and settings.standardize:
        scaling = fit_scaling(parts.train, masks.train, numbers.names, problems)
    problems.raise_any()
    x = _rescale(parts, masks, scaling)
    check_range(torch.cat(x), names, problems)
    if scaling is None:
        check_resolution(x.train, parts.train.where(masks.train, torch.nan), names, problems)
    problems.raise_any()
    return x, masks, scaling, None


def _rescale(parts: Split, masks: Split, scaling: Scaling | None) -> Split:
    if scaling is not None:
        parts = parts.map(lambda part: (part - scaling.loc) / scaling.scale)
    dtype = torch.get_default_dtype()
    return Split(*(p.where(m, 0.0).to(dtype) for p, m in zip(parts, masks, strict=True)))


def _read_mixed(
    source: TableSource,
    names: list[str],
    rows: Split,
    settings: _Settings,
    problems: Problems,
) -> _Values:
    """Returns numbers and codes, with the kinds of the columns."""
    schema, numbers = _encode_columns(source, names, settings, problems)
    x = numbers.to(torch.get_default_dtype())
    check_range(x, names, problems)
    check_kinds(x, numbers, schema, problems)
    if settings.like is None:
        check_resolution(x, numbers, schema.names, problems)
    problems.raise_any()
    return rows.select(x.nan_to_num()), rows.select(~x.isnan()), None, schema


def _encode_columns(
    source: TableSource, names: list[str], settings: _Settings, problems: Problems
) -> tuple[Schema, Tensor]:
    """Returns the kinds of columns, and their numbers in double precision with NaN for gaps."""
    own = None if settings.like is None else settings.like.schema
    declared = {match_name(n, source.names): kind for n, kind in settings.declared.items()}
    unknown = [name for name in declared if name not in names]
    if unknown:
        raise ValueError(
            f"Expected the kinds of columns among {list_names(names)}, got {list_names(unknown)}"
        )
    if own is not None:
        _check_declared(declared, own)
        declared = {c.name: (c.kind, c.levels) for c in own.columns}
    words = {name for name, (kind, levels) in declared.items() if _has_words(kind, levels)}
    cells = source.parse(names, words)
    schema = fit_schema(cells, declared, settings.missing, problems, own)
    problems.raise_any()
    return schema, schema.encode({name: c.values for name, c in cells.items()})


def encode_frame(
    frame: Any, kinds: Mapping[str, Any], like: Preparation | None = None
) -> tuple[Schema, Tensor]:
    """Returns a pandas table as numbers, for :mod:`pyro_vae.sklearn`.

    Arguments:
        frame: The table, all of whose columns are used, or those of ``like``.
        kinds: The names of columns by kind, as arguments of :func:`table`.
        like: The preparation of the training data, or ``None``.

    Returns:
        The kinds of the columns, and rows in double precision with NaN for missing values.

    Raises:
        ValueError: As of :func:`table`.
    """
    settings = _check_settings("nan", True, like, like is None or None, kinds)
    source = load_table(frame)
    names = select_columns(source.names, like=like and like.columns, source=source.place)
    problems = _check_names(source, names, [], must_keep=like is not None)
    return _encode_columns(source, names, settings, problems)


def _check_declared(declared: Mapping[str, tuple[str, tuple[str, ...]]], own: Schema) -> None:
    """Raises a ``ValueError`` for a kind that contradicts the training data."""
    kinds = {column.name: column.kind for column in own.columns}
    other = [name for name, (kind, _) in declared.items() if kinds[name] != kind]
    if other:
        raise ValueError(
            f"Expected the kinds of the training data, {kinds[other[0]]} for {other[0]!r}, got "
            f"{declared[other[0]][0]}"
        )


def _has_words(kind: str, levels: Sequence[str]) -> bool:
    """Whether the cells of a declared kind are words even if they look like numbers."""
    if not levels:
        return kind in ("binary", "categorical")
    return kind in CODED and not all(NUMBER.fullmatch(level) for level in levels)
