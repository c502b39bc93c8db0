"""Rows of numbers as columns of a table, in the units and words of its source."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae.data import Preparation
from pyro_vae.data.table_files import check_read_options, load_table

__all__ = ["check_table", "decode_rows", "read_source"]

_READ_OPTIONS = ("separator", "encoding", "decimal", "header", "skip_last")


def check_table(run: Any, like: Preparation) -> None:
    """Raises a ``ValueError`` unless the data of a run are a table with names."""
    if like.columns is None:
        raise ValueError(
            f"Expected a run on a table (data=table or data=counts), got '{run}' on data of shape "
            f"{tuple(like.event_shape)} without names"
        )


def decode_rows(like: Preparation, x: Tensor) -> dict[str, Any]:
    """Returns rows as pandas series by name.

    Arguments:
        like: The preparation of the table.
        x: Rows of shape ``(N, columns)``.
    """
    import pandas

    if like.schema is not None:
        frame = like.schema.decode(x)
        return {name: frame[name] for name in frame.columns}
    assert like.columns is not None
    x = x.double()
    if like.scaling is not None:
        x = like.scaling.undo(x)
    numbers = x.cpu().numpy()
    return {name: pandas.Series(_round(numbers[:, i])) for i, name in enumerate(like.columns)}


def _round(numbers: Any) -> Any:
    """Returns numbers with the six significant digits that single precision has."""
    return np.array([float(f"{number:.6g}") for number in numbers])


def read_source(node: Mapping[str, Any] | None) -> Any:
    """Returns all columns of the table that a configuration names, as a pandas DataFrame.

    Arguments:
        node: The configuration of the data; other data than tables have no such columns, and give
            ``None``.
    """
    if node is None or node.get("_target_") != "pyro_vae.data.table":
        return None
    options = {name: node[name] for name in _READ_OPTIONS if name in node}
    marks = node.get("na") or ()
    return load_table(
        node.get("path"), check_read_options(**options), tuple(map(str, marks))
    ).to_frame()
