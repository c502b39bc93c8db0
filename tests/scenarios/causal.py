"""The effect of a treatment, its confounder hidden and seen by proxies alone, as in CEVAE."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import VAE, likelihoods, networks
from scenarios.scenario import Scenario


class OfCode(networks.MLP):
    """A network of z alone: treatment and outcome tell of the proxies by the confounder only."""

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Returns features."""
        return super().forward(x)


class Heads(nn.Module):
    """p(treatment given z), and p(outcome given z and treatment), each treatment with its own."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.logits = nn.Linear(latent_dim, 1)
        self.outcomes = nn.Linear(latent_dim, 2)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def treatment(self, z: Tensor) -> dist.Bernoulli:
        """Returns p(treatment given z)."""
        return dist.Bernoulli(logits=self.logits(z).squeeze(-1))

    def outcome(self, z: Tensor, treated: Tensor) -> dist.Normal:
        """Returns p(outcome given z and treatment)."""
        without, with_it = self.outcomes(z).unbind(-1)
        return dist.Normal(torch.where(treated > 0, with_it, without), self.log_scale.exp())


def proxies_of(features: int, latent_dim: int, hidden: int) -> VAE:
    """Returns a VAE of proxies, whose encoder is given treatment and outcome as covariates."""
    return VAE(
        features,
        latent_dim,
        name="proxies",
        plate=None,
        covariate_dim=2,
        likelihood=partial(likelihoods.Normal, scale="element"),
        encoder=partial(networks.MLP, hidden=[hidden]),
        decoder=partial(OfCode, hidden=[], covariate_dim=0),
    )


def program(vae: VAE, heads: Heads) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Returns model and guide of proxies, treatment and outcome."""

    def model(x: Tensor, treated: Tensor, y: Tensor) -> Tensor:
        pyro.module("heads", heads)
        with pyro.plate("rows", len(x)):
            z = vae.model(x, covariates=torch.stack([treated, y], -1))
            treated = pyro.sample("treated", heads.treatment(z), obs=treated)
            pyro.sample("y", heads.outcome(z, treated), obs=y)
        return z

    def guide(x: Tensor, treated: Tensor, y: Tensor) -> Tensor:
        with pyro.plate("rows", len(x)):
            return vae.guide(x, covariates=torch.stack([treated, y], -1))

    return model, guide


def make() -> Scenario:
    """Returns a small instance."""
    vae, heads = proxies_of(4, 2, hidden=8), Heads(2)
    model, guide = program(vae, heads)
    return Scenario(
        model,
        guide,
        (torch.randn(6, 4), torch.arange(6) % 2.0, torch.randn(6)),
        nn.ModuleList([vae, heads]),
        ("proxies.z",),
        initial=lambda: {"proxies.z": torch.zeros(6, 2)},
    )
