"""The report of a run: a page that needs no other file, and its pictures."""

import base64
import io
import math
import re
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib.figure

from pyro_vae.files.atomic import write_whole
from pyro_vae.progress import Progress

__all__ = ["Figure", "Picture", "Report", "write"]


class Figure(NamedTuple):
    """A number with what it means.

    Attributes:
        name: Its name.
        value: Its value, or ``None`` where there is none.
        unit: Its unit, or an empty string for a count.
        standard_error: Its standard error in the same unit, if one is known.
        meaning: One sentence for a reader who does not know it.
    """

    name: str
    value: float | None
    unit: str
    standard_error: float | None
    meaning: str


class Picture(NamedTuple):
    """A picture with what it shows.

    Attributes:
        file: The name of its file, which ends in ``.png``.
        title: Its title.
        caption: One sentence on what it shows.
        figure: The drawing.
    """

    file: str
    title: str
    caption: str
    figure: matplotlib.figure.Figure


class Report(NamedTuple):
    """What a report says of a run.

    Attributes:
        title: What was trained on what.
        settings: All that it takes to do it again, name by name.
        figures: The figures, the one that sums the run up first.
        warnings: What a reader should know before trusting the figures.
        pictures: The pictures, in the order in which they are shown.
        history: One row an epoch.
    """

    title: str
    settings: Mapping[str, str]
    figures: Sequence[Figure]
    warnings: Sequence[str]
    pictures: Sequence[Picture]
    history: Sequence[Mapping[str, float]]


def write(report: Report, folder: Path | str) -> Path:
    """Writes ``report.html`` and ``figures/*.png`` to a folder, each file whole or not at all.

    The page holds its pictures and style, and loads nothing from anywhere.

    Arguments:
        report: What to say.
        folder: Where to; made if it does not exist.

    Returns:
        The path of the page.

    Raises:
        ValueError: If two pictures have one file name, or a name is no plain ``*.png``.

    Example:
        >>> import tempfile
        >>> figure = Figure("ELBO", -18.2, "nats per datum", 0.2, "A lower bound.")
        >>> report = Report("digits", {"Seed": "0"}, [figure], [], [], [])
        >>> write(report, tempfile.mkdtemp()).name
        'report.html'
    """
    if not isinstance(report, Report):
        raise ValueError(f"Expected report to be a Report, got {type(report).__name__}")
    if not isinstance(folder, (str, Path)) or not str(folder):
        raise ValueError(f"Expected folder to be a path, got {folder!r}")
    _check_files([picture.file for picture in report.pictures])
    page = Path(folder) / "report.html"
    (page.parent / "figures").mkdir(parents=True, exist_ok=True)
    pngs = []
    with Progress("writing the report", len(report.pictures), "figures") as progress:
        for picture in report.pictures:
            pngs.append(_to_png(picture.figure))
            progress.advance()
    for picture, png in zip(report.pictures, pngs, strict=True):
        write_whole(page.parent / "figures" / picture.file, png)
    write_whole(page, _render(report, pngs).encode())
    return page


def _check_files(names: Sequence[str]) -> None:
    """Raises a ``ValueError`` for names that would leave the folder or overwrite each other."""
    for index, name in enumerate(names):
        if not re.fullmatch(r"\w[\w.-]*\.png", name) or name in names[:index]:
            raise ValueError(f"Expected file to be a plain name of its own in .png, got {name!r}")


def _to_png(figure: matplotlib.figure.Figure) -> bytes:
    """Returns a drawing as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _render(report: Report, pngs: Sequence[bytes]) -> str:
    """Returns the page, with its pictures as PNG files inside."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(written=_written, error=_error, available=_available)
    source = resources.files("pyro_vae.report").joinpath("page.html.jinja").read_text("utf-8")
    shown = [p._asdict() | _embed(png) for p, png in zip(report.pictures, pngs, strict=True)]
    page = environment.from_string(source)
    return page.render(report=report, pictures=shown, summary=_summary(report))


def _embed(png: bytes) -> dict[str, str | int]:
    """Returns a PNG file as an address that holds it, and the size that is written at its start."""
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {"source": source, "width": width, "height": height}


def _summary(report: Report) -> str:
    """Returns the run in one sentence."""
    epochs = len(report.history)
    after = f" after {epochs:,} epoch{'s' * (epochs != 1)} of training" if epochs else ""
    if not report.figures:
        return f"Nothing was measured{after}."
    first = report.figures[0]
    name = first.name if first.name[:2].isupper() else first.name[:1].lower() + first.name[1:]
    if not _available(first.value):
        return f"The {name} is {_written(first)}{after}."
    said = " ".join(filter(None, [_written(first), _error(first), first.unit]))
    return f"The {name} is {said}{after}."


def _available(value: float | None) -> bool:
    """Tells whether a number is known."""
    return value is not None and not math.isnan(value)


def _written(figure: Figure) -> str:
    """Returns a value with the digits that mean something."""
    return _number(figure.value, decimals(figure))


def _error(figure: Figure) -> str:
    """Returns a standard error to the digits of its value, or nothing where none is known."""
    if figure.standard_error is None or not _available(figure.value):
        return ""
    return f"±\N{NO-BREAK SPACE}{_number(figure.standard_error, decimals(figure))}"


def decimals(figure: Figure) -> int:
    """Returns the decimals that show a digit of the error, two of nats, three digits of others."""
    value, spread = abs(figure.value or 0.0), figure.standard_error or 0.0
    if 0 < spread < math.inf:
        return min(6, max(2, -math.floor(math.log10(spread))))
    if "nats" in figure.unit:
        return 2
    if not math.isfinite(value) or float(value).is_integer():
        return 0
    return min(6, max(0, 2 - math.floor(math.log10(value))))


def _number(value: float | None, decimals: int) -> str:
    """Returns a number as it is printed: a real minus, and none before zero."""
    if value is None or math.isnan(value):
        return "not available"
    # Adding zero takes the sign from a negative zero.
    text = f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("inf", "∞")
    return text.replace("-", "\N{MINUS SIGN}")
