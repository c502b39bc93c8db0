"""Text cells of csv files, protected from evaluation as formulas and restored exactly."""

import csv
import re
from collections.abc import Iterable
from typing import Literal

__all__ = ["choose_quoting", "protect", "restore"]

_FORMULA = re.compile(r"[\t\r\n]|\s*[-=+@\uFF0B\uFF0D\uFF1D\uFF20]")
"""The beginning of a cell that a spreadsheet evaluates, including full-width signs."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def protect(text: str) -> str:
    """Returns a text as a csv cell, with a leading quote if a spreadsheet would evaluate it.

    Plain numbers are unchanged. A text that looks protected gets another quote, so
    :func:`restore` returns every text exactly.

    Arguments:
        text: The text.

    Example:
        >>> protect("=1+1"), protect("'=1+1"), protect("-1.5"), protect("a=1")
        ("'=1+1", "''=1+1", '-1.5', 'a=1')
    """
    return f"'{text}" if _is_formula(text) else text


def restore(cell: str) -> str:
    """Returns the text that :func:`protect` wrote to a cell.

    Arguments:
        cell: The cell.

    Example:
        >>> restore("'=1+1"), restore("'s-Hertogenbosch")
        ('=1+1', "'s-Hertogenbosch")
    """
    return cell[1:] if cell.startswith("'") and _is_formula(cell) else cell


def choose_quoting(cells: Iterable[str]) -> Literal[0, 2]:
    r"""Returns the quoting mode of the module ``csv`` that keeps each text in one cell.

    An unquoted carriage return ends a row and splits the cell.

    Arguments:
        cells: The texts of a file, or of a part of it.
    """
    return csv.QUOTE_NONNUMERIC if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL


def _is_formula(text: str) -> bool:
    text = text.lstrip("'")
    return _FORMULA.match(text) is not None and NUMBER.fullmatch(text) is None
