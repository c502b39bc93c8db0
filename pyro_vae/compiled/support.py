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

    NaN is not looked for: it reaches the loss.

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
            for fn, check in _possible_checks(msg["fn"], msg["value"]):
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


def _possible_checks(fn: Distribution, value: Tensor) -> Iterator[tuple[Distribution, _Check]]:
    """Yields the checks of a value and of the parameters, with the distribution they belong to."""
    support = _support(fn)
    if support is not None and not _only_refuses_nan(support):
        yield _innermost(fn), partial(support.check, value)
    yield from _parameter_checks(fn)


def _parameter_checks(fn: Distribution) -> Iterator[tuple[Distribution, _Check]]:
    for name, constraint in fn.arg_constraints.items():
        # PyTorch itself checks only the parameters that were given.
        derived = name not in vars(fn) and isinstance(getattr(type(fn), name, None), lazy_property)
        if not derived and not _only_refuses_nan(constraint):
            yield fn, partial(constraint.check, getattr(fn, name))
    for part in vars(fn).values():
        if isinstance(part, Distribution):
            yield from _parameter_checks(part)


def _support(fn: Distribution) -> constraints.Constraint | None:
    try:
        return fn.support
    except NotImplementedError:
        return None


def _innermost(fn: Distribution) -> Distribution:
    """Returns the distribution that checks values, within ``to_event`` and masks."""
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _only_refuses_nan(constraint: Any) -> bool:
    if isinstance(constraint, constraints.independent):
        return _only_refuses_nan(constraint.base_constraint)
    # A decomposition costs more than the step; a matrix that is not positive definite gives NaN.
    unchecked = (type(constraints.real), type(constraints.positive_definite))
    return isinstance(constraint, unchecked) or constraints.is_dependent(constraint)


def _result(check: _Check) -> Tensor:
    try:
        return torch.as_tensor(check()).all()
    except (NotImplementedError, NotCapturedError):
        return torch.tensor(True)
