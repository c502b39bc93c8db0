"""Tables in csv and parquet files."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.config import format_override
from pyro_vae.data.base import Data, Split, check_data_file, split_row_numbers
from pyro_vae.data.covariates import Covariates, list_names, parse_kinds
from pyro_vae.data.preparation import Preparation, Scaling
from pyro_vae.files.csv_cells import NUMBER, restore
from pyro_vae.validation import check_choice, check_flag, describe_value

__all__ = ["table"]

_MISSING = ("raise", "nan")

_UNNAMED = re.compile(r"Unnamed: \d+")
"""The name that pandas gives to a column without one."""

_EXACT = 2**53
"""Double precision represents every integer up to this one."""


def table(
    path: str | Path | None = None,
    *,
    columns: Sequence[str] | None = None,
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
    if not isinstance(separator, str) or not separator:
        raise ValueError(f"Expected separator to be a string, got {describe_value(separator)}")
    like = _load_preparation(like)
    file = check_data_file(path, (".csv", ".parquet"))
    frame = _read_table(file, separator)
    kinds = _choose_kinds(covariates, size_factor, like)
    reserved = list(dict.fromkeys([*([label] if label is not None else []), *kinds]))
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
    encoding = _choose_encoding(frame, rows, kinds, like)
    labels, label_names = _encode_labels(frame, label, file)
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


def _load_preparation(like: Any) -> Preparation | None:
    if isinstance(like, (str, Path)):
        return Preparation.load(like)
    if isinstance(like, (Preparation, type(None))):
        return like
    raise ValueError(
        f"Expected like to be a Preparation or the folder of a run, got {describe_value(like)}"
    )


def _choose_kinds(
    covariates: Any, size_factor: str | None, like: Preparation | None
) -> dict[str, str | None]:
    kinds = parse_kinds(covariates, size_factor)
    if like is None:
        return kinds
    own = {} if like.covariates is None else {c.name: c.kind for c in like.covariates.columns}
    if kinds and set(kinds) != set(own):
        raise ValueError(
            f"Expected covariates to be those of the training data, {list(own)}, got {list(kinds)}"
        )
    return dict(own)


def _choose_encoding(
    frame: Any, rows: Split, kinds: Mapping[str, str | None], like: Preparation | None
) -> Covariates | None:
    if like is not None and like.covariates is not None:
        return like.covariates
    return Covariates.fit(frame.iloc[rows.train.numpy()], kinds) if kinds else None


def _choose_names(
    file: Path, frame: Any, wanted: Any, label: str | None, reserved: list[str]
) -> list[str]:
    names = _choose_columns(list(frame.columns), wanted, label, reserved)
    if wanted is None:
        _check_header(file, names, list(frame.columns))
    _check_once(list(frame.columns), names, label)
    return names


def _rescale(parts: Split, masks: Split, scaling: Scaling | None) -> Split:
    if scaling is not None:
        parts = parts.map(lambda part: (part - scaling.loc) / scaling.scale)
    dtype = torch.get_default_dtype()
    return Split(*(p.where(m, 0.0).to(dtype) for p, m in zip(parts, masks, strict=True)))


def _read_table(file: Path, separator: str) -> Any:
    """Reads the table in a file, or raises a ``ValueError`` with the reason of a failure."""
    import pandas

    try:
        if file.suffix.lower() == ".parquet":
            frame = pandas.read_parquet(file)
        else:
            with warnings.catch_warnings():
                # Otherwise pandas drops values of a row with more values than names.
                warnings.simplefilter("error", pandas.errors.ParserWarning)
                frame = _read_csv(file, separator)
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


def _read_csv(file: Path, separator: str, **options: Any) -> Any:
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
    line = _read_csv(file, separator, **options).iloc[0]
    names = [restore(str(name).strip()) for name in line]
    if len(names) != len(pandas_names):
        raise ValueError(f"{len(names)} names for {len(pandas_names)} columns")
    return [name or str(other) for name, other in zip(names, pandas_names, strict=True)]


def _check_header(file: Path, names: list[str], all_names: list[str]) -> None:
    """Raises a ``ValueError`` for a pandas index, and for a first line of numbers."""
    unnamed = [name for name in names if _UNNAMED.fullmatch(name)]
    if unnamed:
        others = format_override("data.columns", [n for n in names if n not in unnamed] or ["NAME"])
        raise ValueError(
            f"Expected a name for each column of '{file}', got {unnamed[0]!r}, which may be an "
            f"index: name the columns to use ({others}), or write the file without "
            f"an index (to_csv(..., index=False))"
        )
    numeric = [name for name in names if NUMBER.fullmatch(name)]
    counted = all_names == [str(index) for index in range(len(all_names))]
    plain = all(name.isdigit() for name in numeric)
    if numeric and not counted and not (plain and len(numeric) < len(all_names)):
        raise ValueError(
            f"Expected the first line of '{file}' to name the columns, got the number "
            f"{numeric[0]}: write a line of names above it, or list the columns if these are names "
            f"({format_override('data.columns', names)})"
        )


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
            f"Expected '{file}' to have the columns {wanted} of the training data, got "
            f"{available}, without {missing}"
        )
    if columns is not None and sorted(map(str, columns)) != sorted(wanted):
        raise ValueError(
            f"Expected columns to be those of the training data, {wanted}, got {list(columns)}"
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
        raise ValueError(f"Expected columns to be some of {available}, got {unknown or names}")
    return names


def _check_once(available: list[str], names: list[str], label: str | None) -> None:
    """Raises a ``ValueError`` for a column that is used and duplicated."""
    twice = {name for name in names if names.count(name) + available.count(name) > 2}
    twice |= {label} if label is not None and available.count(label) > 1 else set()
    if twice:
        others = format_override("data.columns", [n for n in names if n not in twice] or ["NAME"])
        raise ValueError(
            f"Expected each column once, got duplicates of {sorted(twice)}: rename them in the "
            f"file, or use other columns ({others})"
        )


def _to_tensor(frame: Any, names: list[str]) -> Tensor:
    """Returns columns as a tensor, or raises a ``ValueError`` naming those without numbers."""
    from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

    def numeric(dtype: Any) -> bool:
        return (is_numeric_dtype(dtype) or is_bool_dtype(dtype)) and not is_complex_dtype(dtype)

    # A column without any value has no type; _check_missing reports its missing values.
    text = [n for n in names if not numeric(frame[n].dtype) and frame[n].notna().any()]
    if text:
        shown = [f"{n!r} (as {frame[n].dropna().iloc[0]!s:.20})" for n in text]
        others = format_override("data.columns", [n for n in names if n not in text] or ["NAME"])
        label = format_override("data.label", text[0])
        covariate = format_override("data.covariates", [text[0]])
        raise ValueError(
            f"Expected columns of numbers, got categorical values in {', '.join(shown)}: use other "
            f"columns ({others}), use one as the label that colours figures ({label}) or as a "
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
        others = format_override("data.columns", [n for n in names if n not in bad] or ["NAME"])
        raise ValueError(
            f"Expected numbers that are exact in double precision, got integers above 2**53 in "
            f"columns {bad}, which may be identifiers: leave them out ({others}), or write "
            f"them with a decimal point to accept rounding"
        )


def _has_integers(file: Path, frame: Any, name: str, separator: str) -> bool:
    """Whether a column holds integers, also where a missing value makes pandas read reals."""
    from pandas.api.types import is_integer_dtype

    if is_integer_dtype(frame[name].dtype) or file.suffix.lower() == ".parquet":
        return is_integer_dtype(frame[name].dtype)
    index = list(frame.columns).index(name)
    column = _read_csv(file, separator, usecols=[index], dtype=str).iloc[:, 0]
    large = (frame[name].abs() > _EXACT).to_numpy()
    return bool(column[large].str.fullmatch(r"\s*[-+]?\d+\s*").any())


def _check_range(x: Split, names: list[str]) -> None:
    """Raises a ``ValueError`` for values that overflow in the precision of the data."""
    finite = torch.stack([part.isfinite().all(0) for part in x]).all(0).tolist()
    bad = [name for name, ok in zip(names, finite, strict=True) if not ok]
    if bad:
        raise ValueError(
            f"Expected values within the range of {x.train.dtype}, got larger ones in columns "
            f"{bad}: leave them out by columns, or rescale them"
        )


def _check_missing(values: Tensor, names: list[str], missing: str) -> Tensor:
    """Returns the mask of observed values; refuses infinite and disallowed missing values."""
    if bool(values.isinf().any()):
        bad = [n for n, column in zip(names, values.unbind(1), strict=True) if column.isinf().any()]
        raise ValueError(f"Expected finite values, got infinite ones in columns {bad}")
    observed = ~values.isnan()
    if missing == "raise" and not bool(observed.all()):
        rows = int((~observed).any(1).sum())
        bad = [n for n, mask in zip(names, observed.unbind(1), strict=True) if not mask.all()]
        raise ValueError(
            f"Expected no missing values, got {int((~observed).sum())} in {rows} of {len(values)} "
            f"rows, in columns {bad}: missing='nan' (data.missing=nan) leaves them out of the "
            f"likelihood"
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
            f"{huge}: leave them out by columns, or rescale them"
        )
    constant = [name for name, scale in scales.items() if not scale]
    if constant:
        raise ValueError(
            f"Expected columns that vary over the training rows, got constant or empty "
            f"{constant}: leave them out by columns"
        )
    return scaling


def _encode_labels(
    frame: Any, name: str | None, file: Path
) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Returns integer labels unchanged, and other values as ranks with their names.

    Arguments:
        frame: The table.
        name: The name of the column, or ``None``.
        file: The file; in a csv file formulas are preceded by a quote.
    """
    import pandas

    if name is None:
        return None, None
    column, quoted = frame[name], file.suffix.lower() != ".parquet"
    if column.isna().any():
        raise ValueError(f"Expected label {name!r} in each row, got {column.isna().sum()} missing")
    if pandas.api.types.is_integer_dtype(column.dtype) and column.max() < 2**63:
        return torch.from_numpy(column.to_numpy(dtype="int64", copy=True)), None
    if quoted and not pandas.api.types.is_numeric_dtype(column.dtype):
        column = column.map(lambda value: restore(value) if isinstance(value, str) else value)
    labels, values = pandas.factorize(column, sort=True)
    return torch.from_numpy(labels.astype("int64")), tuple(map(str, values))
