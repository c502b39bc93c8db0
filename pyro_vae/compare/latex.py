"""The configurations as LaTeX tables, for papers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyro_vae.compare.comparison import Comparison, Group
from pyro_vae.compare.configurations import METRICS, Mean
from pyro_vae.compare.differences import PAIRED_METRICS
from pyro_vae.compare.factors import is_numeric
from pyro_vae.compare.formatting import (
    MARK,
    NAMES,
    NBSP,
    UNITS,
    escape_control_characters,
    format_mean,
)

if TYPE_CHECKING:
    import pandas

__all__ = ["build_latex", "escape_latex"]

_UNIT = "nats per datum"

_SPECIAL = str.maketrans(
    {
        **{sign: rf"\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # At the start of a row, these would be arguments of the command that ends the last one.
        "[": "{[}",
        "*": "{*}",
        NBSP: "~",
        "±": r"$\pm$",
        "\N{MINUS SIGN}": "$-$",
    }
)


def build_latex(comparison: Comparison, metrics: Sequence[str] = PAIRED_METRICS) -> str:
    r"""Returns one LaTeX table per comparable set, for a document with the package booktabs.

    A row is a configuration, the best first, with means and standard errors over seeds. No value
    is bold, because the highest mean need not be the best configuration: the paired differences
    of the page tell which differences are significant.

    Arguments:
        comparison: The comparison.
        metrics: The columns, some of ``"log_evidence"``, ``"elbo"``, ``"rate"``, ``"distortion"``,
            ``"active_units"`` and ``"seconds"``.

    Raises:
        ValueError: If there is no finished run, or a metric is unknown.

    Example:
        >>> from pyro_vae.compare import build_latex, compare
        >>> comparison = compare(["multirun/priors"])  # doctest: +SKIP
        >>> print(build_latex(comparison))  # doctest: +SKIP
        \begin{table}[t]
        ...
    """
    if isinstance(metrics, str) or not metrics or not set(metrics) <= set(METRICS):
        raise ValueError(f"Expected metrics to be some of {', '.join(METRICS)}, got {metrics!r}")
    if not comparison.groups:
        raise ValueError(f"Expected finished runs, got {comparison.count_states()}")
    tables = [
        _build_table(comparison, group, metrics, number)
        for number, group in enumerate(comparison.groups, start=1)
    ]
    return "\n".join([f"% {MARK}; needs \\usepackage{{booktabs}}.", *tables])


def _build_table(comparison: Comparison, group: Group, metrics: Sequence[str], number: int) -> str:
    table = _tabulate(comparison, group, metrics)
    factors = len(group.factors)
    suffix = f"-{number}" if len(comparison.groups) > 1 else ""
    text = table.style.hide(axis="index").to_latex(
        column_format="l" * factors + "r" * (table.shape[1] - factors),
        hrules=True,
        position="t",
        position_float="centering",
        caption=_build_caption(comparison, group, metrics),
        label=f"tab:comparison{suffix}",
    )
    # Three factors and four metrics fit in 5.5 inches.
    start = r"\begin{tabular}"
    return text.replace(start, f"\\small\n\\setlength{{\\tabcolsep}}{{3pt}}\n{start}")


def _tabulate(comparison: Comparison, group: Group, metrics: Sequence[str]) -> "pandas.DataFrame":
    import pandas

    columns = [comparison.factors.index(factor) for factor in group.factors]
    head = [*(factor.name for factor in group.factors), *map(_build_heading, metrics)]
    rows = [
        [
            *(_format_level(one.levels[column]) for column in columns),
            *(_format_cell(one.means.get(metric), metric) for metric in metrics),
            str(one.seeds),
        ]
        for one in group.configurations
    ]
    return pandas.DataFrame(rows, columns=[*map(escape_latex, head), "Seeds"])


def _build_heading(metric: str) -> str:
    """Returns the name of a metric, with its unit unless the caption states it."""
    return (
        f"{NAMES[metric]} ({UNITS[metric]})" if UNITS[metric] not in ("", _UNIT) else NAMES[metric]
    )


def _build_caption(comparison: Comparison, group: Group, metrics: Sequence[str]) -> str:
    means = [mean for one in group.configurations for mean in one.means.values()]
    errors = any(mean.standard_error is not None for mean in means)
    unit = f", in {_UNIT}" * any(UNITS[metric] == _UNIT for metric in metrics)
    spread = "Mean ± standard error over seeds" if errors else "A single seed per configuration"
    sentences = [
        f"Results on held-out rows of {group.title}{unit}.",
        f"{spread}, the highest log evidence first.",
        comparison.explain_folded(group),
    ]
    return escape_latex(" ".join(filter(None, sentences)))


def _format_level(level: str) -> str:
    if not is_numeric(level):
        return escape_latex(level)
    digits, _, exponent = level.partition("e")
    return f"${digits} \\times 10^{{{int(exponent)}}}$" if exponent else f"${digits}$"


def _format_cell(mean: Mean | None, metric: str) -> str:
    """Returns a mean with its standard error in math mode, or a dash."""
    if mean is None:
        return "--"
    text = format_mean(mean, metric).replace("\N{MINUS SIGN}", "-").replace(",", "{,}")
    return f"${text.replace('±', chr(92) + 'pm').replace(NBSP, ' ').replace('< ', '{<}')}$"


def escape_latex(text: str) -> str:
    r"""Returns LaTeX, in one line, that is displayed as the given text.

    Example:
        >>> print(escape_latex("50%_of #1 & \\input"))
        50\%\_of \#1 \& \textbackslash{}input
    """
    # Two hyphens would become a dash.
    return escape_control_characters(text).translate(_SPECIAL).replace("--", "-{}-")
