"""Posteriors: amortized families q(z given x)."""

from pyro_vae.posteriors.full import Full
from pyro_vae.posteriors.normal import Normal

__all__ = [
    "Full",
    "Normal",
]
