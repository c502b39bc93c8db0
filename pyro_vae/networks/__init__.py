"""Networks: maps from one shape to another, independent of distributions."""

from pyro_vae.networks.broadcast import apply_network, eval_mode
from pyro_vae.networks.conv import ConvDecoder, ConvEncoder
from pyro_vae.networks.mlp import MLP

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "apply_network",
    "eval_mode",
]
