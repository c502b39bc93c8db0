"""Pupils in classes in schools: three nested plates, the VAE in the innermost, at dim=-3."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import VAE, networks, posteriors
from scenarios.scenario import Scenario

SPREAD = 0.5


class Effect(nn.Module):
    """The posterior of the effect of a group, given the mean of its rows."""

    def __init__(self, event_dim: int, effect_dim: int, *, covariate_dim: int = 0) -> None:
        super().__init__()
        self.posterior = posteriors.Full(effect_dim)
        self.network = networks.MLP(
            (event_dim,), self.posterior.feature_shape, hidden=[], covariate_dim=covariate_dim
        )

    def forward(self, mean: Tensor, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns the posterior, of the batch shape of ``mean``."""
        return self.posterior(networks.apply_network(self.network, mean, 1, covariates))


def program(
    vae: VAE, of_school: Effect, of_class: Effect
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns model and guide of data of shape ``(pupils, classes, schools, event)``.

    Each school has an effect, each class one of its own added to that, and the two together are
    the covariates of the VAE of a pupil.
    """
    effect_dim = vae.covariate_dim

    def model(x: Tensor) -> None:
        zero = x.new_zeros(effect_dim)
        with pyro.plate("schools", x.shape[2]):
            school = pyro.sample("school", dist.Normal(zero, 1.0).to_event(1))
            with pyro.plate("classes", x.shape[1]):
                apart = pyro.sample("class", dist.Normal(zero, SPREAD).to_event(1))
                with pyro.plate("pupils", x.shape[0]):
                    vae.model(x, covariates=school + apart)

    def guide(x: Tensor) -> None:
        pyro.module("of_school", of_school)
        pyro.module("of_class", of_class)
        with pyro.plate("schools", x.shape[2]):
            school = pyro.sample("school", of_school(x.mean((0, 1))))
            with pyro.plate("classes", x.shape[1]):
                apart = pyro.sample("class", of_class(x.mean(0), school))
                with pyro.plate("pupils", x.shape[0]):
                    vae.guide(x, covariates=school + apart)

    return model, guide


def make() -> Scenario:
    """Returns a small instance."""
    vae = VAE(5, 2, name="pupil", plate=None, covariate_dim=2)
    of_school, of_class = Effect(5, 2), Effect(5, 2, covariate_dim=2)
    model, guide = program(vae, of_school, of_class)
    return Scenario(
        model,
        guide,
        (torch.rand(4, 3, 2, 5).round(),),
        nn.ModuleList([vae, of_school, of_class]),
        ("school", "class", "pupil.z"),
        max_plate_nesting=3,
        initial=lambda: {
            "school": torch.zeros(2, 2),
            "class": torch.zeros(3, 2, 2),
            "pupil.z": torch.zeros(4, 3, 2, 2),
        },
    )
