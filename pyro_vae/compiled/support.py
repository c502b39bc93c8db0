"""Pyro's checks of values and parameters, as one boolean that a graph computes."""

from collections.abc import Callable, Iterable, Iterator
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

__all__ = ["SupportChecks", "check_density", "check_parameters", "find_enabled_checks"]

_Check = Callable[[], Tensor]


class SupportChecks(Messenger):
    """Checks that values are in the support and that parameters satisfy their constraints.

    NaN is checked at masked sites only, since elsewhere it reaches the loss.

    Arguments:
        enabled: Whether to make each check, in the order of the run; by default all are made.

    Attributes:
        passed: The results, each a boolean scalar.
        validated: Whether the distribution of each possible check validates its arguments.
    """

    def __init__(self, enabled: list[bool] | None = None) -> None:
        super().__init__()
        self.enabled = enabled
        self.passed: list[Tensor] = []
        self.validated: list[bool] = []

    def all_passed(self, loss: Tensor) -> Tensor:
        """Whether all checks passed and the loss is not NaN, as a scalar tensor."""
        return torch.stack([~loss.detach().isnan(), *self.passed]).all()

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or not isinstance(msg["fn"], Distribution):
            return
        with torch.no_grad():
            if msg["mask"] is False:
                return
            masked = msg["mask"] is not None
            for fn, check in _find_possible_checks(msg["fn"], msg["value"], masked):
                index = len(self.validated)
                self.validated.append(bool(fn._validate_args))
                if self.enabled is None or self.enabled[index]:
                    self.passed.append(_run_check(check))


def find_enabled_checks(run: Callable[[], Any]) -> list[bool]:
    """Returns, for each possible check, whether Pyro makes it and the run passes it.

    Distributions with ``validate_args=False`` are not checked.

    Arguments:
        run: The run, under Pyro's validation.
    """
    checks = SupportChecks()
    with checks:
        run()
    passed = torch.stack(checks.passed).tolist() if checks.passed else []
    return [validated and ok for validated, ok in zip(checks.validated, passed, strict=True)]


def check_parameters(fn: Distribution, *, masked: bool) -> Tensor | None:
    """Returns whether the parameters of a distribution are valid, or ``None`` if all values are.

    NaN is checked only if the distribution will be masked.
    """
    return _run_checks(_find_parameter_checks(fn, masked))


def check_density(fn: Distribution, value: Tensor) -> Tensor | None:
    """Returns whether parameters and value are valid, or ``None`` if all are."""
    return _run_checks(_find_possible_checks(fn, value, masked=False))


def _run_checks(checks: Iterable[tuple[Distribution, _Check]]) -> Tensor | None:
    passed = [_run_check(check) for _, check in checks]
    return torch.stack(passed).all() if passed else None


def _find_possible_checks(
    fn: Distribution, value: Tensor, masked: bool
) -> Iterator[tuple[Distribution, _Check]]:
    """Yields the checks of a value and of the parameters, each with its distribution."""
    inner = fn
    while isinstance(inner, (Independent, MaskedDistribution)):
        if isinstance(inner, MaskedDistribution):
            if inner._mask is False:
                # Pyro does not evaluate the density.
                return
            masked = True
        inner = inner.base_dist
    support = _get_support(fn)
    if support is not None and _may_fail(support, masked):
        yield inner, partial(support.check, value)
    yield from _find_parameter_checks(fn, masked)


def _find_parameter_checks(fn: Distribution, masked: bool) -> Iterator[tuple[Distribution, _Check]]:
    for name, constraint in _get_constraints(fn).items():
        # PyTorch checks only the arguments of the constructor, not lazily derived parameters.
        derived = name not in vars(fn) and isinstance(getattr(type(fn), name, None), lazy_property)
        if not derived and _may_fail(constraint, masked):
            yield fn, partial(constraint.check, getattr(fn, name))
    for value in vars(fn).values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Distribution):
                yield from _find_parameter_checks(part, masked)


def _get_constraints(fn: Distribution) -> dict[str, constraints.Constraint]:
    try:
        return fn.arg_constraints
    except NotImplementedError:
        return {}


def _get_support(fn: Distribution) -> constraints.Constraint | None:
    try:
        return fn.support
    except NotImplementedError:
        return None


def _may_fail(constraint: Any, masked: bool) -> bool:
    """Whether a check is needed; NaN needs a check only where a mask hides it from the loss."""
    if isinstance(constraint, constraints.independent):
        return _may_fail(constraint.base_constraint, masked)
    # A decomposition costs more than the step, and an indefinite matrix gives NaN anyway.
    if isinstance(constraint, type(constraints.positive_definite)):
        return False
    if constraints.is_dependent(constraint):
        return False
    return masked or not isinstance(constraint, type(constraints.real))


def _run_check(check: _Check) -> Tensor:
    try:
        return torch.as_tensor(check()).all()
    except (NotImplementedError, NotCapturedError):
        return torch.tensor(True)
