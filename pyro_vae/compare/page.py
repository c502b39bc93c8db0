"""The comparison as a self-contained page, which loads no other file and needs no network."""

import base64
import os
import re
import struct
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from pyro_vae.compare import formatting
from pyro_vae.compare.comparison import Comparison, Group
from pyro_vae.compare.configurations import METRICS
from pyro_vae.compare.differences import PAIRED_METRICS
from pyro_vae.compare.factors import is_numeric
from pyro_vae.compare.runs import RunRecord
from pyro_vae.compare.study_figures import draw_study
from pyro_vae.files.html import build_environment, embed_json, format_number, hash_script
from pyro_vae.files.untrusted import read_bytes

__all__ = ["build_page"]

_IMAGE_FILES = ("samples.png", "reconstructions.png")

_LARGEST_FILE = 4 * 2**20
_LARGEST_SIDE = 10_000

_ILLUSTRATED_SETS = 4
"""The number of comparable sets with images: each adds some tens of kilobytes to the page."""

_COLUMNS = (
    ("log_evidence", "Log evidence", "nats per datum", 2),
    ("elbo", "ELBO", "nats per datum", 2),
    ("rate", "Rate", "nats per datum", 2),
    ("distortion", "Distortion", "nats per datum", 2),
    ("active_units", "Active units", "", 0),
    ("effective_sample_size_min", "Smallest ESS", "samples", 1),
    ("parameters", "Parameters", "", 0),
    ("epochs", "Epochs", "", 0),
    ("seconds", "Training time", "s", 1),
)
"""The metrics in the table of runs: key, name, unit, decimals."""


class _Image(NamedTuple):
    """An image of a run.

    Attributes:
        title: Its content, and the name of the run.
        source: A ``data:`` URL.
        width: Its width, in pixels.
        height: Its height, in pixels.
    """

    title: str
    source: str
    width: int
    height: int


class _Example(NamedTuple):
    """A run with its images.

    Attributes:
        title: Its rank, best or worst, and its comparable set.
        caption: Its levels and log evidence.
        images: Its images.
    """

    title: str
    caption: str
    images: list[_Image]


def build_page(comparison: Comparison, out: Path, factor: str | None = None) -> str:
    """Returns the page.

    Arguments:
        comparison: The comparison.
        out: The folder of the page; links to reports are relative to it.
        factor: The factor by which the plots are grouped at first; by default that with the most
            levels.

    Raises:
        ValueError: If no factor has this name.
    """
    environment = build_environment()
    environment.filters.update(format_mean=formatting.format_mean)
    scripts = [
        _read_asset(name)
        for name in ("assets/echarts.min.js", "assets/tabulator.min.js", "page.js")
    ]
    styles = [_read_asset(name) for name in ("assets/tabulator_simple.min.css", "page.css")]
    return environment.from_string(_read_text("page.html.jinja")).render(
        comparison=comparison,
        data=embed_json(_build_data(comparison, out, factor)),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(map(hash_script, scripts)),
        styles=[Markup(style) for style in styles],
        examples=list(_find_examples(comparison)),
        studies=[(study, draw_study(study)) for study in comparison.studies],
        metrics=METRICS,
        paired_metrics=PAIRED_METRICS,
        names=formatting.NAMES,
        units=formatting.UNITS,
    )


def _read_text(name: str) -> str:
    return resources.files("pyro_vae.compare").joinpath(name).read_text("utf-8")


def _read_asset(name: str) -> str:
    """Returns a script or style without its link to a source map, which browsers would load."""
    return re.sub(r"/[/*]# sourceMappingURL=\S+( \*/)?", "", _read_text(name))


def _build_data(comparison: Comparison, out: Path, factor: str | None) -> dict[str, Any]:
    """Returns the data of the table of runs and of the plots."""
    set_of_run = {index: i for i, group in enumerate(comparison.groups) for index in group.runs}
    start = comparison.choose_factor(comparison.groups[0], factor) if comparison.groups else None
    return {
        "start": comparison.factors.index(start) if start else 0,
        "factors": [
            {
                "name": factor.name,
                "key": factor.key,
                "levels": factor.levels,
                "numbers": all(map(is_numeric, factor.levels)),
            }
            for factor in comparison.factors
        ],
        "figures": [
            dict(zip(("key", "name", "unit", "decimals"), column, strict=True))
            for column in _COLUMNS
            if any(run.number(column[0]) is not None for run in comparison.runs)
        ],
        "sets": [group.title for group in comparison.groups],
        "runs": [
            {
                "name": run.name,
                "report": _link_report(run, out),
                "state": run.state,
                "set": set_of_run.get(index),
                "seed": run.seed,
                "levels": [factor.by_run[index] for factor in comparison.factors],
                "figures": {key: run.number(key) for key, *_ in _COLUMNS},
            }
            for index, run in enumerate(comparison.runs)
        ],
    }


def _link_report(run: RunRecord, out: Path) -> str | None:
    """Returns the URL of a run's report relative to the page, or ``None`` without a report."""
    report = run.folder / "report.html"
    if not report.is_file():
        return None
    return quote(os.fsencode(Path(os.path.relpath(report, out)).as_posix()))


def _find_examples(comparison: Comparison) -> Iterator[_Example]:
    """Yields the best and the worst run of each comparable set, if they have images."""
    for group in comparison.groups[:_ILLUSTRATED_SETS]:
        indices = [i for i in group.runs if comparison.runs[i].number("log_evidence") is not None]
        indices.sort(key=lambda index: -comparison.runs[index].metrics["log_evidence"])
        ends = [("Best", indices[0])] if indices else []
        ends += [("Worst", indices[-1])] if len(indices) > 1 else []
        of = f" of {group.title}" if len(comparison.groups) > 1 else ""
        for rank, index in ends:
            run = comparison.runs[index]
            paths = [run.folder / "figures" / name for name in _IMAGE_FILES]
            images = [image for path in paths if (image := _read_image(path, run.name))]
            if images:
                caption = _build_caption(comparison, group, index)
                yield _Example(f"{rank} run{of}", caption, images)


def _build_caption(comparison: Comparison, group: Group, index: int) -> str:
    """Returns the levels and the log evidence of a run."""
    run = comparison.runs[index]
    varying = [f for f in comparison.factors if f in group.factors or f.key == "seed"]
    levels = ", ".join(f"{factor.name}={factor.by_run[index]}" for factor in varying)
    evidence = format_number(run.number("log_evidence"))
    return f"{levels or run.name}: {evidence}{formatting.NBSP}nats per datum"


def _read_image(path: Path, run: str) -> _Image | None:
    """Returns an image with the size in the header of its PNG file, or ``None`` without one."""
    try:
        png = read_bytes(path, largest=_LARGEST_FILE)
    except ValueError:
        return None
    if not png.startswith(b"\x89PNG") or len(png) < 24:
        return None
    width, height = struct.unpack(">II", png[16:24])
    if not 0 < max(width, height) <= _LARGEST_SIDE:
        return None
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return _Image(f"{path.stem.capitalize()} of {run}", source, width, height)
