"""Axes that a notebook shows as their figure."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["NotebookAxes", "NotebookFigure"]


class NotebookFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


class NotebookAxes(Axes):
    """Axes that a notebook shows as their figure, if they are the last value of a cell."""

    def _repr_png_(self) -> bytes | None:
        figure = self.get_figure(root=True)
        return figure._repr_png_() if isinstance(figure, NotebookFigure) else None
