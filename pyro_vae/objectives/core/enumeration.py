"""The guide of an objective that sums over the values of discrete sites."""

from collections.abc import Callable
from typing import Any

from pyro.infer import TraceEnum_ELBO, config_enumerate

__all__ = ["mark_enumerated"]


def mark_enumerated(objective: Any, guide: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the guide, with its discrete sites marked if the objective is ``TraceEnum_ELBO``."""
    if isinstance(objective, TraceEnum_ELBO):
        return config_enumerate(guide, "parallel")
    return guide
