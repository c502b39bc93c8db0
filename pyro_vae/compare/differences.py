"""Paired differences: the gain of one level of a factor over another, all else being equal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyro_vae.compare.comparable import ComparableSet
from pyro_vae.compare.configurations import Mean, over_seeds
from pyro_vae.compare.factors import Factor
from pyro_vae.compare.runs import RunRecord

if TYPE_CHECKING:
    import pandas

__all__ = ["PAIRED_METRICS", "Difference", "choose_references", "paired_differences", "verdict"]

PAIRED_METRICS = ("log_evidence", "elbo", "rate", "distortion")
"""The metrics whose differences are reported."""

_ERROR_RATE = 0.05
"""The probability of a verdict of "clear" if the true difference is zero."""


@dataclass(frozen=True)
class Difference:
    """One level of a factor minus another.

    Attributes:
        factor: The name of the factor.
        along: The folded settings that change with it, such as ``"lr=0.1 instead of 0.001"``.
        level: The level.
        reference: The level that is subtracted.
        pairs: The number of pairs of runs.
        means: For each of :data:`PAIRED_METRICS`, the mean over seeds of the differences.
    """

    factor: str
    along: tuple[str, ...]
    level: str
    reference: str
    pairs: int
    means: dict[str, Mean]


def choose_references(factors: Sequence[Factor], choices: Sequence[str]) -> dict[str, str]:
    """Returns the reference level of each factor, by its name.

    Arguments:
        factors: The factors of all runs.
        choices: Choices as ``FACTOR=LEVEL``. Other factors have their first level as reference.

    Raises:
        ValueError: If a choice does not name a factor and one of its levels.
    """
    settings = [factor for factor in factors if factor.key != "seed"]
    references = {factor.name: factor.levels[0] for factor in settings}
    by_name = {name: factor for factor in settings for name in (factor.key, factor.name)}
    for choice in choices:
        name, _, level = choice.partition("=")
        if name not in by_name:
            names = ", ".join(references) or "none, because no setting differs"
            raise ValueError(
                f"Expected --against to name a factor as FACTOR=LEVEL, got '{choice}'; "
                f"factors are: {names}"
            )
        if level not in by_name[name].levels:
            levels = ", ".join(by_name[name].levels)
            raise ValueError(
                f"Expected --against to name a level of {name}, got '{choice}'; levels are: "
                f"{levels}"
            )
        references[by_name[name].name] = level
    return references


def paired_differences(
    runs: Sequence[RunRecord],
    factors: Sequence[Factor],
    within: ComparableSet,
    references: Mapping[str, str],
) -> list[Difference]:
    """Returns the paired differences of a comparable set.

    Two runs form a pair if they are equal in all settings but one factor, including the seed.
    Runs with a metric that is not finite are left out.

    Arguments:
        runs: All runs.
        factors: The factors of all runs.
        within: The set.
        references: The reference level of each factor, by its name. If the set has no run of it,
            the first level with a run takes its place.
    """
    differences = []
    complete = [i for i in within.runs if None not in map(runs[i].number, PAIRED_METRICS)]
    seeds = [run.seed for run in runs]
    for factor in factors:
        levels = factor.levels_of(complete)
        if factor.key == "seed" or len(levels) < 2:
            continue
        reference = references[factor.name]
        if reference not in levels:
            reference = levels[0]
        equal = [other.by_run for other in factors if other is not factor]
        averages = _average_equal_runs(runs, complete, [factor.by_run, seeds, *equal])
        for level in levels:
            gains = (averages.loc[level] - averages.loc[reference]).dropna()
            if level != reference and len(gains):
                means = {
                    metric: over_seeds(zip(gains.index.get_level_values(0), values, strict=True))
                    for metric, values in gains.to_dict("list").items()
                }
                along = _describe_folded(factor, level, reference)
                differences.append(
                    Difference(factor.name, along, level, reference, len(gains), means)
                )
    return differences


def _describe_folded(factor: Factor, level: str, reference: str) -> tuple[str, ...]:
    new, old = factor.implied(level), factor.implied(reference)
    return tuple(
        f"{name}={value} instead of {old[name]}"
        for name, value in new.items()
        if old.get(name, value) != value
    )


def _average_equal_runs(
    runs: Sequence[RunRecord], indices: Sequence[int], keys: Sequence[Sequence[str]]
) -> "pandas.DataFrame":
    """Returns the mean of each metric over runs with equal keys, indexed by the keys.

    Arguments:
        runs: All runs.
        indices: The runs to average, as positions in the list of all.
        keys: The values of each key, in the order of all runs.
    """
    import pandas

    values = [[runs[index].number(metric) for metric in PAIRED_METRICS] for index in indices]
    table = pandas.DataFrame(values, columns=PAIRED_METRICS, dtype=float)
    columns = [[key[index] for index in indices] for key in keys]
    return table.groupby(columns, sort=False).mean()


def verdict(difference: Mean, comparisons: int) -> str:
    """Returns in plain words whether a difference is distinguishable from zero.

    The ratio of the difference to its standard error is compared with the 5 % quantile of
    Student's t distribution with one degree of freedom less than there are seeds. It is compared
    twice: for this difference alone, and shared among all comparisons (Bonferroni).

    Arguments:
        difference: The difference.
        comparisons: The number of all differences.

    Example:
        >>> verdict(Mean(1.0, 0.9, 5), 3)
        'not clear'
        >>> verdict(Mean(1.0, 0.1, 5), 3)
        'clear'
    """
    from scipy.special import stdtrit

    if difference.standard_error is None:
        return "unknown (one seed)"
    if difference.value == 0:
        return "no difference"
    if difference.standard_error == 0:
        return "clear"
    ratio = abs(difference.value) / difference.standard_error
    if ratio > stdtrit(difference.seeds - 1, 1 - _ERROR_RATE / 2 / comparisons):
        return "clear"
    if ratio > stdtrit(difference.seeds - 1, 1 - _ERROR_RATE / 2):
        return "clear only without correction"
    return "not clear"
