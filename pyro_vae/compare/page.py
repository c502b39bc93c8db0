"""The comparison as a page that needs no other file, and loads nothing from anywhere."""

import base64
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from pyro_vae.compare import formatting
from pyro_vae.compare.comparison import Comparison, Group
from pyro_vae.compare.configurations import METRICS
from pyro_vae.compare.differences import METRICS as COMPARED
from pyro_vae.compare.factors import number
from pyro_vae.compare.runs import Run, seed
from pyro_vae.files.atomic import strict_json
from pyro_vae.files.untrusted import read_bytes

__all__ = ["page"]

_PICTURES = ("samples.png", "reconstructions.png")

_LARGEST_PICTURE = 4 * 2**20
_WIDEST_PICTURE = 10_000

_SHOWN_SETS = 4
"""Of how many comparable sets pictures are shown: each is some tens of kilobytes in the page."""

_FIGURES = (
    ("log_evidence", "Log evidence", "nats per datum", 2),
    ("elbo", "ELBO", "nats per datum", 2),
    ("rate", "Rate", "nats per datum", 2),
    ("distortion", "Distortion", "nats per datum", 2),
    ("active_units", "Active units", "", 0),
    ("effective_sample_size_min", "Least ESS", "samples", 1),
    ("parameters", "Parameters", "", 0),
    ("epochs", "Epochs", "", 0),
    ("seconds", "Training", "s", 1),
)
"""The figures in the table of runs: key, name, unit, decimals."""


class _Picture(NamedTuple):
    """A picture of a run.

    Attributes:
        title: What it shows, and of which run.
        source: An address that holds it.
        width: Its width.
        height: Its height.
    """

    title: str
    source: str
    width: int
    height: int


class _Shown(NamedTuple):
    """A run whose pictures are shown.

    Attributes:
        title: What the run is: the best or the worst, of what.
        caption: Its levels and log evidence.
        pictures: The pictures.
    """

    title: str
    caption: str
    pictures: list[_Picture]


def page(found: Comparison, out: Path) -> str:
    """Returns the page.

    Arguments:
        found: The comparison.
        out: The folder of the page, which links to reports of runs are relative to.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(written=formatting.written)
    scripts = [
        _asset(name) for name in ("assets/echarts.min.js", "assets/tabulator.min.js", "page.js")
    ]
    styles = [_asset(name) for name in ("assets/tabulator_simple.min.css", "page.css")]
    return environment.from_string(_text_of("page.html.jinja")).render(
        found=found,
        data=_embedded(_data(found, out)),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        styles=[Markup(style) for style in styles],
        shown=list(_pictures(found)),
        metrics=METRICS,
        compared=COMPARED,
        names=formatting.NAMES,
        units=formatting.UNITS,
    )


def _text_of(name: str) -> str:
    """Returns a file of this package."""
    return resources.files("pyro_vae.compare").joinpath(name).read_text("utf-8")


def _asset(name: str) -> str:
    """Returns a script or style as it stands in the page.

    What it says of a source map is left out, which a browser's tools would look for.
    """
    return re.sub(r"/[/*]# sourceMappingURL=\S+( \*/)?", "", _text_of(name))


def _digest(script: str) -> str:
    """Returns what allows a script in a page, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _embedded(values: Any) -> Markup:
    """Returns JSON that no text in it can end early when it stands in a page."""
    text = json.dumps(json.loads(strict_json(values)), separators=(",", ":"))
    return Markup(text.replace("<", r"\u003c"))


def _data(found: Comparison, out: Path) -> dict[str, Any]:
    """Returns what the table of runs and the plots are made of."""
    sets = {index: place for place, group in enumerate(found.groups) for index in group.runs}
    return {
        "factors": [
            {
                "name": factor.name,
                "key": factor.key,
                "levels": factor.levels,
                "numbers": all(map(number, factor.levels)),
            }
            for factor in found.factors
        ],
        "figures": [
            dict(zip(("key", "name", "unit", "decimals"), figure, strict=True))
            for figure in _FIGURES
            if any(run.number(figure[0]) is not None for run in found.runs)
        ],
        "sets": [group.title for group in found.groups],
        "runs": [
            {
                "name": run.name,
                "report": _link(run, out),
                "state": run.state,
                "set": sets.get(index),
                "seed": seed(run),
                "levels": [factor.of[index] for factor in found.factors],
                "figures": {key: run.number(key) for key, *_ in _FIGURES},
            }
            for index, run in enumerate(found.runs)
        ],
    }


def _link(run: Run, out: Path) -> str | None:
    """Returns where the report of a run lies, seen from the page, or ``None`` if there is none."""
    report = run.folder / "report.html"
    if not report.is_file():
        return None
    return quote(os.fsencode(Path(os.path.relpath(report, out)).as_posix()))


def _pictures(found: Comparison) -> Iterator[_Shown]:
    """Yields the best and the worst run of each comparable set, with their pictures."""
    for group in found.groups[:_SHOWN_SETS]:
        known = [i for i in group.runs if found.runs[i].number("log_evidence") is not None]
        ranked = sorted(known, key=lambda index: -found.runs[index].metrics["log_evidence"])
        ends = [("Best", ranked[0])] if ranked else []
        ends += [("Worst", ranked[-1])] if len(ranked) > 1 else []
        of = f" of {group.title}" if len(found.groups) > 1 else ""
        for word, index in ends:
            run = found.runs[index]
            files = [run.folder / "figures" / name for name in _PICTURES]
            drawn = [made for file in files if (made := _picture(file, run.name)) is not None]
            if drawn:
                yield _Shown(f"{word} run{of}", _caption(found, group, index), drawn)


def _caption(found: Comparison, group: Group, index: int) -> str:
    """Returns the levels and the log evidence of a run."""
    varying = [f for f in found.factors if f in group.factors or f.key == "seed"]
    levels = ", ".join(f"{factor.name}={factor.of[index]}" for factor in varying)
    evidence = formatting.number(found.runs[index].number("log_evidence"))
    return f"{levels or found.runs[index].name}: {evidence}{formatting.NBSP}nats per datum"


def _picture(file: Path, run: str) -> _Picture | None:
    """Returns a picture with the size that a PNG file has at its start, or ``None``."""
    try:
        png = read_bytes(file, largest=_LARGEST_PICTURE)
    except ValueError:
        return None
    if not png.startswith(b"\x89PNG") or len(png) < 24:
        return None
    width, height = struct.unpack(">II", png[16:24])
    if not 0 < max(width, height) <= _WIDEST_PICTURE:
        return None
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return _Picture(f"{file.stem.capitalize()} of {run}", source, width, height)
