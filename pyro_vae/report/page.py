"""The report of a run: a self-contained page, and files with its figures."""

import base64
import io
import math
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from pyro_vae.display.text import describe_fields
from pyro_vae.files.atomic import write_whole
from pyro_vae.files.html import build_environment, embed_json, format_number, hash_script
from pyro_vae.progress import Progress

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["Figure", "LatentMap", "Metric", "Report", "Table", "write"]


_MAX_PNG = 400_000
"""The most bytes of a PNG file that the page embeds as it is."""


class Metric(NamedTuple):
    """A metric with its explanation.

    Attributes:
        name: Its name.
        value: Its value, or ``None`` if it is missing.
        unit: Its unit, or an empty string for a count.
        standard_error: Its standard error in the same unit, or ``None``.
        meaning: Its explanation in one sentence.
    """

    name: str
    value: float | None
    unit: str
    standard_error: float | None
    meaning: str


class Figure(NamedTuple):
    """A plot with its caption.

    Attributes:
        file: The name of its file, which ends in ``.png``.
        title: Its title.
        caption: Its description in one sentence.
        figure: The Matplotlib figure.
    """

    file: str
    title: str
    caption: str
    figure: "matplotlib.figure.Figure"


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        title: Its title.
        caption: Its description.
        header: The titles of the columns.
        rows: The cells, row by row.
    """

    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class LatentMap(NamedTuple):
    """A map of embeddings, which shows data and decoded points; it needs JavaScript.

    Attributes:
        caption: Its description.
        data: The values for the script of the page; ``None`` for a map that the latents do not
            have.
    """

    caption: str
    data: Mapping[str, Any] | None


class Report(NamedTuple):
    """The content of a report.

    Attributes:
        title: The data, the likelihood, the prior and the posterior.
        settings: The settings needed to repeat the run, by their names.
        metrics: The metrics, starting with the one for the summary.
        warnings: Warnings about the validity of the metrics.
        figures: The plots, in the order in which they are shown.
        history: One row per epoch.
        tables: Tables, which are shown below the plots.
        latent_map: The map of the embeddings, or ``None``.
    """

    title: str
    settings: Mapping[str, str]
    metrics: Sequence[Metric]
    warnings: Sequence[str]
    figures: Sequence[Figure]
    history: Sequence[Mapping[str, float]]
    tables: Sequence[Table] = ()
    latent_map: LatentMap | None = None

    def __repr__(self) -> str:
        return describe_fields(self)


def write(report: Report, folder: Path | str) -> Path:
    """Writes ``report.html`` and ``figures/*.png`` to a folder, each file atomically.

    The page embeds its plots and style, and loads no other file.

    Arguments:
        report: The content.
        folder: The folder; created if it is missing.

    Returns:
        The path of the page.

    Raises:
        ValueError: If two plots have the same file name, or a name is not a plain ``*.png``.

    Example:
        >>> import tempfile
        >>> metric = Metric("ELBO", -18.2, "nats per datum", 0.2, "A lower bound.")
        >>> report = Report("digits", {"Seed": "0"}, [metric], [], [], [])
        >>> write(report, tempfile.mkdtemp()).name
        'report.html'
    """
    if not isinstance(report, Report):
        raise ValueError(f"Expected report to be a Report, got {type(report).__name__}")
    if not isinstance(folder, (str, Path)) or not str(folder):
        raise ValueError(f"Expected folder to be a path, got {folder!r}")
    _check_files([figure.file for figure in report.figures])
    page = Path(folder) / "report.html"
    (page.parent / "figures").mkdir(parents=True, exist_ok=True)
    pngs = []
    with Progress("writing the report", len(report.figures), "figures") as progress:
        for figure in report.figures:
            pngs.append(_to_png(figure.figure))
            progress.advance()
    for figure, png in zip(report.figures, pngs, strict=True):
        write_whole(page.parent / "figures" / figure.file, png)
    write_whole(page, _render(report, pngs).encode())
    return page


def _check_files(names: Sequence[str]) -> None:
    """Raises a ``ValueError`` for names outside the folder and for duplicates."""
    for index, name in enumerate(names):
        if not re.fullmatch(r"\w[\w.-]*\.png", name) or name in names[:index]:
            raise ValueError(f"Expected file to be a unique plain name in .png, got {name!r}")


def _to_png(figure: "matplotlib.figure.Figure") -> bytes:
    """Returns a figure as the bytes of a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Signs that the fonts lack are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _render(report: Report, pngs: Sequence[bytes]) -> str:
    """Returns the page, with its plots embedded as PNG files."""
    environment = build_environment()
    environment.filters.update(
        format_value=_format_value, format_error=_format_error, is_available=_is_available
    )
    plots = [p._asdict() | _embed_png(png) for p, png in zip(report.figures, pngs, strict=True)]
    values = None if report.latent_map is None else report.latent_map.data
    return environment.from_string(_read_text("page.html.jinja")).render(
        report=report,
        plots=plots,
        summary=_summarize(report),
        map_data=None if values is None else embed_json(values),
        script=Markup(_read_text("map.js")),
        script_hash=Markup(hash_script(_read_text("map.js"))),
    )


def _read_text(name: str) -> str:
    return resources.files("pyro_vae.report").joinpath(name).read_text("utf-8")


def _embed_png(png: bytes) -> dict[str, str | int]:
    """Returns a PNG file as a data URL, with its width and height in pixels.

    Photographs and noise, which PNG compresses badly, are embedded as JPEG.
    """
    width, height = struct.unpack(">II", png[16:24])
    kind, content = ("png", png) if len(png) <= _MAX_PNG else ("jpeg", _to_jpeg(png))
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"source": source, "width": width, "height": height}


def _to_jpeg(png: bytes) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(file, "jpeg", quality=85)
    return file.getvalue()


def _summarize(report: Report) -> str:
    """Returns the run in one sentence."""
    epochs = len(report.history)
    after = f" after {epochs:,} epoch{'s' * (epochs != 1)} of training" if epochs else ""
    if not report.metrics:
        return f"No metric was computed{after}."
    first = report.metrics[0]
    name = first.name if first.name[:2].isupper() else first.name[:1].lower() + first.name[1:]
    if not _is_available(first.value):
        return f"The {name} is {_format_value(first)}{after}."
    value = " ".join(filter(None, [_format_value(first), _format_error(first), first.unit]))
    return f"The {name} is {value}{after}."


def _is_available(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _format_value(metric: Metric) -> str:
    """Returns the value of a metric as text, with its significant digits."""
    return _format_number(metric.value, metric)


def _format_error(metric: Metric) -> str:
    """Returns the standard error of a metric as text, empty if it is unknown."""
    if metric.standard_error is None or not _is_available(metric.value):
        return ""
    return f"±\N{NO-BREAK SPACE}{_format_number(metric.standard_error, metric)}"


def _format_number(value: float | None, metric: Metric) -> str:
    return format_number(value, choose_decimals(metric), missing="not available")


def choose_decimals(metric: Metric) -> int:
    """Returns the number of decimals of a metric.

    They show one digit of the standard error. Without one they are two for nats, and show three
    significant digits otherwise.
    """
    value, spread = abs(metric.value or 0.0), metric.standard_error or 0.0
    if 0 < spread < math.inf:
        return min(6, max(2, -math.floor(math.log10(spread))))
    if "nats" in metric.unit:
        return 2
    if not math.isfinite(value) or float(value).is_integer():
        return 0
    return min(6, max(0, 2 - math.floor(math.log10(value))))
