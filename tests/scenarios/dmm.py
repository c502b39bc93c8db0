"""A deep Markov model: a VAE at each time, whose prior is a function of the code before."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae import VAE, networks
from pyro_vae.conditional import Prior
from scenarios.scenario import Scenario


class Transition(Prior):
    """p(z_t given z_{t-1}), the code before being the covariates."""

    def __init__(self, latent_dim: int, *, hidden: Sequence[int] = (16,)) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.network = networks.MLP((latent_dim,), (latent_dim,), hidden=hidden)
        self.raw_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(
        self, covariates: Tensor | None = None, *, encode: Callable[..., Any] | None = None
    ) -> dist.TorchDistribution:
        """Returns the prior, of the batch shape of ``covariates``."""
        loc = networks.apply_network(self.network, covariates, 1)
        return dist.Normal(loc, softplus(self.raw_scale) + 1e-3).to_event(1)


class Emission(networks.MLP):
    """The features of p(x_t given z_t), which knows nothing of the code before."""

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], *, hidden: Sequence[int] = (16,)
    ) -> None:
        super().__init__(in_shape, out_shape, hidden=hidden)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        return super().forward(x)


class Summary(nn.Module):
    """What a time and all later ones say, of the shape of the observation of one time."""

    def __init__(self, event_dim: int, *, hidden: int = 16) -> None:
        super().__init__()
        self.cell = nn.GRUCell(event_dim, hidden)
        self.head = nn.Linear(hidden, event_dim)

    def forward(self, x: Tensor, seen: Tensor) -> list[Tensor]:
        """Returns a summary for each time, from the last that is seen back to the first."""
        state, summaries = x.new_zeros(x.shape[1], self.cell.hidden_size), []
        for now, here in zip(x.flip(0), seen.flip(0), strict=True):
            here = here[:, None]
            state = torch.where(here, self.cell(torch.where(here, now, 0.0), state), state)
            summaries.append(self.head(state))
        return summaries[::-1]


def program(vae: VAE, summary: Summary) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns model and guide of sequences of shape ``(time, sequences, event)``.

    ``lengths`` says of each sequence how many times are seen; what stands after them is ignored.
    """

    def model(x: Tensor, lengths: Tensor) -> None:
        z = x.new_zeros(x.shape[1], vae.latent_dim)
        with pyro.plate("sequences", x.shape[1]):
            for t in pyro.markov(range(len(x))):
                z = vae.model(x[t], covariates=z, mask=t < lengths, suffix=t)

    def guide(x: Tensor, lengths: Tensor) -> None:
        pyro.module("summary", summary)
        said = summary(x, torch.arange(len(x))[:, None] < lengths)
        z = x.new_zeros(x.shape[1], vae.latent_dim)
        with pyro.plate("sequences", x.shape[1]):
            for t in pyro.markov(range(len(x))):
                z = vae.guide(said[t], covariates=z, mask=t < lengths, suffix=t)

    return model, guide


def make() -> Scenario:
    """Returns a small instance."""
    vae = VAE(
        5,
        2,
        name="frame",
        plate=None,
        covariate_dim=2,
        prior=Transition,
        encoder=partial(networks.MLP, hidden=[16]),
        decoder=Emission,
    )
    summary = Summary(5)
    model, guide = program(vae, summary)
    x = torch.rand(3, 6, 5).round()
    codes = tuple(f"frame.z_{t}" for t in range(3))
    return Scenario(
        model,
        guide,
        (x, torch.tensor([3, 3, 2, 2, 1, 1])),
        nn.ModuleList([vae, summary]),
        codes,
        initial=lambda: {name: torch.zeros(6, 2) for name in codes},
    )
