"""The variational autoencoder: its Pyro programs, guides for larger models, and its file."""

from pyro_vae.vae.autoguide import AutoVAEGuide
from pyro_vae.vae.serialization import load, save
from pyro_vae.vae.vae import VAE

__all__ = ["VAE", "AutoVAEGuide", "load", "save"]
