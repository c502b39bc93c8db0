"""Paired differences: what one level of a factor gives over another, all else being equal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyro_vae.compare.comparable import ComparableSet
from pyro_vae.compare.configurations import Mean, over_seeds
from pyro_vae.compare.factors import Factor, tied
from pyro_vae.compare.runs import Run, seed

__all__ = ["METRICS", "Difference", "differences", "references", "verdict"]

METRICS = ("log_evidence", "elbo", "rate", "distortion")
"""What differences are taken of."""

_ERROR_RATE = 0.05
"""How often a difference of nothing may be called clear."""


@dataclass(frozen=True)
class Difference:
    """One level of a factor minus another.

    Attributes:
        factor: The name of the factor.
        along: The names of settings that change together with it.
        level: The level.
        reference: What is subtracted.
        pairs: The number of pairs of runs.
        means: For each of :data:`METRICS`, the mean over seeds of the differences.
    """

    factor: str
    along: tuple[str, ...]
    level: str
    reference: str
    pairs: int
    means: dict[str, Mean]


def references(factors: Sequence[Factor], chosen: Sequence[str]) -> dict[str, str]:
    """Returns the level of each factor that others are compared with.

    Arguments:
        factors: What differs between runs.
        chosen: Choices as ``FACTOR=LEVEL``. The first level of all other factors is taken.

    Raises:
        ValueError: If one names no factor, or no level of it.
    """
    found = {factor.name: factor.levels[0] for factor in factors if factor.key != "seed"}
    known = {name: f for f in factors if f.key != "seed" for name in (f.key, f.name)}
    for choice in chosen:
        name, _, level = choice.partition("=")
        if name not in known:
            names = ", ".join(found) or "none, because no setting differs"
            raise ValueError(
                f"Expected --against to name a factor as FACTOR=LEVEL, got '{choice}'; "
                f"factors are: {names}"
            )
        if level not in known[name].levels:
            levels = ", ".join(known[name].levels)
            raise ValueError(
                f"Expected --against to name a level of {name}, got '{choice}'; levels are: "
                f"{levels}"
            )
        found[known[name].name] = level
    return found


def differences(
    runs: Sequence[Run],
    factors: Sequence[Factor],
    within: ComparableSet,
    against: Mapping[str, str],
) -> list[Difference]:
    """Returns the paired differences of a comparable set.

    A pair are two runs that are equal in all settings but one factor, the seed included. Runs with
    a figure that is not finite are left out.

    Arguments:
        runs: All runs.
        factors: What differs between them.
        within: The set.
        against: The reference level of each factor, by its name. Where the set has no run of it,
            the first level that it has a run of is taken.
    """
    found = []
    known = [i for i in within.runs if all(runs[i].number(m) is not None for m in METRICS)]
    for factor in factors:
        if factor.key == "seed":
            continue
        there = {factor.of[index] for index in known}
        levels = [level for level in factor.levels if level in there]
        if len(levels) < 2:
            continue
        reference = against[factor.name] if against[factor.name] in there else levels[0]
        others = _rest(factor, factors)
        sides = {level: [i for i in known if factor.of[i] == level] for level in levels}
        grouped = {level: _alike(runs, others, side) for level, side in sides.items()}
        along = tuple(other.name for other in tied(factor, factors))
        for level in levels:
            means, pairs = _paired(runs, grouped[level], grouped[reference])
            if level != reference and pairs:
                found.append(Difference(factor.name, along, level, reference, pairs, means))
    return found


def _rest(factor: Factor, factors: Sequence[Factor]) -> list[Factor]:
    """Returns what has to be equal in a pair of runs, but for their seed."""
    along = tied(factor, factors)
    return [other for other in factors if other is not factor and other not in along]


def _alike(
    runs: Sequence[Run], factors: Sequence[Factor], there: Sequence[int]
) -> dict[tuple[str, ...], list[int]]:
    """Returns runs by their seed and levels."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in there:
        key = (seed(runs[index]), *(factor.of[index] for factor in factors))
        groups.setdefault(key, []).append(index)
    return groups


def _paired(
    runs: Sequence[Run],
    high: Mapping[tuple[str, ...], Sequence[int]],
    low: Mapping[tuple[str, ...], Sequence[int]],
) -> tuple[dict[str, Mean], int]:
    """Returns the mean differences of runs that are alike, and the number of their pairs.

    Arguments:
        runs: All runs.
        high: Those of one level, by what has to be equal, the seed first.
        low: Those of the reference.
    """
    shared = [key for key in high if key in low]
    if not shared:
        return {}, 0
    means = {
        metric: over_seeds(
            [
                (key[0], _average(runs, high[key], metric) - _average(runs, low[key], metric))
                for key in shared
            ]
        )
        for metric in METRICS
    }
    return means, len(shared)


def _average(runs: Sequence[Run], there: Sequence[int], metric: str) -> float:
    """Returns the mean of a metric over runs of the same settings."""
    return math.fsum(runs[index].metrics[metric] for index in there) / len(there)


def verdict(found: Mean, comparisons: int) -> str:
    """Returns in plain words whether a difference can be told from none.

    The difference over its standard error is held against Student's t distribution with one degree
    of freedom less than there are seeds, at 5 %: alone, and shared among all comparisons that were
    made (Bonferroni).

    Arguments:
        found: The difference.
        comparisons: How many differences are judged together.

    Example:
        >>> verdict(Mean(1.0, 0.9, 5), 3)
        'not clear'
        >>> verdict(Mean(1.0, 0.1, 5), 3)
        'clear'
    """
    from scipy.special import stdtrit

    if found.standard_error is None:
        return "one seed: not known"
    if found.value == 0:
        return "none"
    if found.standard_error == 0:
        return "clear"
    ratio = abs(found.value) / found.standard_error
    if ratio > stdtrit(found.seeds - 1, 1 - _ERROR_RATE / 2 / comparisons):
        return "clear"
    if ratio > stdtrit(found.seeds - 1, 1 - _ERROR_RATE / 2):
        return "clear alone, not among all comparisons"
    return "not clear"
