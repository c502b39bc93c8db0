"""Which rows of a product of settings run at each change, and which in the long tests alone."""

from collections.abc import Collection, Iterable, Sequence
from itertools import product
from typing import Any

import pytest

__all__ = ["cover", "keep"]


def cover(*factors: Iterable[Any]) -> list[Any]:
    """Returns the product of factors; all but rows that hold each level once are long.

    Example:
        >>> [bool(row.marks) for row in cover("ab", "cd")]
        [False, True, True, False]
    """
    levels: list[Sequence[Any]] = [list(factor) for factor in factors]
    longest = max(map(len, levels))
    short = {tuple(i % len(level) for level in levels) for i in range(longest)}
    return [
        pytest.param(
            *(level[i] for level, i in zip(levels, index, strict=True)),
            marks=() if index in short else pytest.mark.long,
        )
        for index in product(*(range(len(level)) for level in levels))
    ]


def keep(names: Collection[str], values: Iterable[str]) -> list[Any]:
    """Returns values; all but those of the given names are long."""
    values = list(values)
    assert set(names) <= set(values)
    return [v if v in names else pytest.param(v, marks=pytest.mark.long) for v in values]
