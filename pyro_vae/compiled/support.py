"""Pyro's checks of values and parameters, as one number that a graph can compute."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints
from torch.distributions.utils import lazy_property

from pyro_vae.compiled.graph import NotCapturedError

__all__ = ["SupportChecks", "enabled_checks"]

_Check = Callable[[], Tensor]


class SupportChecks(Messenger):
    """Collects whether values are in the support and parameters within their constraints.

    NaN is looked for where a mask is: elsewhere it reaches the loss.

    Arguments:
        enabled: Which checks to make, in the order of the run; by default all.

    Attributes:
        passed: The results, each a scalar of booleans.
        validated: For each possible check whether its distribution validates its arguments.
    """

    def __init__(self, enabled: list[bool] | None = None) -> None:
        super().__init__()
        self.enabled = enabled
        self.passed: list[Tensor] = []
        self.validated: list[bool] = []

    def all_passed(self, loss: Tensor) -> Tensor:
        """Returns whether all checks passed and the loss is a number, as a scalar."""
        return torch.stack([~loss.detach().isnan(), *self.passed]).all()

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or not isinstance(msg["fn"], Distribution):
            return
        with torch.no_grad():
            if msg["mask"] is False:
                return
            masked = msg["mask"] is not None
            for fn, check in _possible_checks(msg["fn"], msg["value"], masked):
                place = len(self.validated)
                self.validated.append(bool(fn._validate_args))
                if self.enabled is None or self.enabled[place]:
                    self.passed.append(_result(check))


def enabled_checks(run: Callable[[], Any]) -> list[bool]:
    """Returns which checks Pyro makes in a run and the run passes.

    Distributions with ``validate_args=False`` are not checked.

    Arguments:
        run: The run, under Pyro's validation.
    """
    checks = SupportChecks()
    with checks:
        run()
    passed = torch.stack(checks.passed).tolist() if checks.passed else []
    return [wanted and ok for wanted, ok in zip(checks.validated, passed, strict=True)]


def _possible_checks(
    fn: Distribution, value: Tensor, masked: bool
) -> Iterator[tuple[Distribution, _Check]]:
    """Yields the checks of a value and of the parameters, with the distribution they belong to."""
    inner = fn
    while isinstance(inner, (Independent, MaskedDistribution)):
        if isinstance(inner, MaskedDistribution):
            if inner._mask is False:
                # Pyro asks for no density at all.
                return
            masked = True
        inner = inner.base_dist
    support = _support(fn)
    if support is not None and _may_fail(support, masked):
        yield inner, partial(support.check, value)
    yield from _parameter_checks(fn, masked)


def _parameter_checks(fn: Distribution, masked: bool) -> Iterator[tuple[Distribution, _Check]]:
    for name, constraint in _constraints(fn).items():
        # PyTorch itself checks only the parameters that were given.
        derived = name not in vars(fn) and isinstance(getattr(type(fn), name, None), lazy_property)
        if not derived and _may_fail(constraint, masked):
            yield fn, partial(constraint.check, getattr(fn, name))
    for part in vars(fn).values():
        if isinstance(part, Distribution):
            yield from _parameter_checks(part, masked)


def _constraints(fn: Distribution) -> dict[str, constraints.Constraint]:
    try:
        return fn.arg_constraints
    except NotImplementedError:
        return {}


def _support(fn: Distribution) -> constraints.Constraint | None:
    try:
        return fn.support
    except NotImplementedError:
        return None


def _may_fail(constraint: Any, masked: bool) -> bool:
    """Whether a check is needed; NaN alone needs none unless a mask keeps it from the loss."""
    if isinstance(constraint, constraints.independent):
        return _may_fail(constraint.base_constraint, masked)
    # A decomposition costs more than the step; a matrix that is not positive definite gives NaN.
    if isinstance(constraint, type(constraints.positive_definite)):
        return False
    if constraints.is_dependent(constraint):
        return False
    return masked or not isinstance(constraint, type(constraints.real))


def _result(check: _Check) -> Tensor:
    try:
        return torch.as_tensor(check()).all()
    except (NotImplementedError, NotCapturedError):
        return torch.tensor(True)
