"""One row for each part: what it is made by, and data that it supports."""

from functools import partial

import pyro.infer
import torch

from pyro_vae import likelihoods, networks, objectives, posteriors, priors

EVENT = (1, 8, 8)

PRIORS = {
    "normal": priors.Normal,
    "normal_learned": partial(priors.Normal, learned=True),
    "mixture": partial(priors.Mixture, components=4),
    "vamp": partial(priors.Vamp, components=6),
}

POSTERIORS = {
    "normal": posteriors.Normal,
    "full": posteriors.Full,
}

LIKELIHOODS = {
    "bernoulli": likelihoods.Bernoulli,
    "bernoulli_grey": partial(likelihoods.Bernoulli, grey_scale=True),
    "continuous_bernoulli": likelihoods.ContinuousBernoulli,
    "normal_fixed": partial(likelihoods.Normal, scale=0.5),
    "normal_shared": partial(likelihoods.Normal, scale="shared"),
    "normal_element": partial(likelihoods.Normal, scale="element"),
    "normal_network": partial(likelihoods.Normal, scale="network"),
    "normal_optimal": partial(likelihoods.Normal, scale="optimal"),
    "categorical": partial(likelihoods.Categorical, levels=17),
}

NETWORKS = {
    "mlp": (partial(networks.MLP, hidden=[16]), partial(networks.MLP, hidden=[16])),
    "mlp_batch_norm": (
        partial(networks.MLP, hidden=[16], batch_norm=True),
        partial(networks.MLP, hidden=[16], batch_norm=True),
    ),
    "conv": (
        partial(networks.ConvEncoder, channels=[4, 8], hidden=16),
        partial(networks.ConvDecoder, channels=[4, 8], hidden=16),
    ),
    "conv_batch_norm": (
        partial(networks.ConvEncoder, channels=[4, 8], hidden=16, batch_norm=True),
        partial(networks.ConvDecoder, channels=[4, 8], hidden=16, batch_norm=True),
    ),
}

OBJECTIVES = {
    "trace": pyro.infer.Trace_ELBO,
    "trace_mean_field": pyro.infer.TraceMeanField_ELBO,
    "elbo": objectives.ELBO,
    "elbo_sampled": partial(objectives.ELBO, 3, analytic=False),
    "elbo_stl": partial(objectives.ELBO, estimator="stl"),
    "capacity": partial(objectives.Capacity, capacity=0.1),
    "free_bits": partial(objectives.FreeBits, nats=1e-4, per="site"),
    "geco": partial(objectives.GECO, target=10.0),
    "iwae": partial(objectives.IWAE, 4),
    "iwae_stl": partial(objectives.IWAE, 4, estimator="stl"),
    "iwae_dreg": partial(objectives.IWAE, 4, estimator="dreg"),
    "ciwae": partial(objectives.CIWAE, 4),
    "miwae": partial(objectives.MIWAE, 6, groups=3),
    "piwae": partial(objectives.PIWAE, 6, groups=3),
    "renyi": partial(objectives.Renyi, 4, alpha=0.5),
    "vr_max": partial(objectives.Renyi, 4, alpha=-float("inf")),
    "jackknife": partial(objectives.Jackknife, 4),
}


def data_for(likelihood: str, rows: int = 12, event=EVENT) -> torch.Tensor:
    """Returns data that a likelihood of the table supports."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 17, (rows, *event), generator=generator) / 16
    return (levels > 0.5).float() if likelihood == "bernoulli" else levels


def given(covariates: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Returns covariates as model and guide take them."""
    return {} if covariates is None else {"covariates": covariates}
