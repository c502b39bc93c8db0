"""Configurations: runs that differ in their seed alone, with means and standard errors."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyro_vae.compare.comparable import ComparableSet
from pyro_vae.compare.factors import Factor
from pyro_vae.compare.runs import Run, seed

__all__ = [
    "METRICS",
    "Configuration",
    "Mean",
    "best_by_level",
    "configurations",
    "lead",
    "mean",
    "over_seeds",
]

METRICS = ("log_evidence", "elbo", "rate", "distortion", "active_units", "seconds")
"""What is averaged over seeds."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: The mean.
        standard_error: The standard deviation over the root of the number of seeds, or ``None``
            for one seed.
        seeds: Of how many seeds.
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
        means: The mean of each metric that is known of any run.
    """

    levels: tuple[str, ...]
    runs: tuple[int, ...]
    planned: int
    means: dict[str, Mean]


def configurations(
    runs: Sequence[Run], factors: Sequence[Factor], within: ComparableSet
) -> list[Configuration]:
    """Returns the configurations of a comparable set, the highest log evidence first.

    Those without a finite log evidence stand last.

    Arguments:
        runs: All runs.
        factors: What differs between them.
        within: The set.
    """
    settings = [factor for factor in factors if factor.key != "seed"]
    keys = list(zip(*(factor.of for factor in settings), strict=True)) or [()] * len(runs)
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in within.runs:
        groups.setdefault(keys[index], []).append(index)
    found = [
        Configuration(key, tuple(there), keys.count(key), _means(runs, there))
        for key, there in groups.items()
    ]
    return sorted(found, key=_rank)


def _rank(one: Configuration) -> float:
    """Returns what sorts the highest mean log evidence first, and an unknown one last."""
    evidence = one.means.get("log_evidence")
    return math.inf if evidence is None else -evidence.value


def _means(runs: Sequence[Run], there: Sequence[int]) -> dict[str, Mean]:
    """Returns the mean over seeds of each metric that is known of any of these runs."""
    found = {}
    for metric in METRICS:
        values = _known(runs, there, metric)
        if values:
            found[metric] = over_seeds(values)
    return found


def _known(runs: Sequence[Run], there: Sequence[int], metric: str) -> list[tuple[str, float]]:
    """Returns the figures that are known of these runs, each with its seed."""
    pairs = ((seed(runs[index]), runs[index].number(metric)) for index in there)
    return [(name, value) for name, value in pairs if value is not None]


def over_seeds(values: Iterable[tuple[str, float]]) -> Mean:
    """Returns the mean over seeds of values, those of one seed averaged first.

    Values of one seed share their random numbers, and are no independent evidence.

    Arguments:
        values: Each with its seed, at least one.

    Example:
        >>> over_seeds([("0", 1.0), ("0", 3.0), ("1", 4.0)])
        Mean(value=3.0, standard_error=1.0, seeds=2)
    """
    return mean(list(_by_seed(values).values()))


def _by_seed(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Returns the average of the values of each seed."""
    groups: dict[str, list[float]] = {}
    for name, value in values:
        groups.setdefault(name, []).append(value)
    return {name: math.fsum(group) / len(group) for name, group in groups.items()}


def mean(values: Sequence[float]) -> Mean:
    """Returns the mean of independent values, with its standard error."""
    count = len(values)
    middle = math.fsum(values) / count
    if count == 1:
        return Mean(middle, None, 1)
    variance = math.fsum((value - middle) ** 2 for value in values) / (count - 1)
    return Mean(middle, math.sqrt(variance / count), count)


def lead(runs: Sequence[Run], ranked: Sequence[Configuration]) -> Mean | None:
    """Returns how far the first is ahead of the second, in log evidence, over the seeds of both.

    Arguments:
        runs: All runs.
        ranked: The configurations of a comparable set, the best first.

    Returns:
        The mean over seeds of the differences, or ``None`` if the two have no seed in common.
    """
    if len(ranked) < 2:
        return None
    first, second = (_by_seed(_known(runs, one.runs, "log_evidence")) for one in ranked[:2])
    shared = [name for name in first if name in second]
    return mean([first[name] - second[name] for name in shared]) if shared else None


def best_by_level(
    ranked: Sequence[Configuration], factors: Sequence[Factor]
) -> list[tuple[str, str, Configuration]]:
    """Returns for each level of each factor its best configuration, as name, level, configuration.

    Arguments:
        ranked: The configurations of a comparable set, the best first.
        factors: What differs between all runs.
    """
    found = []
    settings = [factor for factor in factors if factor.key != "seed"]
    for place, factor in enumerate(settings):
        firsts: dict[str, Configuration] = {}
        for one in ranked:
            firsts.setdefault(one.levels[place], one)
        # A factor with one level here tells only between sets.
        if len(firsts) > 1:
            found += [(factor.name, lv, firsts[lv]) for lv in factor.levels if lv in firsts]
    return found
