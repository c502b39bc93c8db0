"""A step of inference, loss and gradients, as one compiled graph."""

from pyro_vae.compiled.engine import worth_compiling
from pyro_vae.compiled.step import Step, compile

__all__ = ["Step", "compile", "worth_compiling"]
