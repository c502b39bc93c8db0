"""Data in the map of a report, in three small forms: images, lines, and cells of a table."""

import base64
import io
import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_vae.report.drawing import is_image, shorten_text, to_numpy
from pyro_vae.report.series_figures import is_series
from pyro_vae.report.table_content import format_cell, get_schema
from pyro_vae.report.trained_run import TrainedRun

__all__ = ["Cells", "Images", "Lines", "View", "choose_view"]

_LARGEST_SIDE = 32
_LONGEST_LINE = 64
_MAX_CELLS = 12


class View(Protocol):
    """A form of data that the page shows.

    Attributes:
        size: The bytes of one datum in the page, about.
    """

    size: int

    def add_rows(self, x: Tensor, reconstructions: Tensor) -> None:
        """Adds data, with NaN for missing values, and their reconstructions."""

    def add_grid(self, decoded: Tensor) -> None:
        """Adds decoded points of the map."""

    def build(self) -> dict[str, Any]:
        """Returns the values for the page."""


def choose_view(run: TrainedRun) -> View:
    """Returns the form for the data of a run."""
    shape = run.vae.event_shape
    if is_series(run.vae):
        return Lines(shape[0], shape[1])
    if is_image(shape):
        return Images(shape)
    if run.data.columns is None and len(shape) == 1 and shape[0] > _MAX_CELLS:
        return Lines(shape[0])
    return Cells(run)


class Images:
    """Images of at most 32 pixels a side, clipped to [0, 1], in one PNG file for each purpose."""

    def __init__(self, event_shape: torch.Size) -> None:
        height, width = event_shape[-2:]
        factor = max(1.0, max(height, width) / _LARGEST_SIDE)
        self.shape = max(1, round(height / factor)), max(1, round(width / factor))
        self.size = math.prod(self.shape) * (event_shape[0] if len(event_shape) == 3 else 1)
        self._parts: dict[str, list[Any]] = {"data": [], "reconstructions": [], "grid": []}

    def add_rows(self, x: Tensor, reconstructions: Tensor) -> None:
        """Adds images and their reconstructions."""
        self._add("data", x)
        self._add("reconstructions", reconstructions)

    def add_grid(self, decoded: Tensor) -> None:
        """Adds decoded images."""
        self._add("grid", decoded)

    def _add(self, name: str, x: Tensor) -> None:
        x = (x.unsqueeze(1) if x.dim() == 3 else x).clamp(0, 1)
        if x.shape[-2:] != self.shape:
            x = torch.nn.functional.interpolate(x, self.shape, mode="area")
        self._parts[name].append(to_numpy(x.movedim(1, -1)))

    def build(self) -> dict[str, Any]:
        """Returns the images as data URLs, and their size in pixels."""
        height, width = self.shape
        sprites = {name: _draw_sprite(parts) for name, parts in self._parts.items() if parts}
        return {"kind": "images", "height": height, "width": width, **sprites}


def _draw_sprite(parts: list[Any]) -> dict[str, Any]:
    """Returns images side by side in one PNG file; missing pixels are transparent."""
    from PIL import Image

    images = np.concatenate(parts)
    missing = np.isnan(images).any(-1, keepdims=True)
    pixels = np.round(np.nan_to_num(images) * 255).astype(np.uint8)
    if missing.any():
        pixels = np.concatenate([pixels, np.where(missing, 0, 255).astype(np.uint8)], -1)
    count, height, width, channels = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = pixels
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    file = io.BytesIO()
    Image.frombytes(mode, (columns * width, rows * height), sheet.tobytes()).save(file, "png")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"source": source, "columns": columns}


class Lines:
    """Vectors as lines of at most 64 values, which are means of neighbours in longer vectors."""

    def __init__(self, length: int, features: int = 1) -> None:
        self.length, self.features = length, features
        self.size = 7 * min(length, _LONGEST_LINE)
        self._data: list[Any] = []
        self._reconstructions: list[Any] = []
        self._grid: list[Any] = []

    def add_rows(self, x: Tensor, reconstructions: Tensor) -> None:
        """Adds vectors and their reconstructions."""
        self._data += self._shorten(x)
        self._reconstructions += self._shorten(reconstructions)

    def add_grid(self, decoded: Tensor) -> None:
        """Adds decoded vectors."""
        self._grid += self._shorten(decoded)

    def _shorten(self, x: Tensor) -> list[list[float]]:
        values = x.double().reshape(len(x), self.length, self.features)[..., 0]
        if self.length > _LONGEST_LINE:
            pool = torch.nn.functional.adaptive_avg_pool1d
            values = pool(values.unsqueeze(1), _LONGEST_LINE).squeeze(1)
        return [[float(f"{value:.4g}") for value in row] for row in values.tolist()]

    def build(self) -> dict[str, Any]:
        """Returns the values of each vector, and its length before any reduction."""
        return {
            "kind": "lines",
            "length": self.length,
            "feature": "first of several features" if self.features > 1 else "",
            "data": self._data,
            "reconstructions": self._reconstructions,
            "grid": self._grid,
        }


class Cells:
    """Named values as texts: the first ones of a row, and the largest ones of counts."""

    def __init__(self, run: TrainedRun) -> None:
        self._total = run.vae.event_shape.numel()
        count = min(_MAX_CELLS, self._total)
        self.size = 12 * count
        self._is_count = getattr(run.vae.likelihood, "is_count", False)
        self._scaling = run.data.scaling
        self._columns = None if run.data.columns is None else get_schema(run).columns
        self._names: dict[int, int] = {}
        self._rows: list[Any] = []
        self._grid: list[Any] = []

    def add_rows(self, x: Tensor, reconstructions: Tensor) -> None:
        """Adds rows and their reconstructions."""
        for cells in self._select(x, reconstructions):
            self._rows.append([
                [self._place(i), self._format(i, value, 6), self._format(i, mean, 4)]
                for i, value, mean in cells
            ])  # fmt: skip

    def add_grid(self, decoded: Tensor) -> None:
        """Adds decoded rows."""
        for cells in self._select(decoded):
            self._grid.append([[self._place(i), self._format(i, mean, 4)] for i, mean in cells])

    def _select(self, *rows: Tensor) -> Iterator[Any]:
        """Yields the shown values of each row, with their positions."""
        values = [
            x.double() if self._scaling is None else self._scaling.undo(x.double()) for x in rows
        ]
        flat = [x.flatten(1) for x in values]
        count = min(_MAX_CELLS, self._total)
        if self._is_count and self._total > count:
            index = flat[0].nan_to_num(nan=-1.0).topk(count).indices
        else:
            index = torch.arange(count, device=flat[0].device).expand(len(flat[0]), count)
        shown = [index.tolist(), *(x.gather(1, index).tolist() for x in flat)]
        return (zip(*cells, strict=True) for cells in zip(*shown, strict=True))

    def _place(self, index: int) -> int:
        """Returns the position of a name among those that the page needs."""
        return self._names.setdefault(index, len(self._names))

    def _format(self, index: int, value: float, digits: int) -> str | None:
        if math.isnan(value):
            return None
        value = float(f"{value:.{digits}g}")
        if self._columns is None:
            return f"{value:.6g}"
        return shorten_text(format_cell(self._columns[index], value))

    def build(self) -> dict[str, Any]:
        """Returns rows of texts with the positions of their names, and the names."""
        return {
            "kind": "cells",
            "names": [self._name(index) for index in self._names],
            "total": self._total,
            "largest": self._is_count and self._total > _MAX_CELLS,
            "rows": self._rows,
            "grid": self._grid,
        }

    def _name(self, index: int) -> str:
        return f"x[{index}]" if self._columns is None else shorten_text(self._columns[index].name)
