"""Supports of vectors that consist of several blocks, and their names."""

from typing import Any

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.constraints import MixtureSameFamilyConstraint

__all__ = [
    "Blocks", "are_equal_supports", "contains_means", "describe_support", "find_centre",
    "interpolate_points", "is_real_vector", "repeat_support",
]  # fmt: skip

_NAMES = {
    type(constraints.simplex): ("the simplex", "simplices"),
    type(constraints.sphere): ("the sphere", "spheres"),
    type(constraints.one_hot): ("one-hot vectors", "one-hot vectors"),
}


class Blocks(constraints.Constraint):
    """Vectors of several blocks of equal size, each in the support of one block.

    Arguments:
        base: The support of one block, a vector.
        count: The number of blocks.
    """

    event_dim = 1

    def __init__(self, base: Any, count: int) -> None:
        self.base, self.count = base, count
        self.is_discrete = base.is_discrete
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector is in the support."""
        return self.base.check(value.unflatten(-1, (self.count, -1))).all(-1)

    def __repr__(self) -> str:
        return f"Blocks({self.base}, {self.count})"


def repeat_support(support: Any, count: int) -> Any:
    """Returns the support of vectors of several blocks; that of the block itself if it is one."""
    return support if count == 1 else Blocks(support, count)


def are_equal_supports(one: Any, other: Any) -> bool:
    """Whether two supports are the same set.

    Example:
        >>> real = constraints.independent(constraints.real, 1)
        >>> are_equal_supports(constraints.real_vector, real)
        True
        >>> are_equal_supports(constraints.simplex, constraints.sphere)
        False
    """
    one, other = (
        part.base_constraint if isinstance(part, MixtureSameFamilyConstraint) else part
        for part in (one, other)
    )
    if isinstance(one, constraints.independent) and isinstance(other, constraints.independent):
        same_dims = one.reinterpreted_batch_ndims == other.reinterpreted_batch_ndims
        return same_dims and are_equal_supports(one.base_constraint, other.base_constraint)
    if isinstance(one, Blocks) and isinstance(other, Blocks):
        return one.count == other.count and are_equal_supports(one.base, other.base)
    return type(one) is type(other) and vars(one) == vars(other)


def is_real_vector(support: Any) -> bool:
    """Whether a support is that of all real vectors, as is ``None``."""
    return support is None or are_equal_supports(support, constraints.real_vector)


def find_centre(d: Any, support: Any) -> Tensor:
    """Returns the mean of a distribution, or its mode where the mean is not in the support."""
    return d.mean if contains_means(support) else d.mode


def contains_means(support: Any) -> bool:
    """Whether the mean of distributions on a support is in it."""
    is_sphere = support is not None and are_equal_supports(support, constraints.sphere)
    return not (is_sphere or bool(getattr(support, "is_discrete", False)))


def interpolate_points(start: Tensor, end: Tensor, weight: Tensor, support: Any) -> Tensor:
    """Returns a point between two, on the sphere if this is the support."""
    point = start.lerp(end, weight)
    if support is not None and are_equal_supports(support, constraints.sphere):
        return point / point.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return point


def describe_support(support: Any) -> str:
    """Returns the name of a support in an error.

    Example:
        >>> describe_support(constraints.real_vector)
        'real vectors'
        >>> describe_support(Blocks(constraints.one_hot, 3))
        '3 one-hot vectors'
    """
    if isinstance(support, Blocks):
        return f"{support.count} {_NAMES.get(type(support.base), ('', repr(support.base)))[1]}"
    if is_real_vector(support):
        return "real vectors"
    return _NAMES.get(type(support), (repr(support),))[0]
