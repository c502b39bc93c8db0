"""Reasons why a step is not compiled, with the line of the user's program."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pyro import poutine

from pyro_vae.compiled.signature import Call
from pyro_vae.objectives.core.sites import is_point, iter_sites
from pyro_vae.objectives.core.user_lines import find_user_line
from pyro_vae.validation import describe_value

__all__ = ["check_compilable", "describe_capture_failure", "find_delta_sites"]

_REPLACEMENTS = {
    "RenyiELBO": "pyro_vae.objectives.Renyi(alpha, num_particles), or IWAE(num_particles) for "
    "alpha = 0",
    "TraceGraph_ELBO": "pyro_vae.objectives.ELBO() if all latent sites are reparameterized, else "
    "Pyro's SVI",
    "JitTrace_ELBO": "pyro_vae.objectives.ELBO(analytic=False)",
    "JitTraceMeanField_ELBO": "pyro_vae.objectives.ELBO()",
    "JitTraceGraph_ELBO": "pyro_vae.objectives.ELBO() if all latent sites are reparameterized",
    "JitTraceEnum_ELBO": "pyro.infer.TraceEnum_ELBO, which stays eager",
}
"""Replacements for Pyro objectives without a differentiable loss."""


def check_compilable(objective: Any) -> None:
    """Raises a ``ValueError`` for an objective that cannot be compiled."""
    if isinstance(objective, type):
        raise ValueError(f"Expected objective to be an instance, got {describe_value(objective)}")
    name = type(objective).__name__
    is_from_pyro = type(objective).__module__.startswith("pyro.")
    if is_from_pyro and name in _REPLACEMENTS:
        raise ValueError(
            f"Expected objective to have a differentiable loss, got {name}: "
            f"use {_REPLACEMENTS[name]}"
        )
    if not callable(getattr(objective, "differentiable_loss", None)):
        raise ValueError(f"Expected objective to have a differentiable_loss, got {name}")


def describe_capture_failure(error: Exception) -> str:
    """Returns the first line of an error, and the line of the user's program that led to it."""
    reason = str(error).strip().split("\n")[0]
    if "GeneratorImpl" in reason:
        reason = "random numbers are drawn from a torch.Generator: use PyTorch's default one"
    # Pyro adds the shapes of a trace, even to an error without a message.
    if not reason or reason.startswith("Trace Shapes"):
        reason = type(error).__name__
    line = find_user_line(error)
    if line is None:
        return reason
    text = f": {line.line}" if line.line else ""
    return f"{reason} ({Path(line.filename).name}, line {line.lineno}{text})"


def find_delta_sites(sides: Iterable[Callable[..., Any]], call: Call) -> list[str]:
    """Returns the sites with ``Delta`` distributions, which ``TraceMeanField_ELBO`` leaves out."""
    names = []
    for side in sides:
        trace = poutine.trace(side).get_trace(*call.args, **call.kwargs)
        names += [name for name, site in iter_sites(trace) if is_point(site["fn"])]
    return names
