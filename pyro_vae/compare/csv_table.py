"""The runs as a table: one row a run."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from pyro_vae.compare.comparison import Comparison
from pyro_vae.compare.factors import ABSENT
from pyro_vae.files.csv_cells import protect, quoting

__all__ = ["table"]


def table(found: Comparison, out: Path) -> str:
    """Returns a csv with the folder, the state, all factors and all single figures of each run.

    A figure of the name of a factor becomes ``metrics.NAME``. The cell of a setting that a run
    lacks is empty. Text that a spreadsheet would calculate stands behind a quote.

    Arguments:
        found: The comparison.
        out: What folders are relative to.
    """
    taken = ["run", "state", *(factor.name for factor in found.factors)]
    metrics = list(
        dict.fromkeys(k for run in found.runs for k, v in run.metrics.items() if _single(v))
    )
    columns = {key: f"metrics.{key}" if key in taken else key for key in metrics}
    rows: list[list[Any]] = [[*taken, *columns.values()]]
    for index, run in enumerate(found.runs):
        levels = [factor.of[index] for factor in found.factors]
        settings = ["" if level == ABSENT else level for level in levels]
        figures = [_cell(run.metrics.get(key)) for key in columns]
        rows.append([os.path.relpath(run.folder, out), run.state, *settings, *figures])
    rows = [[protect(value) if isinstance(value, str) else value for value in row] for row in rows]
    text = io.StringIO(newline="")
    texts = (value for row in rows for value in row if isinstance(value, str))
    csv.writer(text, lineterminator="\n", quoting=quoting(texts)).writerows(rows)
    return text.getvalue()


def _single(value: Any) -> bool:
    """Tells whether a figure is one value."""
    return not isinstance(value, (dict, list))


def _cell(value: Any) -> Any:
    """Returns a value as a cell: nothing for what is not known."""
    return "" if value is None or not _single(value) else value
