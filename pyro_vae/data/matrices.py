"""Matrices of counts in files and in memory, with the names of columns and tables of rows."""

import gzip
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.arrays import read_arrays
from pyro_vae.data.base import check_data_file
from pyro_vae.data.sparse_rows import build_sparse
from pyro_vae.data.table_files import SUFFIXES, TableSource, load_table
from pyro_vae.tables.text_file import ReadOptions, is_text_file
from pyro_vae.validation import describe_value, list_names

__all__ = ["Matrix", "is_scipy", "read_matrix", "read_row_table", "to_tensor"]

_SUFFIXES = (".h5ad", ".mtx", ".npz", *SUFFIXES)
_SHOWN = (".h5ad", ".mtx", ".gz", ".npz", ".csv", ".parquet")

_PARTS_OF_SPARSE = {"format", "shape", "data"}
"""Arrays that every file of ``scipy.sparse.save_npz`` has."""


class Matrix(NamedTuple):
    """Values with one row per datum.

    Attributes:
        values: A NumPy array or a SciPy matrix, ``(N, columns)``.
        columns: The names of the columns, or ``None``.
        rows: A pandas table with one line per row, or ``None``.
        name: The name of the data set.
        is_table: Whether columns of the values may be covariates, which are not counts.
        source: The file of a table, or ``None``.
    """

    values: Any
    columns: tuple[str, ...] | None
    rows: Any
    name: str
    is_table: bool = False
    source: TableSource | None = None


def read_matrix(
    source: Any, *, layer: str | None, key: str | None, options: ReadOptions, transpose: bool
) -> Matrix:
    """Returns the matrix in a file, or one in memory.

    Arguments:
        source: A path, or an AnnData, pandas table, SciPy matrix, array or tensor.
        layer: The layer of an AnnData; ``None`` for its ``X``.
        key: The array of an npz file, if there are several matrices.
        options: How a text file is written.
        transpose: Whether rows and columns are exchanged.

    Raises:
        ValueError: If the source cannot be read, or has no such layer or array.
    """
    file = None if _is_in_memory(source) else _check_path(source)
    suffix = "" if file is None else file.suffix.lower()
    is_anndata = suffix == ".h5ad" or (hasattr(source, "obs") and hasattr(source, "var_names"))
    if layer is not None and not is_anndata:
        raise ValueError(f"Expected layer for an h5ad file or an AnnData only, got {layer!r}")
    if key is not None and suffix != ".npz":
        raise ValueError(f"Expected key for an npz file only, got {key!r}")
    is_table = file is not None and (suffix == ".parquet" or is_text_file(file))
    if transpose and (is_anndata or _is_frame(source) or is_table):
        raise ValueError(
            "Expected transpose=false for data with names, whose rows are the data, got true"
        )
    if is_anndata:
        name = "counts" if file is None else file.stem
        return _read_anndata(source if file is None else _read_h5ad(file), layer, name)
    if file is None:
        matrix = _wrap(source)
    elif is_table:
        table = load_table(file, options)
        return Matrix(table.to_frame(), None, None, table.name, True, table)
    elif suffix == ".npz":
        return _read_npz(file, key, transpose)
    else:
        matrix = _read_matrix_market(file)
    return matrix._replace(values=matrix.values.T) if transpose else matrix


def _is_in_memory(source: Any) -> bool:
    return hasattr(source, "shape") and not isinstance(source, (str, Path))


def _check_path(source: Any) -> Path:
    file = check_data_file(source, _SUFFIXES, shown=_SHOWN)
    if file.suffix.lower() == ".gz" and not file.name.lower().endswith(".mtx.gz"):
        raise ValueError(f"Expected data.path to name a .mtx.gz file, got '{source}'")
    return file


def _is_frame(source: Any) -> bool:
    return hasattr(source, "columns") and hasattr(source, "iloc")


def _wrap(source: Any) -> Matrix:
    if _is_frame(source):
        frame = source.copy(deep=False).reset_index(drop=True)
        frame.columns = [str(name) for name in frame.columns]
        return Matrix(frame, None, None, "counts", is_table=True)
    if isinstance(source, Tensor):
        source = source.detach().cpu().double()
        source = _to_scipy(source) if source.layout != torch.strided else source.numpy()
    if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
        raise ValueError(f"Expected counts without masked values, got {np.ma.count_masked(source)}")
    values = source if is_scipy(source) else np.asarray(source)
    return Matrix(values, None, None, "counts")


def is_scipy(values: Any) -> bool:
    """Whether values are a sparse matrix of SciPy, whose import takes a while."""
    # A view of an AnnData is of a class derived from SciPy's.
    return any(kind.__module__.startswith("scipy.sparse") for kind in type(values).__mro__)


def _to_scipy(tensor: Tensor) -> Any:
    import scipy.sparse

    coo = tensor.to_sparse_coo().coalesce()
    entries = (coo.values().numpy(), coo.indices().numpy())
    return scipy.sparse.csr_matrix(entries, shape=tuple(coo.shape))


def _read_h5ad(file: Path) -> Any:
    try:
        import anndata
    except ImportError as error:
        raise ValueError(
            f"Expected the extra anndata for '{file}', got none: pip install 'pyro_vae[anndata]'"
        ) from error
    try:
        with warnings.catch_warnings():
            # About versions of the format, and names that are checked below.
            warnings.simplefilter("ignore")
            return anndata.read_h5ad(file)
    except Exception as error:
        # HDF5 and the readers of its groups raise errors of many classes.
        raise ValueError(
            f"Expected '{file}' to be an intact h5ad file, got {type(error).__name__}: "
            f"{' '.join(str(error).split()):.200}"
        ) from error


def _read_anndata(source: Any, layer: str | None, name: str) -> Matrix:
    layers = _list_layers(source)
    if layer is not None and layer not in layers:
        expected = f"one of {list_names(layers)}" if layers else "null, because there are no layers"
        raise ValueError(f"Expected layer to be {expected}, got {layer!r}")
    values = source.X if layer is None else source.layers[layer]
    if values is None:
        advice = f": choose a layer, one of {list_names(layers)}" if layers else ""
        raise ValueError(f"Expected X, got none{advice}")
    if not is_scipy(values) and not isinstance(values, np.ndarray):
        raise ValueError(
            f"Expected X in memory, got {type(values).__name__}: adata.to_memory() reads it"
        )
    columns = tuple(map(str, source.var_names))
    return Matrix(values, columns, source.obs.reset_index(drop=True), name)


def _list_layers(source: Any) -> tuple[str, ...]:
    # Some versions list X as the layer None.
    return tuple(sorted(name for name in source.layers if name is not None))


def _read_npz(file: Path, key: str | None, transpose: bool) -> Matrix:
    import pandas

    arrays = read_arrays(file)
    if set(arrays) >= _PARTS_OF_SPARSE:
        if key is not None:
            raise ValueError(f"Expected key=null for the sparse matrix in '{file}', got {key!r}")
        values = _load_sparse(file)
        return Matrix(values.T if transpose else values, None, None, file.stem)
    names = sorted(name for name, array in arrays.items() if array.ndim == 2)
    if key is None and len(names) == 1:
        key = names[0]
    if not names:
        raise ValueError(f"Expected '{file}' to hold a matrix, got none")
    if key not in names:
        raise ValueError(
            f"Expected key to be one of {list_names(names)}, the matrices of '{file}', got {key!r}"
        )
    values = arrays.pop(key).T if transpose else arrays.pop(key)
    rows = {name: a for name, a in arrays.items() if a.shape == (len(values),)}
    return Matrix(values, None, pandas.DataFrame(rows) if rows else None, file.stem)


def _load_sparse(file: Path) -> Any:
    import scipy.sparse

    try:
        return scipy.sparse.load_npz(file)
    except Exception as error:
        # The constructors of SciPy's formats raise different errors.
        raise ValueError(
            f"Expected '{file}' to be an intact sparse matrix, got {type(error).__name__}: {error}"
        ) from error


def _read_matrix_market(file: Path) -> Matrix:
    from scipy.io import mmread

    opened = gzip.open if file.suffix.lower() == ".gz" else open
    try:
        with opened(file, "rb") as stream, warnings.catch_warnings():
            # Both of SciPy's kinds of sparse matrices are read.
            warnings.simplefilter("ignore", DeprecationWarning)
            values = mmread(stream)
    except Exception as error:
        # The parser and the decompressor raise different errors.
        raise ValueError(
            f"Expected '{file}' to be an intact Matrix Market file, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return Matrix(values, None, None, file.name.split(".")[0])


def read_row_table(obs: Any, options: ReadOptions) -> Any:
    """Returns a table of rows from a csv or parquet file, or from columns in memory.

    Raises:
        ValueError: If it cannot be read, or columns have different lengths.
    """
    import pandas

    if isinstance(obs, (str, Path)):
        return load_table(obs, options, argument="data.obs").to_frame()
    if isinstance(obs, pandas.DataFrame):
        return obs.reset_index(drop=True)
    if not isinstance(obs, Mapping):
        raise ValueError(
            f"Expected obs to be a csv or parquet file, a table, or columns by name, got "
            f"{describe_value(obs)}"
        )
    try:
        return pandas.DataFrame({name: np.asarray(column) for name, column in obs.items()})
    except ValueError as error:
        raise ValueError(f"Expected obs to be columns of equal length, got {error}") from None


def to_tensor(values: Any) -> Tensor:
    """Returns an array or a SciPy matrix as a tensor of the default dtype, sparse if it was."""
    dtype = np.dtype(str(torch.get_default_dtype()).removeprefix("torch."))
    if not is_scipy(values):
        return torch.from_numpy(np.array(values, dtype=dtype, order="C"))
    csr = values.tocsr()
    starts, columns = (torch.from_numpy(p.copy()) for p in (csr.indptr, csr.indices))
    numbers = torch.from_numpy(csr.data.astype(dtype))
    return build_sparse(starts, columns, numbers, csr.shape)
