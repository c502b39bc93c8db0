"""Training steps compiled into one graph: loss, gradients and update."""

from pyro_vae.compiled.heuristic import worth_compiling
from pyro_vae.compiled.step import Step

__all__ = ["Step", "worth_compiling"]
