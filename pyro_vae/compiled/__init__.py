"""A step of inference, loss and gradients, as one compiled graph."""

from pyro_vae.compiled.heuristic import worth_compiling
from pyro_vae.compiled.step import Step

__all__ = ["Step", "worth_compiling"]
