"""The origin of rows, as columns of a table."""

from typing import Any

from pyro_vae.data import Split
from pyro_vae.reuse.finished_run import SelectedRows, is_unsplit

__all__ = ["describe_rows"]


def describe_rows(selected: SelectedRows, index: slice) -> dict[str, Any]:
    """Returns the columns of the part, the row number in the source, and the label if any."""
    return {**_build_origin(selected, index), **_build_label(selected, index)}


def _build_origin(selected: SelectedRows, index: slice) -> dict[str, Any]:
    """Returns the columns of the part and the row number."""
    numbers, split = selected.data.row_numbers, not is_unsplit(selected.data)
    names = Split._fields if split else ("all",) * 3
    row = selected.row[index] if numbers is None else selected.take(numbers, index)
    return {"part": [names[part] for part in selected.part[index].tolist()], "row": row.numpy()}


def _build_label(selected: SelectedRows, index: slice) -> dict[str, Any]:
    """Returns the column of labels, or no column for data without labels."""
    labels, names = selected.data.labels, selected.data.label_names
    if labels is None:
        return {}
    values = selected.take(labels, index)
    if names is None:
        return {"label": values.numpy()}
    return {"label": [names[value] for value in values.tolist()]}
