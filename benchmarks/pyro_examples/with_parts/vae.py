"""The VAE of Kingma and Welling (2013), from parts."""

from functools import partial

from pyro_vae import VAE, networks


def make():
    mlp = partial(networks.MLP, hidden=[400], activation="softplus")
    vae = VAE((1, 28, 28), 50, encoder=mlp, decoder=mlp)
    return vae.model, vae.guide
