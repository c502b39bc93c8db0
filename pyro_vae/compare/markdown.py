"""The comparison as Markdown text, for a terminal or a note."""

import re
from collections.abc import Iterable, Sequence

from pyro_vae.compare.comparison import CONFIGURATIONS, DIFFERENCES, Comparison, Group
from pyro_vae.compare.formatting import NAMES, escape_control_characters, format_mean
from pyro_vae.compare.studies import StudyRecord

__all__ = ["build_markdown", "escape_markdown"]


def build_markdown(comparison: Comparison) -> str:
    """Returns the comparison in Markdown.

    Arguments:
        comparison: The comparison.
    """
    parts = [
        f"# Comparison: {escape_markdown(comparison.title)}",
        escape_markdown(comparison.headline()),
        f"{comparison.count_states()}.",
    ]
    if comparison.caveats:
        parts += ["## Before you trust the metrics", _format_list(comparison.caveats)]
    for group in comparison.groups:
        parts += _build_section(comparison, group)
    for study in comparison.studies:
        name, counts = escape_markdown(study.name), study.count_states()
        parts += [f"## Study {name} ({counts})", _tabulate_best_trials(study)]
    if comparison.failures:
        parts += ["## Failures", *_list_failures(comparison)]
    return "\n\n".join(parts) + "\n"


def _build_section(comparison: Comparison, group: Group) -> list[str]:
    finished = f"{len(group.runs):,} finished run{'s' * (len(group.runs) != 1)}"
    parts = [
        f"## {escape_markdown(group.title)} ({finished})",
        f"### Configurations\n\n{CONFIGURATIONS}",
        _format_table(*comparison.tabulate_configurations(group), len(group.factors)),
    ]
    if folded := comparison.explain_folded(group):
        parts.append(escape_markdown(folded))
    if group.best_by_level:
        parts += [
            "### Best configuration of each level",
            _tabulate_best_by_level(comparison, group),
        ]
    if group.differences:
        note = f"{DIFFERENCES} {comparison.explain_verdict()}"
        table = _format_table(*comparison.tabulate_differences(group), 1)
        parts += [f"### Paired differences\n\n{note}", table]
    return parts


def _tabulate_best_by_level(comparison: Comparison, group: Group) -> str:
    rows = [
        [
            f"{name}={level}",
            comparison.describe(one, group),
            format_mean(one.means.get("log_evidence"), "log_evidence"),
        ]
        for name, level, one in group.best_by_level
    ]
    head = ["level", "best configuration", "Log evidence (nats per datum)"]
    return _format_table(head, rows, 2)


def _tabulate_best_trials(study: StudyRecord) -> str:
    head = ["settings", "best trial", *(NAMES.get(name, name) for name in study.objectives)]
    rows = [
        [
            " ".join(f"{key}={value}" for key, value in trial.params.items()),
            str(trial.number),
            *(f"{value:.5g}".replace("-", "\N{MINUS SIGN}") for value in trial.values or ()),
        ]
        for trial in study.best
    ]
    return _format_table(head, rows, 1)


def _list_failures(comparison: Comparison) -> list[str]:
    """Returns the reason of each failure, and the command that repeats the run alone."""
    parts = []
    for run in comparison.failures:
        reason = run.problem or (run.failure.reason if run.failure else "")
        parts.append(
            f"**{escape_markdown(run.name)}**: {escape_markdown(' '.join(reason.split()))}"
        )
        if run.failure is not None and run.failure.command:
            parts.append(_format_code(run.failure.command))
    return parts


def _format_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """Returns a table.

    Arguments:
        head: The column titles.
        rows: The cells.
        left: The number of first columns that are aligned left.
    """
    rules = ["---" if column < left else "---:" for column in range(len(head))]
    lines = [[escape_markdown(cell) for cell in row] for row in [head, *rows]]
    lines.insert(1, rules)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format_list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {escape_markdown(text)}" for text in texts)


def escape_markdown(text: str) -> str:
    """Returns Markdown, in one line, that is displayed as the given text."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", escape_control_characters(text))


def _format_code(code: str) -> str:
    """Returns code between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}bash\n{code}\n{fence}"
