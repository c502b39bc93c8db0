"""Rows of scikit-learn as tensors, and back."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae import likelihoods
from pyro_vae.data import Preparation, Scaling, Schema
from pyro_vae.data.tables import encode_frame
from pyro_vae.tables.schema import KINDS

__all__ = ["NumberRows", "TableRows", "has_columns", "name_columns"]


def has_columns(likelihood: Any) -> bool:
    """Whether a likelihood is :class:`pyro_vae.likelihoods.Columns`, built from the data."""
    while isinstance(likelihood, partial):
        if likelihood.keywords.get("columns") is not None:
            return False
        likelihood = likelihood.func
    return likelihood is likelihoods.Columns


def name_columns(X: Any) -> Any:
    """Returns a pandas table; the columns of an array are called ``x0``, ``x1``, ..."""
    import pandas

    if hasattr(X, "to_pandas"):
        return X.to_pandas()
    if isinstance(X, pandas.DataFrame):
        return X
    array = np.asarray(X)
    if array.ndim != 2:
        raise ValueError(f"Expected X to be a table of two dimensions, got shape {array.shape}")
    frame = pandas.DataFrame(array, columns=[f"x{i}" for i in range(array.shape[1])])
    return frame.infer_objects()


class NumberRows:
    """Numbers that are standardized, in double precision.

    Arguments:
        scaling: The standardization.
        event_shape: The shape of one datum.
    """

    def __init__(self, scaling: Scaling, event_shape: tuple[int, ...]) -> None:
        self.scaling, self.event_shape = scaling, event_shape

    def prepare(self, X: Any) -> tuple[Tensor, Tensor | None]:
        """Returns rows of the event shape, and a mask if values are missing."""
        x = torch.tensor(X)
        rows = ((x - self.scaling.loc) / self.scaling.scale).reshape(-1, *self.event_shape)
        mask = ~rows.isnan()
        return rows, None if bool(mask.all()) else mask

    def undo(self, x: Tensor) -> Any:
        """Returns rows in the units of the data."""
        return self.scaling.undo(x.flatten(1)).numpy()

    def sum_log_scales(self, mask: Tensor | None, size: int) -> Tensor:
        """Returns the log determinant of the standardization of the observed values, by row."""
        log_scale = self.scaling.scale.log().expand(size, -1)
        if mask is not None:
            log_scale = torch.where(mask.flatten(1), log_scale, 0.0)
        return log_scale.sum(1)


class TableRows:
    """Columns of different kinds, in their own units.

    Arguments:
        schema: The kinds of the columns.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.event_shape = (len(schema.columns),)

    @classmethod
    def fit(cls, frame: Any, kinds: Mapping[str, Any] | None) -> "TableRows":
        """Returns the kinds of the columns of a table, declared or inferred."""
        return cls(encode_frame(frame, _group_kinds(kinds or {}))[0])

    def prepare(self, X: Any) -> tuple[Tensor, Tensor | None]:
        """Returns rows of numbers and codes, and a mask if values are missing."""
        like = Preparation(self.event_shape, "none", self.schema.names, schema=self.schema)
        _, x = encode_frame(name_columns(X), {}, like)
        mask = ~x.isnan()
        return x.nan_to_num(), None if bool(mask.all()) else mask

    def undo(self, x: Tensor) -> Any:
        """Returns rows as a pandas table with the words and units of the data."""
        return self.schema.decode(x)

    def sum_log_scales(self, mask: Tensor | None, size: int) -> Tensor:
        """Returns zeros, because columns keep their units."""
        return torch.zeros(size, dtype=torch.float64)


def _group_kinds(kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of :func:`pyro_vae.data.table` for the kinds of columns."""
    groups: dict[str, Any] = {}
    for name, kind in kinds.items():
        if isinstance(kind, str) and kind in KINDS and kind != "ordinal":
            groups.setdefault(kind, []).append(name)
        elif isinstance(kind, (list, tuple)):
            groups.setdefault("ordinal", {})[name] = list(kind)
        else:
            raise ValueError(
                f"Expected kinds to give one of {KINDS[:-1]} for {name!r}, or the list of its "
                f"levels in order, got {kind!r}"
            )
    return groups
