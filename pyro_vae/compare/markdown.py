"""The comparison as text, for a terminal, a note or an issue."""

import re
from collections.abc import Iterable, Sequence

from pyro_vae.compare.comparison import Comparison, Group
from pyro_vae.compare.configurations import METRICS
from pyro_vae.compare.differences import METRICS as COMPARED
from pyro_vae.compare.formatting import NAMES, UNITS, visible, written

__all__ = ["markdown"]


def markdown(found: Comparison) -> str:
    """Returns the comparison in Markdown.

    Arguments:
        found: The comparison.
    """
    parts = [
        f"# Comparison: {escaped(found.title)}",
        escaped(found.headline()),
        f"{found.states()}.",
    ]
    if found.cautions:
        parts += ["## Before you trust the figures", _listed(found.cautions)]
    for group in found.groups:
        parts += _section(found, group)
    if found.failures:
        parts += ["## Failures", *_failures(found)]
    return "\n\n".join(parts) + "\n"


def _section(found: Comparison, group: Group) -> list[str]:
    """Returns what is said of a comparable set."""
    finished = f"{len(group.runs):,} finished run{'s' * (len(group.runs) != 1)}"
    parts = [
        f"## {escaped(group.title)} ({finished})",
        "### Configurations\n\nMean ± standard error over seeds, on held-out rows; the best first.",
        _configurations(found, group),
    ]
    if group.best_by_level:
        parts += ["### The best of each level", _best(found, group)]
    if group.differences:
        note = (
            f"Runs that are equal in all else, the seed included; mean ± standard error over "
            f"seeds, in nats per datum. {found.caveat()}"
        )
        parts += [f"### Paired differences\n\n{note}", _differences(found, group)]
    return parts


def _configurations(found: Comparison, group: Group) -> str:
    """Returns the configurations of a set, the best first."""
    settings = [factor for factor in found.factors if factor.key != "seed"]
    places = [settings.index(factor) for factor in group.factors]
    units = [f"{NAMES[m]} ({UNITS[m]})" if UNITS[m] else NAMES[m] for m in METRICS]
    head = [*(factor.name for factor in group.factors), *units, "seeds", "runs"]
    rows = [
        [
            *(one.levels[place] for place in places),
            *(written(one.means.get(metric), metric) for metric in METRICS),
            str(max((mean.seeds for mean in one.means.values()), default=0)),
            f"{len(one.runs)} of {one.planned}",
        ]
        for one in group.configurations
    ]
    return _table(head, rows, len(group.factors))


def _best(found: Comparison, group: Group) -> str:
    """Returns the best configuration of each level of a set."""
    rows = [
        [f"{name}={level}", found.described(one, group), written(one.means.get("log_evidence"), "")]
        for name, level, one in group.best_by_level
    ]
    return _table(["level", "its best configuration", "Log evidence (nats per datum)"], rows, 2)


def _differences(found: Comparison, group: Group) -> str:
    """Returns the paired differences of a set."""
    head = ["difference", *(NAMES[metric] for metric in COMPARED), "seeds", "pairs", "verdict"]
    rows = [
        [
            f"{one.factor}: {one.level} minus {one.reference}"
            + (f" (with {', '.join(one.along)})" if one.along else ""),
            *(written(one.means[metric], metric, signed=True) for metric in COMPARED),
            str(one.means["log_evidence"].seeds),
            str(one.pairs),
            found.verdict(one),
        ]
        for one in group.differences
    ]
    return _table(head, rows, 1)


def _failures(found: Comparison) -> list[str]:
    """Returns why runs failed, and what runs each of them alone."""
    parts = []
    for run in found.failures:
        reason = run.problem or (run.failure.reason if run.failure else "")
        parts.append(f"**{escaped(run.name)}**: {escaped(' '.join(reason.split()))}")
        if run.failure is not None and run.failure.command:
            parts.append(_fenced(run.failure.command))
    return parts


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Returns a table, whose first columns are aligned left."""
    rules = ["---" if place < left else "---:" for place in range(len(head))]
    lines = [[escaped(cell) for cell in head], rules, *([escaped(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listed(texts: Iterable[str]) -> str:
    """Returns a list."""
    return "\n".join(f"- {escaped(text)}" for text in texts)


def escaped(text: str) -> str:
    """Returns text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", visible(text))


def _fenced(code: str) -> str:
    """Returns code between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}bash\n{code}\n{fence}"
