"""The semi-supervised model M2: most rows have a latent class, over which the guide can sum."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import VAE, networks
from scenarios.scenario import NO_GRADIENT_BY_PATH, Scenario


def program(
    vae: VAE, classifier: nn.Module, *, weight: float = 1.0
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns model and guide of rows with their class, and of rows without.

    ``config_enumerate(guide)`` and ``TraceEnum_ELBO`` sum over the class.

    Arguments:
        vae: p(z), p(x given y, z) and q(z given x, y), the class being its covariates.
        classifier: The logits of q(y given x).
        weight: That of log q(y given x) of the rows with their class, which the bound leaves out.
    """
    one_hot = torch.eye(vae.covariate_dim)

    def model(x: Tensor, y: Tensor, unlabelled: Tensor) -> None:
        pyro.module("classifier", classifier)
        uniform = x.new_zeros(vae.covariate_dim)
        with pyro.plate("labelled", len(x)):
            pyro.sample("y", dist.Categorical(logits=uniform), obs=y)
            vae.model(x, covariates=one_hot[y], suffix="labelled")
            with poutine.scale(scale=weight):
                pyro.sample("told", dist.Categorical(logits=classifier(x)), obs=y)
        with pyro.plate("unlabelled", len(unlabelled)):
            given = pyro.sample("class", dist.Categorical(logits=uniform))
            vae.model(unlabelled, covariates=one_hot[given], suffix="unlabelled")

    def guide(x: Tensor, y: Tensor, unlabelled: Tensor) -> None:
        pyro.module("classifier", classifier)
        with pyro.plate("labelled", len(x)):
            vae.guide(x, covariates=one_hot[y], suffix="labelled")
        with pyro.plate("unlabelled", len(unlabelled)):
            given = pyro.sample("class", dist.Categorical(logits=classifier(unlabelled)))
            vae.guide(unlabelled, covariates=one_hot[given], suffix="unlabelled")

    return model, guide


def make() -> Scenario:
    """Returns a small instance."""
    mlp = partial(networks.MLP, hidden=[16])
    vae = VAE((1, 4, 4), 2, name="digit", plate=None, covariate_dim=3, encoder=mlp, decoder=mlp)
    classifier = mlp(vae.event_shape, (3,))
    model, guide = program(vae, classifier)
    x, unlabelled = torch.rand(4, 1, 4, 4).round(), torch.rand(6, 1, 4, 4).round()
    return Scenario(
        model,
        guide,
        (x, torch.tensor([0, 1, 2, 1]), unlabelled),
        nn.ModuleList([vae, classifier]),
        ("class", "digit.z_labelled", "digit.z_unlabelled"),
        discrete=True,
        initial=lambda: {
            "digit.z_labelled": torch.zeros(4, 2),
            "digit.z_unlabelled": torch.zeros(6, 2),
        },
        fails=NO_GRADIENT_BY_PATH,
    )
