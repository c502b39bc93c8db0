"""Reads text files of separated values: encoding, compression, separator, header."""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from pyro_vae.config import format_override
from pyro_vae.files.csv_cells import NUMBER, restore

__all__ = ["RawTable", "ReadOptions", "is_text_file", "read_text_file"]

_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".data")

_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zip": lambda file: _open_zip(file),
}

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the first bytes of a file; those of UTF-32 begin like those of UTF-16."""

_BINARY = {
    b"PK\x03\x04": "an Excel or zip file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"PAR1": "a parquet file",
}

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}

_DAMAGE = (
    OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""The errors of readers for a file that is damaged or not a table."""

_HEAD = 2**16
"""The number of characters from which the format is detected."""


class ReadOptions(NamedTuple):
    """How a text file is written; ``None`` to detect it.

    Attributes:
        separator: The separator between values.
        encoding: The name of the encoding.
        decimal: The decimal mark, ``"."`` or ``","``.
        thousands: The mark between thousands.
        header: Whether the first line names the columns.
        skip_last: The number of last rows to leave out.
    """

    separator: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    header: bool = True
    skip_last: int = 0


class RawTable(NamedTuple):
    """A table as it is in its source.

    Attributes:
        frame: The columns, numbered; numbers where all cells are plain numbers, otherwise texts.
        names: Their names, which may be empty or repeated.
        notes: What was detected, for the reader of a report.
        read_texts: Returns a column as texts, by its number; ``None`` for typed sources.
        read_options: The options that hold for the file.
    """

    frame: Any
    names: list[str]
    notes: tuple[str, ...] = ()
    read_texts: Callable[[int], Any] | None = None
    options: ReadOptions = ReadOptions()


class _Layout(NamedTuple):
    encoding: str
    separator: str
    skipped: int
    names: list[str]
    notes: tuple[str, ...]


def is_text_file(file: Path) -> bool:
    """Whether a file has the suffix of a text file, perhaps compressed."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _SUFFIXES


def read_text_file(file: Path, options: ReadOptions) -> RawTable:
    """Reads a file of separated values.

    Raises:
        ValueError: If it is not one, with the reason.
    """
    import pandas

    try:
        layout = _detect_layout(file, options)
        frame = _read(file, options, layout)
    except (*_DAMAGE, pandas.errors.ParserWarning) as error:
        if isinstance(error, ValueError) and str(error).startswith("Expected '"):
            raise
        raise ValueError(
            f"Expected '{file}' to be a table, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    if not len(frame):
        raise ValueError(f"Expected '{file}' to have rows, got none")

    def read_texts(index: int) -> Any:
        texts = _read(file, options, layout, usecols=[index], dtype=str).iloc[:, 0]
        return texts.astype(object)

    return RawTable(frame, layout.names, layout.notes, read_texts, options)


def _read(file: Path, options: ReadOptions, layout: _Layout, **settings: Any) -> Any:
    """Returns the columns, numbered; cells without text are missing."""
    import pandas

    numbers = {"decimal": options.decimal or ".", "thousands": options.thousands}
    if layout.separator == numbers["decimal"]:
        raise ValueError(f"the separator is the decimal mark {layout.separator!r}")
    with warnings.catch_warnings():
        # Otherwise pandas drops values of a row with more values than names.
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        frame = pandas.read_csv(
            file,
            sep=r"\s+" if layout.separator == " " else layout.separator,
            encoding=layout.encoding,
            skiprows=layout.skipped,
            header=0 if options.header else None,
            names=list(range(len(layout.names))),
            index_col=False,
            keep_default_na=False,
            na_values=[""],
            skipinitialspace=True,
            low_memory=False,
            **numbers,
            **settings,
        )
    return frame.iloc[: len(frame) - options.skip_last]


def _detect_layout(file: Path, options: ReadOptions) -> _Layout:
    """Returns the layout of a file, from its first lines."""
    encoding = options.encoding or _detect_encoding(file)
    with io.TextIOWrapper(_open_bytes(file), encoding=encoding, newline="") as stream:
        text = stream.read(_HEAD)
    lines = re.split(r"\r\n|\n|\r", text)
    if len(text) == _HEAD:
        lines = lines[:-1] or lines
    separator = options.separator or _detect_separator(lines)
    skipped = _count_comments(lines, separator)
    rows = _split(lines[skipped:], separator)
    if not rows:
        raise ValueError(f"Expected '{file}' to be a table, got EmptyDataError: no lines")
    names = [restore(cell.strip()) for cell in rows[0]]
    if not options.header:
        names = [f"column_{index}" for index in range(len(names))]
    _check_separator(file, names, separator)
    notes = [] if options.separator or separator == "," else [f"separated by {_name(separator)}"]
    if not options.encoding and not encoding.startswith("utf-8"):
        notes.append(f"encoding {encoding}")
    if skipped:
        notes.append(f"{skipped} lines of comments left out")
    names, extra = _complete_names(names, rows[1:])
    return _Layout(encoding, separator, skipped, names, tuple(notes + extra))


def _name(separator: str) -> str:
    return _SEPARATORS.get(separator, repr(separator))


def _complete_names(names: list[str], rows: list[list[str]]) -> tuple[list[str], list[str]]:
    """Returns names with one for a column that all rows have beyond the names."""
    if not rows or any(len(row) != len(names) + 1 for row in rows):
        return names, []
    if not any(row[-1].strip() for row in rows):
        return [*names, ""], []
    first = [row[0].strip() for row in rows]
    are_words = not any(NUMBER.fullmatch(cell) for cell in first)
    are_numbered = first == [str(number) for number in range(1, len(first) + 1)]
    if len(set(first)) == len(first) and (are_words or are_numbered):
        # R writes the names of rows without a name for their column.
        return ["", *names], []
    return names, []


def _check_separator(file: Path, names: list[str], separator: str) -> None:
    """Raises a ``ValueError`` for one column whose name has another separator."""
    other = next((mark for mark in ";\t|," if mark in names[0]), None)
    if len(names) == 1 and other:
        raise ValueError(
            f"Expected '{file}' to have values separated by {separator!r}, got one column "
            f"{names[0]!r}: set the separator ({format_override('data.separator', other)})"
        )


def _detect_encoding(file: Path) -> str:
    with _open_bytes(file) as stream:
        head = stream.read(4)
        for mark, content in _BINARY.items():
            if head.startswith(mark):
                raise ValueError(
                    f"Expected '{file}' to be a text file, got {content}: export the table as csv"
                )
        for mark, name in _BYTE_ORDER_MARKS.items():
            if head.startswith(mark):
                return name
        if b"\0" in head[:2]:
            return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
        decoder = codecs.getincrementaldecoder("utf-8")()
        piece, is_windows = head, True
        try:
            while piece:
                decoder.decode(piece)
                piece = stream.read(2**20)
            decoder.decode(b"", final=True)
            return "utf-8"
        except UnicodeDecodeError:
            while piece and is_windows:
                # Windows' encoding is Latin-1 with letters and signs for control characters.
                is_windows = not any(byte in piece for byte in b"\x81\x8d\x8f\x90\x9d")
                piece = stream.read(2**20)
    return "cp1252" if is_windows else "latin-1"


def _detect_separator(lines: list[str]) -> str:
    """Returns the separator that splits most lines into as many cells as the first one."""
    skipped = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    best, best_score = ",", (0.0, 1)
    for separator in _SEPARATORS:
        sizes = [len(row) for row in _split(lines[skipped : skipped + 200], separator)]
        if not sizes or sizes[0] < 2 or (separator == " " and best_score[0] > 0):
            continue
        # A line that ends in a separator, or begins with the name of a row, has one cell more.
        wanted = {sizes[0], sizes[1]} if len(sizes) > 1 and sizes[1] == sizes[0] + 1 else sizes[:1]
        score = (sum(size in wanted for size in sizes) / len(sizes), sizes[0])
        if score > best_score and (separator != " " or score[0] == 1):
            best, best_score = separator, score
    return best


def _count_comments(lines: list[str], separator: str) -> int:
    """Returns the number of first lines that are comments, unless the last one names columns."""
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    if not count:
        return 0
    last, following = _split(lines[count - 1 : count + 1], separator)[:2]
    return count - 1 if len(last) == len(following) > 1 else count


def _split(lines: list[str], separator: str) -> list[list[str]]:
    if separator == " ":
        return [line.split() for line in lines if line.strip()]
    if len(separator) > 1:
        return [line.split(separator) for line in lines if line.strip()]
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    return [row for row in reader if row]


def _open_bytes(file: Path) -> IO[bytes]:
    opener = _OPENERS.get(file.suffix.lower())
    return file.open("rb") if opener is None else cast("IO[bytes]", opener(file))


def _open_zip(file: Path) -> IO[bytes]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise ValueError(f"Expected '{file}' to hold one file, got {len(names)}")
        return archive.open(names[0])
