"""Tables of counts, such as cells by genes, dense or sparse."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.data.base import Data, split_row_numbers
from pyro_vae.data.matrices import Matrix, is_scipy, read_matrix, read_row_table, to_tensor
from pyro_vae.data.preparation import Preparation
from pyro_vae.data.table_files import (
    check_header,
    check_label,
    check_read_options,
    number_labels,
)
from pyro_vae.data.table_roles import choose_encoding, choose_kinds, load_preparation
from pyro_vae.tables.cells import leave_out
from pyro_vae.tables.selection import check_once, match_name, select_columns
from pyro_vae.tables.text_file import ReadOptions
from pyro_vae.validation import check_flag, describe_value, list_names

__all__ = ["counts"]


def counts(
    path: Any = None,
    *,
    layer: str | None = None,
    key: str | None = None,
    obs: Any = None,
    transpose: bool = False,
    columns: Sequence[str] | None = None,
    drop: Sequence[str] | None = None,
    label: str | None = None,
    covariates: Sequence[str] | Mapping[str, str] | str | None = None,
    size_factor: str | None = None,
    like: Preparation | Path | str | None = None,
    separator: str | None = None,
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Data:
    """Returns the rows of a matrix of counts, such as cells by genes, one datum of shape ``(G,)``.

    A sparse matrix stays sparse (``torch.sparse_csr``): each batch is made dense when it is used.

    Arguments:
        path: A file: h5ad (needs the extra ``anndata``), Matrix Market (mtx, mtx.gz), npz (a
            matrix of SciPy, or dense arrays), csv or parquet. Or an AnnData, a pandas table, a
            SciPy matrix, an array or a tensor.
        layer: The layer of an AnnData with the counts; ``None`` for its ``X``.
        key: The name of the matrix in an npz file of arrays; needed only if there are several.
        obs: A csv or parquet file, a pandas table or a mapping, with one line per row, for a
            matrix without names. An AnnData has its own, and so has an npz file of arrays, namely
            those with one value per row. In csv and parquet files, columns of the table itself are
            used.
        transpose: Whether the matrix is genes by cells, as in the Matrix Market files of 10x.
        columns: The names of the columns to use; by default all but the label, covariates and
            size factor.
        drop: The names of columns to leave out instead.
        label: The name of a column of ``obs`` that colours figures, as in :func:`table`.
        covariates: The names of columns of ``obs`` that describe the rows, as in :func:`table`.
        size_factor: The name of a column of size factors, for a likelihood with
            ``size_factor="covariate"``. The row sum needs no column: ``size_factor="row_sum"``.
        like: The preparation of other counts, its ``Data.preparation`` or the folder of a run:
            columns, their order and covariates are those of that data set.
        separator: The separator of csv files; ``None`` to detect it.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise; both 0: no split, all are training rows.
        seed: The seed of the split.

    Raises:
        ValueError: If a file is missing or damaged, values are not counts, a column is unknown or
            duplicated, or an argument is out of range.

    Example:
        >>> import scipy.sparse
        >>> x = scipy.sparse.csr_matrix([[0, 3], [1, 0], [0, 0], [2, 5]])
        >>> cells = counts(x, obs={"batch": ["a", "b", "a", "b"]}, covariates="batch", valid=1,
        ...                test=1)
        >>> cells.x.train.layout, cells.train.batch(slice(2)).x.shape
        (torch.sparse_csr, torch.Size([2, 2]))
    """
    transpose, like = check_flag("transpose", transpose), load_preparation(like)
    label, options = check_label(label), check_read_options(separator)
    matrix = read_matrix(path, layer=layer, key=key, options=options, transpose=transpose)
    matrix = _add_row_table(matrix, obs, options)
    kinds = choose_kinds(covariates, size_factor, like)
    if matrix.rows is not None:
        available = list(matrix.rows.columns)
        label = None if label is None else match_name(label, available)
        kinds = {match_name(name, available): kind for name, kind in kinds.items()}
    reserved = list(dict.fromkeys([*([label] if label is not None else []), *kinds]))
    _check_reserved(matrix, reserved)
    matrix = _select_columns(matrix, columns, drop, reserved, like)
    values = _check_counts(matrix)
    rows = split_row_numbers(values.shape[0], valid=valid, test=test, seed=seed)
    encoding = choose_encoding(matrix.rows, rows, kinds, like)
    labels, label_names = (None, None) if label is None else number_labels(matrix.rows[label])
    kind = "sparse" if is_scipy(values) else "dense"
    return Data(
        name=matrix.name,
        binarize="none",
        x=rows.map(lambda part: to_tensor(values[part.numpy()])),
        labels=None if labels is None else rows.select(labels),
        source=f"counts, {values.shape[0]:,} rows, {values.shape[1]:,} columns, {kind}",
        columns=matrix.columns,
        label_names=label_names,
        row_numbers=rows,
        covariates=None if encoding is None else rows.select(encoding.encode(matrix.rows)),
        covariate_columns=encoding,
    )


def _add_row_table(matrix: Matrix, obs: Any, options: ReadOptions) -> Matrix:
    """Returns the matrix with the table of its rows."""
    shape = matrix.values.shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"Expected a matrix of counts, rows by columns, got shape {tuple(shape)}")
    if matrix.is_table:
        # Columns of the table itself describe its rows.
        matrix = matrix._replace(rows=matrix.values, columns=tuple(matrix.values.columns))
    if obs is None:
        return matrix
    if matrix.rows is not None:
        raise ValueError(
            f"Expected obs only for a matrix without own columns, got {describe_value(obs)} beside "
            f"{list_names(list(matrix.rows.columns))}"
        )
    table = read_row_table(obs, options)
    if len(table) != shape[0]:
        hint = ": transpose=true (data.transpose=true) swaps rows and columns"
        raise ValueError(
            f"Expected obs with one line for each of {shape[0]:,} rows, got {len(table):,}"
            f"{hint if len(table) == shape[1] else ''}"
        )
    return matrix._replace(rows=table)


def _check_reserved(matrix: Matrix, reserved: list[str]) -> None:
    available = [] if matrix.rows is None else list(matrix.rows.columns)
    absent = [name for name in reserved if name not in available]
    if absent and matrix.rows is None:
        raise ValueError(
            f"Expected obs, a table of the rows with {list_names(absent)}, got none "
            f"(data.obs=cells.csv)"
        )
    if absent:
        raise ValueError(
            f"Expected label, covariates and size factor among {list_names(available)}, got "
            f"{list_names(absent)}"
        )


def _select_columns(
    matrix: Matrix,
    columns: Sequence[str] | None,
    drop: Sequence[str] | None,
    reserved: list[str],
    like: Preparation | None,
) -> Matrix:
    """Returns the matrix with the chosen columns only, as numbers."""
    if matrix.columns is None:
        if columns is not None or drop is not None:
            raise ValueError("Expected columns and drop only for data with names, got a matrix")
        width = matrix.values.shape[1]
        if like is not None and (width,) != like.event_shape:
            raise ValueError(f"Expected {like.event_shape[0]:,} columns, as in like, got {width:,}")
        return matrix
    names = list(matrix.columns)
    wanted = _choose_names(matrix, names, columns, drop, reserved, like)
    if matrix.is_table:
        return matrix._replace(values=_to_numbers(matrix.values[wanted]), columns=tuple(wanted))
    if tuple(wanted) == matrix.columns:
        return matrix
    number = {name: i for i, name in enumerate(matrix.columns)}
    index = np.array([number[name] for name in wanted])
    values = _compress(matrix.values) if is_scipy(matrix.values) else matrix.values
    return matrix._replace(values=values[:, index], columns=tuple(wanted))


def _choose_names(
    matrix: Matrix,
    names: list[str],
    columns: Sequence[str] | None,
    drop: Sequence[str] | None,
    reserved: list[str],
    like: Preparation | None,
) -> list[str]:
    """Returns the names of the columns to use, each once."""
    wanted = select_columns(
        names,
        columns=columns,
        drop=drop,
        left_out=reserved if matrix.is_table else (),
        like=None if like is None else like.columns,
        source="the matrix",
    )
    if columns is None and like is None and matrix.source is not None:
        wanted = [name for name in wanted if name not in matrix.source.index_names]
        check_header(matrix.source, wanted)
    if not wanted:
        raise ValueError(f"Expected columns of counts, got none of {list_names(names)}")
    check_once(names, wanted)
    return wanted


def _to_numbers(frame: Any) -> Any:
    from pandas.api.types import is_complex_dtype, is_numeric_dtype

    def numeric(column: Any) -> bool:
        return is_numeric_dtype(column) and not is_complex_dtype(column)

    text = [name for name in frame.columns if not numeric(frame[name])]
    if text:
        first = f"{text[0]!r} (as {frame[text[0]].iloc[0]!s:.20})"
        raise ValueError(
            f"Expected columns of counts, got other values in {list_names(text)}, {first}: "
            f"{leave_out(text)}, or use one as the label (data.label) or as a covariate "
            f"(data.covariates)"
        )
    return frame.to_numpy(dtype=np.float64, na_value=np.nan)


def _check_counts(matrix: Matrix) -> Any:
    """Returns the values with compressed rows, or raises a ``ValueError`` for other numbers."""
    values = matrix.values
    if values.dtype.kind not in "buif":
        raise ValueError(f"Expected a matrix of numbers, got dtype {values.dtype}")
    if is_scipy(values):
        values = _compress(values)
    numbers = values.data if is_scipy(values) else values
    limit = 2 / torch.finfo(torch.get_default_dtype()).eps
    valid = (numbers >= 0) & (numbers == np.floor(numbers)) & np.isfinite(numbers)
    exact = valid & (numbers.astype(np.float64) <= limit)
    if exact.all():
        return values
    first = np.unravel_index(int(np.argmin(exact)), exact.shape)
    place = _describe_place(matrix, values, first)
    if valid[first]:
        raise ValueError(
            f"Expected counts up to {limit:.0f}, which are exact in {torch.get_default_dtype()}, "
            f"got {numbers[first]:.0f} {place}"
        )
    raise ValueError(
        f"Expected counts (non-negative integers), got {numbers[first]:g} {place}: normalized "
        f"values and logarithms are not counts; the raw ones may be another layer (data.layer)"
    )


def _compress(values: Any) -> Any:
    """Returns a SciPy matrix with compressed rows and one value for each entry."""
    if values.format != "csr" or not values.has_canonical_format:
        # The sum of several small integers for one entry would wrap around.
        values = values.astype(np.float64).tocsr()
        values.sum_duplicates()
    return values


def _describe_place(matrix: Matrix, values: Any, first: Any) -> str:
    if is_scipy(values):
        row = np.searchsorted(values.indptr, first[0], side="right") - 1
        column = values.indices[first[0]]
    else:
        row, column = first
    name = column if matrix.columns is None else repr(matrix.columns[column])
    return f"in row {row}, column {name}"
