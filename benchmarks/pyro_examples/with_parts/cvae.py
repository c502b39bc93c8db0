"""The conditional VAE of Sohn, Lee and Yan (2015), from parts."""

from functools import partial

from pyro_vae import VAE, networks, priors


def make():
    mlp = partial(networks.MLP, hidden=[400])
    prior = partial(priors.Normal, learned=True, hidden=[400])
    options = {"prior": prior, "encoder": mlp, "decoder": mlp, "covariate_dim": 392}
    vae = VAE((1, 14, 28), 50, **options)

    def model(missing, seen):
        vae.model(missing, covariates=seen)

    def guide(missing, seen):
        vae.guide(missing, covariates=seen)

    return model, guide
