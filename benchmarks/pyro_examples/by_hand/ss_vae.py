"""The semi-supervised model M2 of Kingma et al. (2014), in Pyro by hand."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn


def concatenated(first, second):
    """Joins the last dimensions, where enumeration has put one to the left of one of them."""
    batch = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat([first.expand(*batch, -1), second.expand(*batch, -1)], -1)


class Classifier(nn.Module):
    def __init__(self, pixels, hidden, classes):
        super().__init__()
        self.hidden = nn.Linear(pixels, hidden)
        self.logits = nn.Linear(hidden, classes)
        self.activation = nn.Softplus()

    def forward(self, x):
        return self.logits(self.activation(self.hidden(x)))


class Encoder(nn.Module):
    def __init__(self, pixels, hidden, latent, classes):
        super().__init__()
        self.hidden = nn.Linear(pixels + classes, hidden)
        self.loc = nn.Linear(hidden, latent)
        self.raw_scale = nn.Linear(hidden, latent)
        self.activation = nn.Softplus()

    def forward(self, x, y):
        h = self.activation(self.hidden(concatenated(x, y)))
        return self.loc(h), nn.functional.softplus(self.raw_scale(h))


class Decoder(nn.Module):
    def __init__(self, pixels, hidden, latent, classes):
        super().__init__()
        self.hidden = nn.Linear(latent + classes, hidden)
        self.logits = nn.Linear(hidden, pixels)
        self.activation = nn.Softplus()

    def forward(self, z, y):
        return self.logits(self.activation(self.hidden(concatenated(z, y))))


class M2(nn.Module):
    def __init__(self, pixels=784, hidden=500, latent=50, classes=10, weight=50.0):
        super().__init__()
        self.classifier = Classifier(pixels, hidden, classes)
        self.encoder = Encoder(pixels, hidden, latent, classes)
        self.decoder = Decoder(pixels, hidden, latent, classes)
        self.latent, self.classes, self.weight = latent, classes, weight

    def model(self, x, y=None):
        pyro.module("m2", self)
        x = x.flatten(-3)
        with pyro.plate("data", len(x)):
            loc, scale = torch.zeros(len(x), self.latent), torch.ones(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            uniform = torch.zeros(len(x), self.classes)
            given = pyro.sample("y", dist.OneHotCategorical(logits=uniform), obs=y)
            p = dist.Bernoulli(logits=self.decoder(z, given)).to_event(1)
            pyro.sample("x", p, obs=x)
            if y is not None:
                with poutine.scale(scale=self.weight):
                    pyro.sample("told", dist.OneHotCategorical(logits=self.classifier(x)), obs=y)

    def guide(self, x, y=None):
        pyro.module("m2", self)
        x = x.flatten(-3)
        with pyro.plate("data", len(x)):
            if y is None:
                q = dist.OneHotCategorical(logits=self.classifier(x))
                y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            loc, scale = self.encoder(x, y)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def make():
    program = M2()
    return program.model, program.guide
