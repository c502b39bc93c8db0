"""The settings that prepare other data in the same way as a data set, and their file."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.covariates import Covariates
from pyro_vae.display.text import describe_fields
from pyro_vae.files.untrusted import read_json
from pyro_vae.masking import compute_moments
from pyro_vae.tables.schema import Schema
from pyro_vae.validation import check_choice, check_path, check_tensor

__all__ = ["PROTOCOLS", "Preparation", "Scaling", "check_protocol"]

_FORMAT = "pyro_vae data 2"
_WITH_COVARIATES = "pyro_vae data 3"
_WITH_SCHEMA = "pyro_vae data 4"
_UNSIGNED = "pyro_vae data 1"
"""The first format, which has no checksum."""

_KEYS = ("format", "event_shape", "binarize", "columns", "scaling")
_MORE_KEYS = {_WITH_COVARIATES: ("covariates",), _WITH_SCHEMA: ("covariates", "schema")}
_LARGEST = 2**28
"""The largest ``data.json`` that is read, in bytes: a table may have a million columns."""

PROTOCOLS = ("none", "threshold", "fixed", "dynamic")
"""Protocols for the binarization of grey values.

``none``: unchanged; ``threshold``: one where a value exceeds one half; ``fixed``: sampled once,
with the value as probability, by the seed of the split; ``dynamic``: training rows are sampled
again at each presentation, validation and test rows once, as with ``fixed``.
"""


class Scaling(NamedTuple):
    """How values were standardized, ``(value - loc) / scale``.

    Attributes:
        loc: The offset subtracted from each value, of the event shape.
        scale: The divisor applied after that, of the event shape.
    """

    loc: Tensor
    scale: Tensor

    def __repr__(self) -> str:
        return describe_fields(self)

    @classmethod
    def fit(cls, x: Tensor, observed: Tensor) -> "Scaling":
        """Returns the mean and standard deviation of observed values; 0 for constant columns.

        Example:
            >>> Scaling.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.ones(2, 2) > 0)
            Scaling(loc=float32[2], scale=float32[2])
        """
        return cls(*compute_moments(x, observed))

    def undo(self, x: Tensor) -> Tensor:
        """Returns standardized values of shape ``(*, *event_shape)`` in the units of the source.

        Example:
            >>> Scaling(torch.tensor([10.0]), torch.tensor([2.0])).undo(torch.tensor([[0.5]]))
            tensor([[11.]])
        """
        check_tensor("x", x)
        return x * self.scale.to(x) + self.loc.to(x)


class Preparation(NamedTuple):
    """The settings that prepare other data in the same way as a data set.

    Attributes:
        event_shape: The shape of one datum.
        binarize: The protocol of binarization.
        columns: The names of the values of a datum, for tables; or ``None``.
        scaling: How the values were standardized; or ``None``.
        covariates: How covariates are encoded; or ``None``.
        schema: The kinds of the columns of a mixed table; or ``None``.
    """

    event_shape: tuple[int, ...]
    binarize: str
    columns: tuple[str, ...] | None = None
    scaling: Scaling | None = None
    covariates: Covariates | None = None
    schema: Schema | None = None

    def __repr__(self) -> str:
        return describe_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, which preserves each number exactly."""
        scaling = None if self.scaling is None else self.scaling._asdict()
        values: dict[str, Any] = {
            "format": _FORMAT,
            "event_shape": list(self.event_shape),
            "binarize": self.binarize,
            "columns": None if self.columns is None else list(self.columns),
            "scaling": scaling and {key: value.tolist() for key, value in scaling.items()},
        }
        if self.covariates is not None:
            values |= {"format": _WITH_COVARIATES, "covariates": self.covariates.to_list()}
        if self.schema is not None:
            values |= {"format": _WITH_SCHEMA, "schema": self.schema.to_list()}
            values.setdefault("covariates", None)
        return {**values, "sha256": _checksum(values)}

    @classmethod
    def load(cls, run: Path | str) -> "Preparation":
        """Loads the preparation of the data of a run.

        Arguments:
            run: The folder of a run.

        Raises:
            ValueError: If its ``data.json`` is missing or damaged.
        """
        path = check_path("run", run).expanduser() / "data.json"
        if not os.path.exists(path):
            raise ValueError(
                f"Expected the folder of a run with a data.json, got '{run}' without one"
            )
        try:
            return cls.from_dict(read_json(path, largest=_LARGEST))
        except ValueError as error:
            raise ValueError(
                f"Expected '{path}' to describe prepared data, got a damaged file: {error}"
            ) from None

    @classmethod
    def from_dict(cls, values: Any) -> "Preparation":
        """Returns the preparation with the values of :meth:`to_dict`.

        Raises:
            ValueError: If the values are not those of a preparation.
        """
        form = values.get("format") if isinstance(values, dict) else values
        if form not in (_FORMAT, _WITH_COVARIATES, _WITH_SCHEMA, _UNSIGNED):
            raise ValueError(f"Expected the format {_FORMAT!r}, got {form!r:.50}")
        signature = set() if form == _UNSIGNED else {"sha256"}
        keys = (*_KEYS, *_MORE_KEYS.get(form, ()))
        if set(values) != set(keys) | signature:
            raise ValueError(f"Expected the keys {keys}, got {sorted(values)}")
        if signature and values["sha256"] != _checksum({key: values[key] for key in keys}):
            raise ValueError("Expected values that match their checksum, got other values")
        shape = values["event_shape"]
        if not isinstance(shape, list) or not shape or not all(map(_is_size, shape)):
            raise ValueError(f"Expected event_shape to be positive integers, got {shape!r:.50}")
        columns = values["columns"]
        if columns is not None and not (
            isinstance(columns, list)
            and [len(columns)] == shape
            and all(isinstance(name, str) for name in columns)
        ):
            raise ValueError(f"Expected columns to be {shape} names, got {columns!r:.50}")
        return cls(
            tuple(shape),
            check_protocol(values["binarize"]),
            None if columns is None else tuple(columns),
            None if values["scaling"] is None else _parse_scaling(values["scaling"], tuple(shape)),
            None
            if values.get("covariates") is None and form != _WITH_COVARIATES
            else Covariates.from_list(values["covariates"]),
            _parse_schema(values["schema"], columns) if form == _WITH_SCHEMA else None,
        )


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _parse_scaling(values: Any, shape: tuple[int, ...]) -> Scaling:
    """Returns a scaling from plain values, or raises a ``ValueError`` for other values."""
    if not isinstance(values, dict) or set(values) != set(Scaling._fields):
        raise ValueError(f"Expected scaling to be loc and scale, got {values!r:.50}")
    tensors = {}
    for name, numbers in values.items():
        try:
            tensors[name] = torch.tensor(numbers, dtype=torch.float64)
        except (OverflowError, TypeError, ValueError, RuntimeError):
            raise ValueError(f"Expected {name} to be numbers, got {numbers!r:.50}") from None
        if tensors[name].shape != shape or not bool(tensors[name].isfinite().all()):
            raise ValueError(f"Expected {name} to be finite, of shape {shape}, got {numbers!r:.50}")
    if not bool((tensors["scale"] > 0).all()):
        raise ValueError("Expected scale to be positive, got zero or less")
    return Scaling(**tensors)


def _parse_schema(values: Any, columns: Any) -> Schema:
    schema = Schema.from_list(values)
    if columns is None or list(schema.names) != list(columns):
        raise ValueError(f"Expected a schema of the columns {columns!r:.50}, got other names")
    return schema


def check_protocol(binarize: str) -> str:
    """Returns the protocol, or raises a ``ValueError`` for an unknown name."""
    return str(check_choice("binarize", binarize, PROTOCOLS))
