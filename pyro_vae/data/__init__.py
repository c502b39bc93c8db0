"""Data: tensors with their split, their labels and the protocol by which they were made."""

from pyro_vae.data.base import Data, Rows, Split
from pyro_vae.data.digits import digits

__all__ = ["Data", "Rows", "Split", "digits"]
