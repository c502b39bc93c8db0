"""HTML of results for notebooks: no scripts, and colours that suit light and dark pages."""

from collections.abc import Mapping, Sequence

from pyro_vae.files.html import build_environment

__all__ = ["render_curves", "render_list", "render_table"]

COLOURS = ("#4a90d9", "#e07b39", "#8a8f98")
"""The colours of lines, which both light and dark pages show."""

_WIDTH, _HEIGHT, _MARGIN = 320, 90, 4

_TABLE = """\
<table>
{% if caption %}
<caption style="text-align: left">{{ caption }}</caption>
{% endif %}
{% if head %}
<thead><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
{% endif %}
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td style="text-align: {{ 'left' if loop.index0 < left else 'right' }}">\
{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
"""

_LIST = "<ul>{% for text in texts %}<li>{{ text }}</li>{% endfor %}</ul>"

_CURVES = """\
<svg width="{{ width }}" height="{{ height }}" viewBox="0 0 {{ width }} {{ height }}" role="img">
{% for line in lines %}
<polyline points="{{ line.points }}" fill="none" stroke="{{ line.colour }}" stroke-width="1.5"/>
{% endfor %}
</svg>
<div>{% for line in lines %}<span style="color: {{ line.colour }}">&#9473; {{ line.name }}</span> \
{% endfor %}</div>
"""


def render_table(
    rows: Sequence[Sequence[str]], head: Sequence[str] = (), *, left: int = 1, caption: str = ""
) -> str:
    """Returns a table, with all texts escaped.

    Arguments:
        rows: The cells.
        head: The titles of the columns.
        left: The number of first columns that are aligned left.
        caption: A text above the table.

    Example:
        >>> "a &lt; b" in render_table([["a < b", "1"]])
        True
    """
    template = build_environment().from_string(_TABLE)
    return template.render(rows=rows, head=head, left=left, caption=caption)


def render_list(texts: Sequence[str]) -> str:
    """Returns a list of texts, all escaped.

    Example:
        >>> render_list(["a < b"])
        '<ul><li>a &lt; b</li></ul>'
    """
    template = build_environment().from_string(_LIST)
    return template.render(texts=texts)


def render_curves(series: Mapping[str, Sequence[float]]) -> str:
    """Returns lines over a common axis, as SVG with a legend.

    As in :func:`pyro_vae.plots.curves`, of more than 20 values the lowest 5 % lie below the frame,
    so that the others are readable.

    Arguments:
        series: Up to three lines by their names, each of the same number of finite values.

    Example:
        >>> render_curves({"ELBO": [-3.0, -2.0, -1.0]}).count("polyline")
        1
    """
    values = sorted(value for line in series.values() for value in line)
    low = values[len(values) // 20 if len(values) > 20 else 0]
    lines = [
        {"name": name, "colour": colour, "points": _place(line, low, values[-1])}
        for (name, line), colour in zip(series.items(), COLOURS, strict=False)
    ]
    template = build_environment().from_string(_CURVES)
    return template.render(lines=lines, width=_WIDTH, height=_HEIGHT)


def _place(line: Sequence[float], low: float, high: float) -> str:
    """Returns the points of a line, in the coordinates of the drawing."""
    across = (_WIDTH - 2 * _MARGIN) / max(len(line) - 1, 1)
    up = (_HEIGHT - 2 * _MARGIN) / max(high - low, 1e-9)
    return " ".join(
        f"{_MARGIN + across * step:.1f},{_HEIGHT - _MARGIN - up * (value - low):.1f}"
        for step, value in enumerate(line)
    )
