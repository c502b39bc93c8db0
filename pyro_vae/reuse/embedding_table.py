"""Files of codes, written a piece at a time, and whole or not at all."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pyro_vae import validation
from pyro_vae.files.csv_cells import protect, quoting

__all__ = ["check_path", "writer"]

_Piece = Mapping[str, Any]
"""Columns by name, each an array or a list, of one length."""

_Write = Callable[[_Piece], None]


def check_path(out: Path | str) -> Path:
    """Returns the path of a file to write.

    Raises:
        ValueError: If its name ends otherwise than in ``.parquet`` or ``.csv``, or the former
            cannot be written for want of pyarrow.
    """
    path = validation.check_path("out", out).expanduser()
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"Expected out to name a .parquet or .csv file, got '{out}'")
    if path.suffix == ".parquet":
        _arrow(path)
    return path


def writer(path: Path, facts: Mapping[str, str]) -> AbstractContextManager[_Write]:
    """Returns what writes pieces of a table to a file, which appears when all are written.

    Arguments:
        path: The file, of a name that :func:`check_path` takes.
        facts: What a parquet file says of itself in the metadata of its schema; a csv file has
            no place for it.
    """
    return parquet(path, facts) if path.suffix == ".parquet" else text(path)


@contextmanager
def parquet(path: Path, facts: Mapping[str, str]) -> Iterator[_Write]:
    """Writes each piece as a group of rows."""
    pyarrow, parquet = _arrow(path)
    opened: list[Any] = []

    def write(piece: _Piece) -> None:
        table = pyarrow.table(dict(piece)).replace_schema_metadata(dict(facts))
        if not opened:
            opened.append(parquet.ParquetWriter(partial, table.schema))
        opened[0].write_table(table)

    with _replacing(path) as partial:
        try:
            yield write
        finally:
            for file in opened:
                file.close()


@contextmanager
def text(path: Path) -> Iterator[_Write]:
    """Writes each piece as lines, below one line of names."""
    import pandas

    def write(piece: _Piece) -> None:
        table = pandas.DataFrame({protect(name): _cells(values) for name, values in piece.items()})
        texts = {text for values in piece.values() if isinstance(values, list) for text in values}
        table.to_csv(file, index=False, header=not file.tell(), quoting=quoting(texts))

    with _replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield write


def _cells(values: Any) -> Any:
    return [protect(text) for text in values] if isinstance(values, list) else values


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives another path to write to, which takes the place of this one at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _arrow(path: Path) -> tuple[Any, Any]:
    """Returns pyarrow and its part for parquet, or raises a ``ValueError`` that names the extra."""
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            f"Expected the extra parquet for '{path}', got none: pip install 'pyro_vae[parquet]', "
            f"or let out end in .csv"
        ) from None
