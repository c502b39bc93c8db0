"""Replacements for Pyro objectives that cannot be captured."""

from typing import Any

from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.objectives import ELBO

__all__ = ["replace_pyro_objective"]

_ANALYTIC = {Trace_ELBO: False, TraceMeanField_ELBO: None}
"""Whether the KL is in closed form; ``None`` means where it exists."""


def replace_pyro_objective(objective: Any) -> Any:
    """Returns an equivalent objective that reads no number off a tensor.

    Pyro's ELBOs read the loss of each site. Only these classes are replaced, not their
    subclasses; any other objective is returned unchanged.
    """
    if type(objective) not in _ANALYTIC:
        return objective
    return ELBO(
        objective.num_particles,
        analytic=_ANALYTIC[type(objective)],
        max_plate_nesting=objective.max_plate_nesting,
        vectorize_particles=objective.vectorize_particles,
    )
