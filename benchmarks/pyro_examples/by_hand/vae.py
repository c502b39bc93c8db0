"""The VAE of Kingma and Welling (2013), in Pyro by hand."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Encoder(nn.Module):
    def __init__(self, pixels, hidden, latent):
        super().__init__()
        self.hidden = nn.Linear(pixels, hidden)
        self.loc = nn.Linear(hidden, latent)
        self.raw_scale = nn.Linear(hidden, latent)
        self.activation = nn.Softplus()

    def forward(self, x):
        h = self.activation(self.hidden(x.flatten(-3)))
        return self.loc(h), nn.functional.softplus(self.raw_scale(h))


class Decoder(nn.Module):
    def __init__(self, pixels, hidden, latent):
        super().__init__()
        self.hidden = nn.Linear(latent, hidden)
        self.logits = nn.Linear(hidden, pixels)
        self.activation = nn.Softplus()

    def forward(self, z):
        return self.logits(self.activation(self.hidden(z)))


class VAE(nn.Module):
    def __init__(self, pixels=784, hidden=400, latent=50):
        super().__init__()
        self.encoder = Encoder(pixels, hidden, latent)
        self.decoder = Decoder(pixels, hidden, latent)
        self.latent = latent

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            loc, scale = torch.zeros(len(x), self.latent), torch.ones(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            p = dist.Bernoulli(logits=self.decoder(z)).to_event(1)
            pyro.sample("x", p, obs=x.flatten(-3))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def make():
    program = VAE()
    return program.model, program.guide
