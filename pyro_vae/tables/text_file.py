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
    b"\x1f\x8b": "a gzip file, whose name does not end in .gz",
    b"BZh": "a bzip2 file, whose name does not end in .bz2",
    b"\xfd7zXZ": "an xz file, whose name does not end in .xz",
}

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}

_DAMAGE = (
    OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""The errors of readers for a file that is damaged or not a table."""

_EXCEL_SEPARATOR = re.compile(r"\ufeff?sep=(.)")
"""The first line with which Excel names the separator."""

_CODE = re.compile(r"\s*0\d+\s*", re.ASCII)
"""Digits with a leading zero, which a number would lose."""

_HEAD = 2**16
"""The number of characters from which the format is detected."""


class ReadOptions(NamedTuple):
    """How a text file is written; ``None`` to detect it.

    Attributes:
        separator: The separator between values.
        encoding: The name of the encoding.
        decimal: The decimal mark, ``"."`` or ``","``.
        header: Whether the first line names the columns.
        skip_last: The number of last rows to leave out.
    """

    separator: str | None = None
    encoding: str | None = None
    decimal: str | None = None
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
    codes: tuple[int, ...]


def is_text_file(file: Path) -> bool:
    """Whether a file has the suffix of a text file, perhaps compressed."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _OPENERS and (len(suffixes) > 1 or suffixes[-1] != ".zip"):
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in (*_SUFFIXES, ".zip")


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
        raise ValueError(f"Expected '{file}' to be a table, got {_explain(error)}") from error
    if not len(frame):
        raise ValueError(f"Expected '{file}' to have rows, got none")

    def read_texts(index: int) -> Any:
        texts = _read(file, options, layout, usecols=[index], dtype=str).iloc[:, 0]
        return texts.astype(object)

    return RawTable(frame, layout.names, layout.notes, read_texts, options)


def _read(file: Path, options: ReadOptions, layout: _Layout, **settings: Any) -> Any:
    """Returns the columns, numbered; cells without text are missing."""
    import pandas

    dtype = settings.pop("dtype", dict.fromkeys(layout.codes, str))
    with warnings.catch_warnings(), _open_bytes(file) as stream:
        # Otherwise pandas drops values of a row with more values than names.
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        frame = pandas.read_csv(
            stream,
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
            dtype=dtype,
            **settings,
        )
    return frame.iloc[: max(0, len(frame) - options.skip_last)]


_TOO_LONG = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")


def _explain(error: BaseException) -> str:
    """Returns the reason of a failure in words."""
    text = " ".join(str(error).split())
    row = _TOO_LONG.search(text)
    if row is not None:
        return (
            f"{row[3]} values in line {row[2]} for {row[1]} columns: put values with a separator "
            f"between quotes, or set data.separator"
        )
    if "Length of header or names" in text:
        return (
            "more values than names in each row: name each column, and put values with a separator "
            "between quotes"
        )
    if isinstance(error, EOFError):
        return "the beginning of a compressed file only"
    return f"{type(error).__name__}: {text}"


def _detect_layout(file: Path, options: ReadOptions) -> _Layout:
    """Returns the layout of a file, from its first lines."""
    encoding = _detect_encoding(file) if options.encoding is None else options.encoding
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    with io.TextIOWrapper(_open_bytes(file), encoding=encoding, newline="") as stream:
        text = stream.read(_HEAD)
    lines = re.split(r"\r\n|\n|\r", text)
    if len(text) == _HEAD:
        lines = lines[:-1] or lines
    first = _EXCEL_SEPARATOR.fullmatch(lines[0])
    separator = options.separator or (first and first[1]) or _detect_separator(lines)
    skipped = 1 if first else _count_comments(lines, separator)
    rows = _split(lines[skipped:], separator)
    if not rows:
        raise ValueError(f"Expected '{file}' to be a table, got a file without lines")
    names = [restore(cell.strip()) for cell in rows[0]]
    if not options.header:
        names = [f"column_{index}" for index in range(len(names))]
    _check_separator(file, names, separator)
    notes = [] if options.separator or separator == "," else [f"separated by {_name(separator)}"]
    if not options.encoding and not encoding.startswith("utf-8"):
        notes.append(f"encoding {encoding}")
    if skipped and not first:
        notes.append(f"{skipped} lines of comments left out")
    body = rows[1:] if options.header else rows
    names = _complete_names(names, body)
    coded = {i for row in body for i, cell in enumerate(row) if _CODE.fullmatch(cell)}
    codes = tuple(sorted(i for i in coded if i < len(names)))
    return _Layout(encoding, separator, skipped, names, tuple(notes), codes)


def _name(separator: str) -> str:
    return _SEPARATORS.get(separator, repr(separator))


def _complete_names(names: list[str], rows: list[list[str]]) -> list[str]:
    """Returns names with one for a column that all rows have beyond the names."""
    if not rows or any(len(row) != len(names) + 1 for row in rows):
        return names
    if not any(row[-1].strip() for row in rows):
        return [*names, ""]
    first = [row[0].strip() for row in rows]
    are_words = not any(NUMBER.fullmatch(cell) for cell in first)
    are_numbered = first == [str(number) for number in range(1, len(first) + 1)]
    if len(set(first)) == len(first) and (are_words or are_numbered):
        # R writes the names of rows without a name for their column.
        return ["", *names]
    return names


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
        head = stream.read(6)
        for mark, content in _BINARY.items():
            if head.startswith(mark):
                raise ValueError(f"Expected '{file}' to hold a table as text, got {content}")
        for mark, name in _BYTE_ORDER_MARKS.items():
            if head.startswith(mark):
                return name
        if b"\0" in head[:2]:
            return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
        return _detect_ascii_extension(file, head, stream)


def _detect_ascii_extension(file: Path, head: bytes, stream: IO[bytes]) -> str:
    """Returns UTF-8, or a single-byte encoding for a file that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    valid = invalid = 0
    undefined, piece = False, head
    while piece:
        text = decoder.decode(piece)
        # A replacement character may be in the file itself.
        bad = max(0, text.count("\ufffd") - piece.count("\ufffd".encode()))
        invalid += bad
        valid += sum(not character.isascii() for character in text) - bad if bad or invalid else 0
        # Windows' encoding is Latin-1 with letters and signs for most control characters.
        undefined |= any(byte in piece for byte in b"\x81\x8d\x8f\x90\x9d")
        piece = stream.read(2**20)
    invalid += decoder.decode(b"", final=True).count("\ufffd")
    if not invalid:
        return "utf-8"
    if valid > invalid:
        raise ValueError(
            f"Expected '{file}' to be text in one encoding, got {invalid} bytes that are not UTF-8 "
            f"beside {valid} letters that are: correct the file, or name its encoding "
            f"(data.encoding=latin-1)"
        )
    return "latin-1" if undefined else "cp1252"


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
    sizes = [len(row) for row in _split(lines[count - 1 : count + 1], separator)]
    return count - 1 if len(sizes) == 2 and sizes[0] == sizes[1] > 1 else count


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
        names = [
            name
            for name in archive.namelist()
            if not name.endswith("/") and not name.startswith("__MACOSX/")
        ]
        if len(names) != 1:
            raise ValueError(f"Expected '{file}' to hold one file, got {len(names)}")
        return archive.open(names[0])
