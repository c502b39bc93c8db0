"""The semi-supervised model M2 of Kingma et al. (2014), from parts."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_vae import VAE, networks


def make():
    mlp = partial(networks.MLP, hidden=[500], activation="softplus")
    vae = VAE((1, 28, 28), 50, encoder=mlp, decoder=mlp, covariate_dim=10, plate=None)
    classifier = mlp((1, 28, 28), (10,))

    def q(x):
        return dist.OneHotCategorical(logits=pyro.module("classifier", classifier)(x))

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            given = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(10)), obs=y)
            vae.model(x, covariates=given)
            if y is not None:
                with poutine.scale(scale=50.0):
                    pyro.sample("told", q(x), obs=y)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", q(x), infer={"enumerate": "parallel"})
            vae.guide(x, covariates=y)

    return model, guide
