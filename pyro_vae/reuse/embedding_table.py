"""Files of embeddings, written in pieces and replaced atomically."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pyro_vae import validation
from pyro_vae.files.csv_cells import choose_quoting, protect

__all__ = ["check_table_path", "open_table"]

_Piece = Mapping[str, Any]
"""Maps column names to arrays, lists or pandas series of equal length."""

_Write = Callable[[_Piece], None]


def check_table_path(out: Path | str) -> Path:
    """Returns the path of a file to write.

    Raises:
        ValueError: If its name does not end in ``.parquet`` or ``.csv``, or pyarrow is missing.
    """
    path = validation.check_path("out", out).expanduser()
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"Expected out to name a .parquet or .csv file, got '{out}'")
    if path.suffix == ".parquet":
        _import_pyarrow(path)
    return path


def open_table(path: Path, facts: Mapping[str, str]) -> AbstractContextManager[_Write]:
    """Opens a table; the context gives a function that writes a piece.

    The file appears at the end of the context.

    Arguments:
        path: A path from :func:`check_table_path`.
        facts: Metadata for the schema of a parquet file; a csv file has no metadata.
    """
    return _open_parquet(path, facts) if path.suffix == ".parquet" else _open_csv(path)


@contextmanager
def _open_parquet(path: Path, facts: Mapping[str, str]) -> Iterator[_Write]:
    """Writes each piece as a row group."""
    pyarrow, parquet = _import_pyarrow(path)
    writers: list[Any] = []

    def write(piece: _Piece) -> None:
        table = pyarrow.table({name: _to_arrow(values) for name, values in piece.items()})
        table = table.replace_schema_metadata(dict(facts))
        if not writers:
            writers.append(parquet.ParquetWriter(partial, table.schema))
        writers[0].write_table(table)

    with _replace_at_end(path) as partial:
        try:
            yield write
        finally:
            for writer in writers:
                writer.close()


@contextmanager
def _open_csv(path: Path) -> Iterator[_Write]:
    """Writes each piece as lines, with one header."""
    import pandas

    def write(piece: _Piece) -> None:
        table = pandas.DataFrame(
            {protect(name): _protect_cells(values) for name, values in piece.items()}
        )
        texts = {text for values in piece.values() for text in _list_texts(values)}
        table.to_csv(file, index=False, header=not file.tell(), quoting=choose_quoting(texts))

    with _replace_at_end(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield write


def _protect_cells(values: Any) -> Any:
    if not _list_texts(values):
        return values
    return [protect(value) if isinstance(value, str) else value for value in values]


def _list_texts(values: Any) -> list[str]:
    return [] if _is_numeric(values) else [value for value in values if isinstance(value, str)]


def _is_numeric(values: Any) -> bool:
    from pandas.api.types import is_numeric_dtype

    return hasattr(values, "dtype") and is_numeric_dtype(values.dtype)


def _to_arrow(values: Any) -> Any:
    """Returns words that may be missing as a list, which Arrow reads as texts."""
    if _is_numeric(values):
        return values
    return [value if value == value else None for value in values]


@contextmanager
def _replace_at_end(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which replaces this one at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _import_pyarrow(path: Path) -> tuple[Any, Any]:
    """Imports pyarrow and pyarrow.parquet; raises a ``ValueError`` that names the extra."""
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            f"Expected the extra parquet for '{path}', got none: pip install 'pyro_vae[parquet]', "
            f"or pass an out that ends in .csv"
        ) from None
