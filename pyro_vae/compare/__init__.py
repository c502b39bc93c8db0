"""Comparison of runs: differing settings, means over seeds, paired differences, uncertainty.

Nothing here needs PyTorch.
"""

from pyro_vae.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
