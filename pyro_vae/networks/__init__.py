"""Networks: maps from one shape to another, independent of distributions."""

from pyro_vae.networks.broadcast import apply_network, eval_mode
from pyro_vae.networks.conv import ConvDecoder, ConvEncoder
from pyro_vae.networks.embedding import Embedding
from pyro_vae.networks.gated_mlp import GatedMLP
from pyro_vae.networks.gru import GRUDecoder, GRUEncoder
from pyro_vae.networks.mlp import MLP
from pyro_vae.networks.module import Module
from pyro_vae.networks.residual_conv import ResidualConvDecoder, ResidualConvEncoder
from pyro_vae.networks.residual_mlp import ResidualMLP
from pyro_vae.networks.transformer import TransformerDecoder, TransformerEncoder

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "Embedding",
    "GRUDecoder",
    "GRUEncoder",
    "GatedMLP",
    "Module",
    "ResidualConvDecoder",
    "ResidualConvEncoder",
    "ResidualMLP",
    "TransformerDecoder",
    "TransformerEncoder",
    "apply_network",
    "eval_mode",
]
