"""The runs as a csv table, with one row per run."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from pyro_vae.compare.comparison import Comparison
from pyro_vae.compare.factors import ABSENT
from pyro_vae.files.csv_cells import choose_quoting, protect

__all__ = ["build_csv"]


def build_csv(comparison: Comparison, out: Path) -> str:
    """Returns a csv with the folder, the state, all factors and all scalar metrics of each run.

    Each factor is followed by the settings that are folded into it. A metric with the name of a
    factor becomes ``metrics.NAME``. The cell of a setting that a run lacks is empty. Text that a
    spreadsheet would evaluate as a formula is preceded by a quote.

    Arguments:
        comparison: The comparison.
        out: The folder to which paths are relative.
    """
    runs = comparison.runs
    factors = [one for factor in comparison.factors for one in (factor, *factor.folded)]
    head = ["run", "state", *(factor.name for factor in factors)]
    metrics = list(
        dict.fromkeys(k for run in runs for k, v in run.metrics.items() if _is_scalar(v))
    )
    rows: list[list[Any]] = [
        [*head, *(f"metrics.{key}" if key in head else key for key in metrics)]
    ]
    for index, run in enumerate(runs):
        levels = [factor.by_run[index] for factor in factors]
        settings = ["" if level == ABSENT else level for level in levels]
        values = [_format_cell(run.metrics.get(key)) for key in metrics]
        rows.append([os.path.relpath(run.folder, out), run.state, *settings, *values])
    rows = [[protect(value) if isinstance(value, str) else value for value in row] for row in rows]
    text = io.StringIO(newline="")
    texts = (value for row in rows for value in row if isinstance(value, str))
    csv.writer(text, lineterminator="\n", quoting=choose_quoting(texts)).writerows(rows)
    return text.getvalue()


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, (dict, list))


def _format_cell(value: Any) -> Any:
    """Returns the value of a cell, which is empty for a missing metric."""
    return "" if value is None or not _is_scalar(value) else value
