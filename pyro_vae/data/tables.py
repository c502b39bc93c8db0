"""Tables in csv and parquet files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.config import format_override
from pyro_vae.data.base import Data, Split, check_data_file, split_row_numbers
from pyro_vae.data.covariates import Covariates, list_names, parse_kinds
from pyro_vae.data.preparation import Preparation, Scaling
from pyro_vae.data.table_files import (
    check_header,
    check_label,
    check_separator,
    leave_out,
    number_labels,
    read_csv,
    read_table,
)
from pyro_vae.validation import check_choice, check_flag, describe_value

__all__ = ["check_drop", "choose_encoding", "choose_kinds", "load_preparation", "table"]

_MISSING = ("raise", "nan")

_MAX_SHOWN = 8

_EXACT = 2**53
"""Double precision represents every integer up to this one."""


def table(
    path: str | Path | None = None,
    *,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    label: str | None = None,
    covariates: Sequence[str] | Mapping[str, str] | str | None = None,
    size_factor: str | None = None,
    like: Preparation | Path | str | None = None,
    standardize: bool = True,
    missing: str = "raise",
    separator: str = ",",
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Data:
    r"""Returns the rows of a table, one datum of shape ``(columns,)`` each.

    With ``standardize`` each column is :math:`(x - m) / s`, with the mean and standard deviation
    of its observed training values; ``Data.scaling`` undoes it. The log evidence of
    standardized values exceeds that of the original values by
    :math:`\sum_j \log s_j` nats per datum.

    Arguments:
        path: A csv file, whose first line names the columns, or a parquet file (needs the extra
            ``parquet``). In a csv file, the quote before a name or a label that a spreadsheet
            would calculate, as in ``'=1+1``, is removed.
        columns: The names of the columns to use, which must be numeric; by default all but the
            label, covariates and size factor.
        drop: The names of columns to leave out instead.
        label: The name of a column that colours figures: integers, or any values, which are then
            numbered in sorted order and listed in ``Data.label_names``.
        covariates: The names of columns that describe the rows: words, booleans and up to 10
            distinct integers are categories, other numbers are standardized. A mapping from names
            to ``"categorical"`` or ``"continuous"`` sets the kinds.
        size_factor: The name of a column of size factors, the last covariate, for a likelihood with
            ``size_factor="covariate"``.
        like: The preparation of another table, its ``Data.preparation`` or the folder of a run:
            columns, their order, scaling and covariates are those of that table, and
            ``standardize`` is ignored.
        standardize: Whether columns are standardized.
        missing: ``"raise"``: missing values are an error; ``"nan"``: they become zeros after
            the standardization, and ``Data.mask`` is True where a value was observed.
        separator: The separator between the values of a csv file.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise; both 0: no split, all are training rows.
        seed: The seed of the split.

    Raises:
        ValueError: If the file is missing, damaged or not a table, a column is unknown, unnamed,
            duplicated, categorical, constant or has integers above 2**53, the first line has
            numbers, values are missing or infinite, or an argument is out of range.
    """
    if isinstance(missing, float) and missing != missing:
        # Hydra reads nan on a command line as a number.
        missing = "nan"
    missing = check_choice("missing", missing, _MISSING)
    standardize = check_flag("standardize", standardize)
    like, label, separator = load_preparation(like), check_label(label), check_separator(separator)
    file = check_data_file(path, (".csv", ".parquet"))
    frame = read_table(file, separator)
    kinds = choose_kinds(covariates, size_factor, like)
    reserved = list(dict.fromkeys([*([label] if label is not None else []), *kinds]))
    frame = frame.loc[:, ~frame.columns.isin(check_drop(list(frame.columns), columns, drop))]
    names = _choose_names(file, frame, _match_columns(file, frame, columns, like), label, reserved)
    values = _to_tensor(frame, names)
    _check_integers(file, frame, names, separator)
    observed = _check_missing(values, names, missing)
    rows = split_row_numbers(len(values), valid=valid, test=test, seed=seed)
    parts, masks = rows.select(values), rows.select(observed)
    scaling = None if like is None else like.scaling
    if like is None and standardize:
        scaling = _fit_scaling(parts.train, masks.train, names)
    x = _rescale(parts, masks, scaling)
    _check_range(x, names)
    encoding = choose_encoding(frame, rows, kinds, like)
    labels, label_names = number_labels(frame, label, quoted=file.suffix.lower() != ".parquet")
    return Data(
        name=file.stem,
        binarize="none",
        x=x,
        labels=None if labels is None else rows.select(labels),
        source=f"{file.name}, {len(names)} columns" + (", standardized" if scaling else ""),
        mask=masks if missing == "nan" else None,
        scaling=scaling,
        columns=tuple(names),
        label_names=label_names,
        row_numbers=rows,
        covariates=None if encoding is None else rows.select(encoding.encode(frame)),
        covariate_columns=encoding,
    )


def load_preparation(like: Any) -> Preparation | None:
    """Returns the preparation of another data set, given as such or as the folder of a run."""
    if isinstance(like, (str, Path)):
        return Preparation.load(like)
    if isinstance(like, (Preparation, type(None))):
        return like
    raise ValueError(
        f"Expected like to be a Preparation or the folder of a run, got {describe_value(like)}"
    )


def choose_kinds(
    covariates: Any, size_factor: str | None, like: Preparation | None
) -> dict[str, str | None]:
    """Returns the kind of each covariate, which are those of another data set if it is given."""
    kinds = parse_kinds(covariates, size_factor)
    if like is None:
        return kinds
    own = {} if like.covariates is None else {c.name: c.kind for c in like.covariates.columns}
    if kinds and set(kinds) != set(own):
        raise ValueError(
            f"Expected covariates to be those of the training data, {list(own)}, got {list(kinds)}"
        )
    return dict(own)


def choose_encoding(
    frame: Any, rows: Split, kinds: Mapping[str, str | None], like: Preparation | None
) -> Covariates | None:
    """Returns the encoding of covariates, from the training rows or another data set."""
    if like is not None and like.covariates is not None:
        return like.covariates
    return Covariates.fit(frame.iloc[rows.train.numpy()], kinds) if kinds else None


def check_drop(available: Sequence[str], columns: Sequence[str] | None, drop: Any) -> set[str]:
    """Returns the names of columns to leave out.

    Raises:
        ValueError: If one is unknown, or the columns to use are listed too.
    """
    if drop is None:
        return set()
    if isinstance(drop, str) or not isinstance(drop, Sequence):
        raise ValueError(f"Expected drop to be a list of names, got {describe_value(drop)}")
    if columns is not None:
        raise ValueError("Expected either columns or drop, got both")
    names = set(map(str, drop))
    unknown = sorted(names - set(available))
    if unknown:
        raise ValueError(
            f"Expected drop to be some of {list_names(available)}, got {list_names(unknown)}"
        )
    return names


def _choose_names(
    file: Path, frame: Any, wanted: Any, label: str | None, reserved: list[str]
) -> list[str]:
    names = _choose_columns(list(frame.columns), wanted, label, reserved)
    if wanted is None:
        check_header(file, names, list(frame.columns))
    _check_once(list(frame.columns), names, label)
    return names


def _rescale(parts: Split, masks: Split, scaling: Scaling | None) -> Split:
    if scaling is not None:
        parts = parts.map(lambda part: (part - scaling.loc) / scaling.scale)
    dtype = torch.get_default_dtype()
    return Split(*(p.where(m, 0.0).to(dtype) for p, m in zip(parts, masks, strict=True)))


def _match_columns(
    file: Path, frame: Any, columns: Sequence[str] | None, like: Preparation | None
) -> Sequence[str] | None:
    """Returns the columns of another table, or raises a ``ValueError`` if one is missing here."""
    if like is None or like.columns is None:
        return columns
    wanted, available = list(like.columns), list(frame.columns)
    missing = [name for name in wanted if name not in available]
    if missing:
        raise ValueError(
            f"Expected '{file}' to have the columns of the training data, {list_names(wanted)}, "
            f"got {list_names(available)}, without {list_names(missing)}"
        )
    if columns is not None and sorted(map(str, columns)) != sorted(wanted):
        raise ValueError(
            f"Expected columns to be those of the training data, {list_names(wanted)}, got "
            f"{list_names(list(map(str, columns)))}"
        )
    return wanted


def _choose_columns(
    available: list[str], columns: Sequence[str] | None, label: str | None, reserved: list[str]
) -> list[str]:
    """Returns the names of the columns to use, or raises a ``ValueError`` for unknown ones."""
    if label is not None and label not in available:
        raise ValueError(f"Expected label to be one of {list_names(available)}, got {label!r}")
    absent = [name for name in reserved if name not in available]
    if absent:
        raise ValueError(
            f"Expected covariates among the columns {list_names(available)}, got "
            f"{list_names(absent)}"
        )
    if columns is None:
        names = [name for name in available if name not in reserved]
    elif isinstance(columns, str) or not isinstance(columns, Sequence):
        raise ValueError(f"Expected columns to be a list of names, got {describe_value(columns)}")
    else:
        names = [str(name) for name in columns]
    both = [name for name in names if name in reserved and name != label]
    if both:
        raise ValueError(
            f"Expected columns without the covariates and the size factor, got "
            f"{list_names(both)} in both"
        )
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        raise ValueError(
            f"Expected columns to be some of {list_names(available)}, got "
            f"{list_names(unknown) or 'none'}"
        )
    return names


def _check_once(available: list[str], names: list[str], label: str | None) -> None:
    """Raises a ``ValueError`` for a column that is used and duplicated."""
    twice = {name for name in names if names.count(name) + available.count(name) > 2}
    twice |= {label} if label is not None and available.count(label) > 1 else set()
    if twice:
        raise ValueError(
            f"Expected each column once, got duplicates of {list_names(sorted(twice))}: rename "
            f"them in the file, or {leave_out(sorted(twice))}"
        )


def _to_tensor(frame: Any, names: list[str]) -> Tensor:
    """Returns columns as a tensor, or raises a ``ValueError`` naming those without numbers."""
    from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

    def numeric(dtype: Any) -> bool:
        return (is_numeric_dtype(dtype) or is_bool_dtype(dtype)) and not is_complex_dtype(dtype)

    # A column without any value has no type; _check_missing reports its missing values.
    text = [n for n in names if not numeric(frame[n].dtype) and frame[n].notna().any()]
    if text:
        shown = [f"{n!r} (as {frame[n].dropna().iloc[0]!s:.20})" for n in text[:_MAX_SHOWN]]
        more = f" and {len(text) - len(shown):,} others" if len(text) > len(shown) else ""
        label = format_override("data.label", text[0])
        covariate = format_override("data.covariates", [text[0]])
        raise ValueError(
            f"Expected columns of numbers, got categorical values in {', '.join(shown)}{more}: "
            f"{leave_out(text)}, use one as the label that colours figures ({label}) or as a "
            f"covariate ({covariate}), or convert them to numbers first"
        )
    return torch.from_numpy(
        frame[names].astype("float64").to_numpy(copy=True, na_value=float("nan"))
    )


def _check_integers(file: Path, frame: Any, names: list[str], separator: str) -> None:
    """Raises a ``ValueError`` for integers that double precision would change."""
    large = [n for n in names if ((frame[n] > _EXACT) | (frame[n] < -_EXACT)).any()]
    bad = [name for name in large if _has_integers(file, frame, name, separator)]
    if bad:
        raise ValueError(
            f"Expected numbers that are exact in double precision, got integers above 2**53 in "
            f"columns {list_names(bad)}, which may be identifiers: {leave_out(bad)}, or write them "
            f"with a decimal point to accept rounding"
        )


def _has_integers(file: Path, frame: Any, name: str, separator: str) -> bool:
    """Whether a column holds integers, also where a missing value makes pandas read reals."""
    from pandas.api.types import is_integer_dtype

    if is_integer_dtype(frame[name].dtype) or file.suffix.lower() == ".parquet":
        return is_integer_dtype(frame[name].dtype)
    index = list(frame.columns).index(name)
    column = read_csv(file, separator, usecols=[index], dtype=str).iloc[:, 0]
    large = (frame[name].abs() > _EXACT).to_numpy()
    return bool(column[large].str.fullmatch(r"\s*[-+]?\d+\s*").any())


def _check_range(x: Split, names: list[str]) -> None:
    """Raises a ``ValueError`` for values that overflow in the precision of the data."""
    finite = torch.stack([part.isfinite().all(0) for part in x]).all(0).tolist()
    bad = [name for name, ok in zip(names, finite, strict=True) if not ok]
    if bad:
        raise ValueError(
            f"Expected values within the range of {x.train.dtype}, got larger ones in columns "
            f"{list_names(bad)}: {leave_out(bad)}, or rescale them"
        )


def _check_missing(values: Tensor, names: list[str], missing: str) -> Tensor:
    """Returns the mask of observed values; refuses infinite and disallowed missing values."""
    if bool(values.isinf().any()):
        bad = [n for n, column in zip(names, values.unbind(1), strict=True) if column.isinf().any()]
        raise ValueError(f"Expected finite values, got infinite ones in columns {list_names(bad)}")
    observed = ~values.isnan()
    if missing == "raise" and not bool(observed.all()):
        rows = int((~observed).any(1).sum())
        bad = [n for n, mask in zip(names, observed.unbind(1), strict=True) if not mask.all()]
        raise ValueError(
            f"Expected no missing values, got {int((~observed).sum())} in {rows} of {len(values)} "
            f"rows, in columns {list_names(bad)}: missing='nan' (data.missing=nan) leaves them "
            f"out of the likelihood"
        )
    return observed


def _fit_scaling(train: Tensor, observed: Tensor, names: list[str]) -> Scaling:
    """Returns mean and standard deviation of the observed values of each column."""
    scaling = Scaling.fit(train, observed)
    scales = dict(zip(names, scaling.scale.tolist(), strict=True))
    huge = [name for name, scale in scales.items() if not math.isfinite(scale)]
    if huge:
        raise ValueError(
            f"Expected values whose squares are finite, got larger ones in columns "
            f"{list_names(huge)}: {leave_out(huge)}, or rescale them"
        )
    constant = [name for name, scale in scales.items() if not scale]
    if constant:
        raise ValueError(
            f"Expected columns that vary over the training rows, got constant or empty "
            f"{list_names(constant)}: {leave_out(constant)}"
        )
    return scaling
