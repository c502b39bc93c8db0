"""A check that the support of a distribution does not depend on parameters."""

import inspect
import math
from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import TransformedDistribution, constraints, transforms
from torch.distributions.constraints import Constraint

from pyro_vae.distributions.flatten import INVERSE
from pyro_vae.kl import unwrap_layers

__all__ = ["check_fixed_support"]

_MOVES = "moves"
"""A support that depends on a parameter."""

_FIXED = "fixed"
"""A support that does not depend on parameters, without further information."""

_LINE = (-math.inf, math.inf)
_RAY = (0.0, math.inf)

_BOUNDED = (
    type(constraints.positive),
    type(constraints.nonnegative),
    type(constraints.less_than(0.0)),
    type(constraints.unit_interval),
    type(constraints.half_open_interval(0.0, 1.0)),
)


def check_fixed_support(name: str, fn: Any) -> None:
    r"""Raises a ``ValueError`` if the support of a site depends on parameters.

    The mean of the score, :math:`\int \partial_\phi q \, dz`, is zero only if the domain of the
    integral does not depend on :math:`\phi`.
    """
    try:
        support = _support(fn)
    except NotImplementedError:
        raise ValueError(
            f"Expected sites of a declared support for estimators other than 'standard', got "
            f"{name!r} from {_name(fn)}, which declares none: give its class a `support`"
        ) from None
    if support == _MOVES:
        raise ValueError(
            f"Expected sites of a support that does not depend on parameters for estimators other "
            f"than 'standard', got {name!r} from {_name(fn)}: the mean of its score is not zero"
        )


def _name(fn: Any) -> str:
    return type(unwrap_layers(fn)[-1]).__name__


def _support(fn: Any) -> Any:
    """Returns :data:`_MOVES`, :data:`_FIXED`, a pair of bounds, or a class of constraints."""
    core = unwrap_layers(fn)[-1]
    if isinstance(core, TransformedDistribution) and not _declares_support(core):
        return reduce(_image, core.transforms, _support(core.base_dist))
    return _describe(core.support)


def _declares_support(d: TransformedDistribution) -> bool:
    # The inherited support is the codomain of the last transform, whatever the support of the base.
    inherited = inspect.getattr_static(TransformedDistribution, "support")
    return inspect.getattr_static(type(d), "support") is not inherited


def _describe(constraint: Constraint | None) -> Any:
    if constraint is None:
        raise NotImplementedError
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    if _learns(vars(constraint).values()):
        return _MOVES
    if isinstance(constraint, type(constraints.real)):
        return _LINE
    if isinstance(constraint, _BOUNDED):
        lower = getattr(constraint, "lower_bound", -math.inf)
        upper = getattr(constraint, "upper_bound", math.inf)
        # Reading a tensor would synchronize with its device.
        return _FIXED if isinstance(lower, Tensor) or isinstance(upper, Tensor) else (lower, upper)
    # A constraint with attributes is made of parts with arbitrary supports.
    return _FIXED if vars(constraint) else type(constraint)


def _image(support: Any, transform: Any) -> Any:
    """Returns the image of a support under a transform."""
    if isinstance(transform, transforms.ComposeTransform):
        return reduce(_image, transform.parts, support)
    if isinstance(transform, transforms.IndependentTransform):
        return _image(support, transform.base_transform)
    if support in (_MOVES, _FIXED):
        return _MOVES if support == _MOVES or _learns([transform]) else _FIXED
    if support == _describe(transform.domain):
        return _describe(transform.codomain)
    if support == _RAY and isinstance(transform, transforms.AffineTransform):
        origin = isinstance(transform.loc, (int, float)) and transform.loc == 0
        if origin:
            return _RAY
    return _MOVES if _learns([transform]) else _FIXED


def _learns(values: Iterable[Any]) -> bool:
    """Whether any of the values is, contains, or may compute a learned tensor."""
    return any(_one_learns(value) for value in values)


def _one_learns(value: Any) -> bool:
    if value is None or isinstance(value, (bool, int, float, str)):
        return False
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, (list, tuple)):
        return _learns(value)
    if isinstance(value, nn.Module) and any(p.requires_grad for p in value.parameters()):
        return True
    if isinstance(value, INVERSE):
        return _one_learns(value.inv)
    if isinstance(value, (nn.Module, transforms.Transform, Constraint)):
        return _learns(part for name, part in vars(value).items() if not name.startswith("_"))
    return not isinstance(value, (torch.dtype, torch.device))
