"""The tensors within distributions and tuples, and the same objects with other tensors."""

import copy
from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import ExpTransform, Transform

__all__ = ["INVERSE", "find_tensors", "iterate_members", "replace_tensors"]

_PLAIN = (bool, int, float, str, type(None))
INVERSE = type(ExpTransform().inv)
"""The private class of inverse transforms, whose ``_inv`` defines them."""


def find_tensors(value: Any) -> tuple[list[Tensor], Hashable]:
    """Returns the tensors of a nested object, and a description of everything else.

    Distributions and transforms are searched attribute by attribute, lists and tuples item by
    item. Two objects of equal description differ only in the values of their tensors, except in
    objects of other classes, of which the description has only the class.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> tensors, _ = find_tensors(dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1))
        >>> len(tensors)
        2
    """
    tensors: list[Tensor] = []
    return tensors, _describe(value, tensors)


def _describe(value: Any, tensors: list[Tensor]) -> Hashable:
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (Distribution, Transform)):
        members = ((name, _describe(v, tensors)) for name, v in iterate_members(value))
        return type(value), *members
    if isinstance(value, (list, tuple)):
        return type(value), *(_describe(item, tensors) for item in value)
    plain: Any = value if isinstance(value, _PLAIN) else type(value)
    return plain


def replace_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Returns a copy of an object with other tensors, in the order of :func:`find_tensors`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, (Distribution, Transform)):
        result = copy.copy(value)
        for name, member in iterate_members(value):
            vars(result)[name] = replace_tensors(member, tensors)
        vars(result).update(_find_derived(value))
        return result
    if isinstance(value, (list, tuple)):
        items = [replace_tensors(item, tensors) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


def iterate_members(value: Distribution | Transform) -> Iterator[tuple[str, Any]]:
    """Yields the attributes that define a distribution or transform, with their names."""
    derived = _find_derived(value)
    return ((name, member) for name, member in vars(value).items() if name not in derived)


def _find_derived(value: Any) -> dict[str, Any]:
    """Returns the attributes in which a transform keeps derived values, and their first values."""
    if not isinstance(value, Transform):
        return {}
    cache = {"_cached_x_y": (None, None)}
    return cache if isinstance(value, INVERSE) else {**cache, "_inv": None}
