"""The comparison of runs: all that its page, its tables and its text are made of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyro_vae.compare.caveats import cautions
from pyro_vae.compare.comparable import ComparableSet, comparable_sets
from pyro_vae.compare.configurations import (
    Configuration,
    Mean,
    best_by_level,
    configurations,
    lead,
)
from pyro_vae.compare.differences import Difference, differences, references, verdict
from pyro_vae.compare.factors import Factor, factors
from pyro_vae.compare.formatting import NBSP, written
from pyro_vae.compare.runs import STATES, Run, find

__all__ = ["Comparison", "Group", "compare"]


@dataclass(frozen=True)
class Group:
    """A comparable set, with what its runs say.

    Attributes:
        title: What it is called.
        runs: Which runs, as positions in the list of all.
        factors: What differs within it, but for the seed.
        configurations: Its configurations, the best first.
        lead: How far the first configuration is ahead of the second, over the seeds of both.
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


@dataclass(frozen=True)
class Comparison:
    """What runs say together.

    Attributes:
        title: What was compared.
        runs: All runs.
        factors: What differs between them, the seed last.
        groups: The comparable sets, the largest first.
        cautions: What a reader should know before trusting it.
    """

    title: str
    runs: tuple[Run, ...]
    factors: tuple[Factor, ...]
    groups: tuple[Group, ...]
    cautions: tuple[str, ...]

    @property
    def comparisons(self) -> int:
        """How many differences of log evidences are judged together."""
        return sum(len(group.differences) for group in self.groups)

    @property
    def failures(self) -> list[Run]:
        """The runs that failed or cannot be read."""
        return [run for run in self.runs if run.failure is not None or run.problem]

    def verdict(self, one: Difference) -> str:
        """Returns whether the difference of log evidences can be told from none."""
        return verdict(one.means["log_evidence"], self.comparisons)

    def caveat(self) -> str:
        """Returns what many comparisons mean for the verdict on each."""
        if self.comparisons == 1:
            return "The verdict is on the log evidence."
        return (
            f"The verdict is on the log evidence. {self.comparisons} comparisons were made: of so "
            f"many, some look clear by chance, and a plain 'clear' allows for that."
        )

    def described(self, one: Configuration, group: Group) -> str:
        """Returns a configuration by the levels of what differs in its set."""
        settings = [factor for factor in self.factors if factor.key != "seed"]
        levels = {f.name: lv for f, lv in zip(settings, one.levels, strict=True)}
        return ", ".join(f"{f.name}={levels[f.name]}" for f in group.factors) or "the one there is"

    def states(self) -> str:
        """Returns how many runs there are of each state."""
        numbers = Counter(run.state for run in self.runs)
        counts = ", ".join(f"{numbers[state]:,} {state}" for state in STATES if numbers[state])
        return f"{len(self.runs):,} run{'s' * (len(self.runs) != 1)}: {counts}"

    def headline(self) -> str:
        """Returns the best configuration in one sentence."""
        found = [
            group for group in self.groups if group.configurations[0].means.get("log_evidence")
        ]
        if not found:
            return "No run has a log evidence yet, so that there is nothing to rank."
        if len(found) == 1:
            return f"The best configuration is {self.best(found[0])}."
        parts = "; ".join(f"on {group.title}, {self.best(group)}" for group in found[:3])
        more = f"; and {len(found) - 3} sets more" if len(found) > 3 else ""
        return f"The best configuration depends on what is compared: {parts}{more}."

    def best(self, group: Group) -> str:
        """Returns the best configuration of a set, with its log evidence."""
        first = group.configurations[0]
        evidence = first.means["log_evidence"]
        seeds = f"{evidence.seeds} seed{'s' * (evidence.seeds != 1)}"
        place = f"best of {len(group.configurations)}" * (len(group.configurations) > 1)
        lead = written(group.lead, "log_evidence", signed=True)
        ahead = f"{lead} over the next" if group.lead else ""
        return (
            f"{self.described(first, group)}, with a log evidence of "
            f"{written(evidence, 'log_evidence')}{NBSP}nats per datum "
            f"({'; '.join(filter(None, [seeds, place, ahead]))})"
        )


def compare(folders: Sequence[Path | str], against: Sequence[str] = ()) -> Comparison:
    """Compares all runs that lie in folders or below them.

    Arguments:
        folders: Where to look.
        against: The levels that others are compared with, as ``FACTOR=LEVEL``; by default the
            first level of each factor.

    Raises:
        ValueError: If a folder does not exist, there is no run, or ``against`` names no factor or
            no level.
    """
    runs = find(folders)
    varying = sorted(factors(runs), key=lambda factor: factor.key == "seed")
    levels = references(varying, against)
    sets = comparable_sets(runs)
    groups = tuple(group(runs, varying, one, levels) for one in sets)
    title = ", ".join(Path(folder).resolve().name for folder in folders)
    return Comparison(title, tuple(runs), tuple(varying), groups, tuple(cautions(runs, sets)))


def group(
    runs: Sequence[Run],
    varying: Sequence[Factor],
    one: ComparableSet,
    against: dict[str, str],
) -> Group:
    """Returns what the runs of a comparable set say.

    Arguments:
        runs: All runs.
        varying: What differs between them.
        one: The set.
        against: The reference level of each factor.
    """
    ranked = configurations(runs, varying, one)
    inside = [f for f in varying if f.key != "seed" and len({f.of[i] for i in one.runs}) > 1]
    return Group(
        one.title,
        one.runs,
        tuple(inside),
        tuple(ranked),
        lead(runs, ranked),
        tuple(best_by_level(ranked, varying)),
        tuple(differences(runs, varying, one, against)),
    )
