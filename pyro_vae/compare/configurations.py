"""Configurations: runs that differ in their seed alone, with means and standard errors."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyro_vae.compare.comparable import ComparableSet
from pyro_vae.compare.factors import Factor
from pyro_vae.compare.runs import RunRecord

__all__ = [
    "METRICS",
    "Configuration",
    "Mean",
    "compute_lead",
    "find_best_by_level",
    "mean_with_error",
    "over_seeds",
    "rank_configurations",
]

METRICS = ("log_evidence", "elbo", "rate", "distortion", "active_units", "seconds")
"""The metrics that are averaged over seeds."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: The mean.
        standard_error: The standard deviation over the root of the number of seeds, or ``None``
            for one seed.
        seeds: The number of seeds.
    """

    value: float
    standard_error: float | None
    seeds: int


@dataclass(frozen=True)
class Configuration:
    """A configuration: all settings but the seed.

    Attributes:
        levels: The level of each factor but the seed, in the order of the factors.
        runs: Its finished runs in a comparable set, as positions in the list of all.
        planned: The number of its runs of any state.
        means: The mean of each metric that at least one run has.
    """

    levels: tuple[str, ...]
    runs: tuple[int, ...]
    planned: int
    means: dict[str, Mean]

    @property
    def seeds(self) -> int:
        """The number of seeds of the log evidence, or of other metrics if it is missing."""
        evidence = self.means.get("log_evidence")
        means = [evidence] if evidence else list(self.means.values())
        return max((mean.seeds for mean in means), default=0)


def rank_configurations(
    runs: Sequence[RunRecord], factors: Sequence[Factor], within: ComparableSet
) -> list[Configuration]:
    """Returns the configurations of a comparable set, the highest log evidence first.

    Those without a finite log evidence come last.

    Arguments:
        runs: All runs.
        factors: The factors of all runs.
        within: The set.
    """
    columns = [factor.by_run for factor in factors if factor.key != "seed"]
    keys = list(zip(*columns, strict=True)) or [()] * len(runs)
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in within.runs:
        groups.setdefault(keys[index], []).append(index)
    configurations = [
        Configuration(key, tuple(members), keys.count(key), _average_metrics(runs, members))
        for key, members in groups.items()
    ]
    return sorted(configurations, key=_rank_key)


def _rank_key(configuration: Configuration) -> float:
    """Returns a key that sorts the highest mean log evidence first, and a missing one last."""
    evidence = configuration.means.get("log_evidence")
    return math.inf if evidence is None else -evidence.value


def _average_metrics(runs: Sequence[RunRecord], indices: Sequence[int]) -> dict[str, Mean]:
    values = {metric: _seed_values(runs, indices, metric) for metric in METRICS}
    return {metric: over_seeds(pairs) for metric, pairs in values.items() if pairs}


def _seed_values(
    runs: Sequence[RunRecord], indices: Sequence[int], metric: str
) -> list[tuple[str, float]]:
    """Returns the finite values of a metric, each with its seed."""
    pairs = ((runs[index].seed, runs[index].number(metric)) for index in indices)
    return [(seed, value) for seed, value in pairs if value is not None]


def over_seeds(values: Iterable[tuple[str, float]]) -> Mean:
    """Returns the mean over seeds, after an average of the values within each seed.

    Values of one seed share their random numbers, so they are not independent.

    Arguments:
        values: Pairs of a seed and a value, at least one.

    Example:
        >>> over_seeds([("0", 1.0), ("0", 3.0), ("1", 4.0)])
        Mean(value=3.0, standard_error=1.0, seeds=2)
    """
    return mean_with_error(list(_average_within_seeds(values).values()))


def _average_within_seeds(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for seed, value in values:
        groups.setdefault(seed, []).append(value)
    return {seed: statistics.fmean(group) for seed, group in groups.items()}


def mean_with_error(values: Sequence[float]) -> Mean:
    """Returns the mean of independent values, with its standard error."""
    count = len(values)
    mean = statistics.fmean(values)
    if count == 1:
        return Mean(mean, None, 1)
    return Mean(mean, math.sqrt(statistics.variance(values, mean) / count), count)


def compute_lead(runs: Sequence[RunRecord], ranked: Sequence[Configuration]) -> Mean | None:
    """Returns the difference in log evidence between the first and the second configuration.

    Arguments:
        runs: All runs.
        ranked: The configurations of a comparable set, the best first.

    Returns:
        The mean difference over the seeds of both, or ``None`` without a common seed.
    """
    if len(ranked) < 2:
        return None
    first, second = (
        _average_within_seeds(_seed_values(runs, one.runs, "log_evidence")) for one in ranked[:2]
    )
    gains = [first[seed] - second[seed] for seed in first if seed in second]
    return mean_with_error(gains) if gains else None


def find_best_by_level(
    ranked: Sequence[Configuration], factors: Sequence[Factor]
) -> list[tuple[str, str, Configuration]]:
    """Returns the best configuration of each level, as factor name, level and configuration.

    A factor with a single level in the set is left out: it differs only between sets.

    Arguments:
        ranked: The configurations of a comparable set, the best first.
        factors: The factors of all runs.
    """
    rows = []
    settings = [factor for factor in factors if factor.key != "seed"]
    for column, factor in enumerate(settings):
        best: dict[str, Configuration] = {}
        for configuration in ranked:
            best.setdefault(configuration.levels[column], configuration)
        if len(best) > 1:
            rows += [(factor.name, level, best[level]) for level in factor.levels if level in best]
    return rows
