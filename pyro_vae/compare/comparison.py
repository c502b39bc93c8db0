"""The comparison of runs: the content of its page, its Markdown text and its csv table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_vae.compare.caveats import find_caveats
from pyro_vae.compare.comparable import ComparableSet, find_comparable_sets
from pyro_vae.compare.configurations import (
    METRICS,
    Configuration,
    Mean,
    compute_lead,
    find_best_by_level,
    rank_configurations,
)
from pyro_vae.compare.differences import (
    PAIRED_METRICS,
    Difference,
    choose_references,
    paired_differences,
    verdict,
)
from pyro_vae.compare.factors import Factor, find_factors
from pyro_vae.compare.formatting import (
    NAMES,
    NBSP,
    UNITS,
    escape_control_characters,
    format_mean,
)
from pyro_vae.compare.runs import STATES, RunRecord, find_runs
from pyro_vae.compare.studies import StudyRecord, find_studies

__all__ = ["CONFIGURATIONS", "DIFFERENCES", "Comparison", "Group", "compare"]

CONFIGURATIONS = "Mean ± standard error over seeds, on held-out rows, best first."
"""The caption of the table of configurations."""

DIFFERENCES = (
    "Differences between runs that are otherwise identical, including the seed. Mean ± standard "
    "error over seeds, in nats per datum."
)
"""The caption of the table of paired differences."""


@dataclass(frozen=True)
class Group:
    """A comparable set with its results.

    Attributes:
        title: Its title.
        runs: Its runs, as positions in the list of all.
        factors: The factors with several levels in it, without the seed.
        configurations: Its configurations, the best first.
        lead: The lead of the first configuration over the second, over the seeds of both.
        best_by_level: For each level of each factor, its best configuration.
        differences: Its paired differences.
    """

    title: str
    runs: tuple[int, ...]
    factors: tuple[Factor, ...]
    configurations: tuple[Configuration, ...]
    lead: Mean | None
    best_by_level: tuple[tuple[str, str, Configuration], ...]
    differences: tuple[Difference, ...]

    def __repr__(self) -> str:
        counts = f"{len(self.runs)} runs, {len(self.configurations)} configurations"
        names = ", ".join(factor.name for factor in self.factors) or "none"
        return escape_control_characters(f"Group({self.title!r}, {counts}, factors: {names})")


@dataclass(frozen=True)
class Comparison:
    """The results of all runs.

    Attributes:
        title: The names of the compared folders.
        runs: All runs.
        factors: The factors of all runs, the seed last.
        groups: The comparable sets, the largest first.
        caveats: Warnings to read before trusting it.
        studies: The studies of searches.
    """

    title: str
    runs: tuple[RunRecord, ...]
    factors: tuple[Factor, ...]
    groups: tuple[Group, ...]
    caveats: tuple[str, ...]
    studies: tuple[StudyRecord, ...] = ()

    def __repr__(self) -> str:
        text = f"Comparison({self.title!r}, {self.count_states()}). {self.headline()}"
        return escape_control_characters(text)

    def _repr_html_(self) -> str:
        # Imported late, because only notebooks need it.
        from pyro_vae.display.html import render_list, render_table

        parts = [render_list([f"{self.count_states()}.", self.headline(), *self.caveats])]
        for group in self.groups:
            left, (head, rows) = len(group.factors), self.tabulate_configurations(group)
            caption = f"{group.title}. {CONFIGURATIONS}"
            parts.append(render_table(rows, head, left=left, caption=caption))
            if group.differences:
                head, rows = self.tabulate_differences(group)
                caption = f"{DIFFERENCES} {self.explain_verdict()}"
                parts.append(render_table(rows, head, caption=caption))
        return "".join(parts)

    @property
    def comparisons(self) -> int:
        """The number of differences in log evidence that are tested together."""
        return sum(len(group.differences) for group in self.groups)

    @property
    def failures(self) -> list[RunRecord]:
        """The runs that failed or cannot be read."""
        return [run for run in self.runs if run.failure is not None or run.problem]

    def verdict(self, difference: Difference) -> str:
        """Returns whether a difference in log evidence is distinguishable from zero."""
        return verdict(difference.means["log_evidence"], self.comparisons)

    def explain_verdict(self) -> str:
        """Returns a note on the verdicts, and on the effect of many comparisons."""
        if self.comparisons == 1:
            return "The verdict refers to the log evidence."
        return (
            f"The verdict refers to the log evidence. With {self.comparisons} comparisons, some "
            f"differences appear significant by chance; 'clear' is corrected for this."
        )

    def choose_factor(self, group: Group, name: str | None = None) -> Factor | None:
        """Returns the factor by which plots are grouped, or ``None`` if no setting differs.

        Arguments:
            group: A comparable set.
            name: The name or the path of the factor. By default, it is the factor with the most
                levels in the set; of several, the first. The seed is only chosen by its name.

        Raises:
            ValueError: If no factor has this name.
        """
        for factor in self.factors:
            if name in (factor.name, factor.key):
                return factor
        if name is not None:
            names = ", ".join(factor.name for factor in self.factors) or "none"
            raise ValueError(f"Expected factor to be one of: {names}; got {name!r}")
        settings = [factor for factor in self.factors if factor.key != "seed"]
        return max(settings, key=lambda one: len(one.levels_of(group.runs)), default=None)

    def explain_folded(self, group: Group) -> str:
        """Returns a note on the settings that follow from the levels of a set; may be empty."""
        parts = [
            f"{factor.name}={level} has {', '.join(f'{k}={v}' for k, v in implied.items())}"
            for factor in group.factors
            for level in factor.levels_of(group.runs)
            if (implied := factor.implied(level))
        ]
        return f"Settings that follow from a choice: {'; '.join(parts)}." if parts else ""

    def describe(self, configuration: Configuration, group: Group) -> str:
        """Returns the levels of a configuration, for the factors of its set."""
        settings = [factor for factor in self.factors if factor.key != "seed"]
        levels = {f.name: lv for f, lv in zip(settings, configuration.levels, strict=True)}
        return ", ".join(f"{f.name}={levels[f.name]}" for f in group.factors) or "the only one"

    def tabulate_configurations(self, group: Group) -> tuple[list[str], list[list[str]]]:
        """Returns the head and the rows of the table of configurations of a set, best first."""
        settings = [factor for factor in self.factors if factor.key != "seed"]
        columns = [settings.index(factor) for factor in group.factors]
        units = [f"{NAMES[m]} ({UNITS[m]})" if UNITS[m] else NAMES[m] for m in METRICS]
        head = [*(factor.name for factor in group.factors), *units, "seeds", "runs"]
        rows = [
            [
                *(one.levels[column] for column in columns),
                *(format_mean(one.means.get(metric), metric) for metric in METRICS),
                str(one.seeds),
                f"{len(one.runs)} of {one.planned}",
            ]
            for one in group.configurations
        ]
        return head, rows

    def tabulate_differences(self, group: Group) -> tuple[list[str], list[list[str]]]:
        """Returns the head and the rows of the table of paired differences of a set."""
        names = [NAMES[metric] for metric in PAIRED_METRICS]
        rows = [
            [
                f"{one.factor}: {one.level} minus {one.reference}"
                + (f" (with {', '.join(one.along)})" if one.along else ""),
                *(format_mean(one.means[metric], metric, signed=True) for metric in PAIRED_METRICS),
                str(one.means["log_evidence"].seeds),
                str(one.pairs),
                self.verdict(one),
            ]
            for one in group.differences
        ]
        return ["difference", *names, "seeds", "pairs", "verdict"], rows

    def count_states(self) -> str:
        """Returns the number of runs in each state, as text."""
        counts = Counter(run.state for run in self.runs)
        states = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
        return f"{len(self.runs):,} run{'s' * (len(self.runs) != 1)}: {states}"

    def headline(self) -> str:
        """Returns the best configuration in one sentence."""
        ranked = [
            group for group in self.groups if group.configurations[0].means.get("log_evidence")
        ]
        if not ranked:
            return "No run has a log evidence yet, so there is nothing to rank."
        if len(ranked) == 1:
            return f"The best configuration is {self.describe_best(ranked[0])}."
        parts = "; ".join(f"on {group.title}, {self.describe_best(group)}" for group in ranked[:3])
        more = f"; and {len(ranked) - 3} more sets" if len(ranked) > 3 else ""
        return f"Each comparable set has its own best configuration: {parts}{more}."

    def describe_best(self, group: Group) -> str:
        """Returns the best configuration of a set, with its log evidence."""
        best = group.configurations[0]
        evidence = best.means["log_evidence"]
        seeds = f"{evidence.seeds} seed{'s' * (evidence.seeds != 1)}"
        rank = f"best of {len(group.configurations)}" * (len(group.configurations) > 1)
        lead = format_mean(group.lead, "log_evidence", signed=True)
        ahead = f"{lead} over the second" if group.lead else ""
        return (
            f"{self.describe(best, group)}, with a log evidence of "
            f"{format_mean(evidence, 'log_evidence')}{NBSP}nats per datum "
            f"({'; '.join(filter(None, [seeds, rank, ahead]))})"
        )


def compare(folders: Sequence[Path | str], against: Sequence[str] = ()) -> Comparison:
    """Compares all runs in folders and below them.

    Arguments:
        folders: The folders to search.
        against: The reference levels, as ``FACTOR=LEVEL``; by default the first level of each
            factor.

    Raises:
        ValueError: If an argument is not a list, a folder does not exist, there is no run, or
            ``against`` does not name a factor and one of its levels.
    """
    for name, value in (("folders", folders), ("against", against)):
        if isinstance(value, (str, Path)) or not isinstance(value, Sequence):
            raise ValueError(f"Expected {name} to be a list, got {value!r}")
    runs = find_runs(folders)
    factors = sorted(find_factors(runs), key=lambda factor: factor.key == "seed")
    references = choose_references(factors, against)
    sets = find_comparable_sets(runs)
    groups = tuple(_summarize_set(runs, factors, one, references) for one in sets)
    title = ", ".join(Path(folder).resolve().name for folder in folders)
    studies, problems = find_studies(folders)
    caveats = (*find_caveats(runs, sets), *problems)
    return Comparison(title, tuple(runs), tuple(factors), groups, caveats, tuple(studies))


def _summarize_set(
    runs: Sequence[RunRecord],
    factors: Sequence[Factor],
    within: ComparableSet,
    references: dict[str, str],
) -> Group:
    """Returns the results of a comparable set.

    Arguments:
        runs: All runs.
        factors: The factors of all runs.
        within: The set.
        references: The reference level of each factor.
    """
    ranked = rank_configurations(runs, factors, within)
    varying = [f for f in factors if f.key != "seed" and len(f.levels_of(within.runs)) > 1]
    return Group(
        within.title,
        within.runs,
        tuple(varying),
        tuple(ranked),
        compute_lead(runs, ranked),
        tuple(find_best_by_level(ranked, factors)),
        tuple(paired_differences(runs, factors, within, references)),
    )
