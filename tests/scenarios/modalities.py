"""Two modalities with one latent variable, of which a row may lack either."""

from collections.abc import Callable, Sequence
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import VAE, likelihoods, networks
from scenarios.scenario import Scenario


def product_of_experts(vaes: Sequence[VAE], data: Sequence[Tensor], seen: Sequence[Tensor]):
    r"""Returns q(z given all that is seen), :math:`\propto p(z) \prod_m q_m(z \mid x_m)`."""
    precision, weighted = torch.ones(()), torch.zeros(())
    for vae, x, rows in zip(vaes, data, seen, strict=True):
        expert = vae.encode(x)
        share = torch.where(rows.unsqueeze(-1), 1 / expert.variance, 0.0)
        precision, weighted = precision + share, weighted + share * expert.mean
    return dist.Normal(weighted / precision, precision.rsqrt()).to_event(1)


def program(vaes: Sequence[VAE]) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Returns model and guide, called with the data of each modality and the rows seen of each."""

    def model(data: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
        with pyro.plate("rows", len(data[0])):
            z = pyro.sample("z", vaes[0].prior_distribution())
            for vae, x, rows in zip(vaes, data, seen, strict=True):
                with poutine.mask(mask=rows):
                    pyro.sample(vae.name, vae.decode(z), obs=x)
        return z

    def guide(data: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
        with pyro.plate("rows", len(data[0])):
            return pyro.sample("z", product_of_experts(vaes, data, seen))

    return model, guide


def make() -> Scenario:
    """Returns a small instance: pictures and words, a third of the rows without either."""
    mlp = partial(networks.MLP, hidden=[16])
    shared = {"latent_dim": 2, "encoder": mlp, "decoder": mlp}
    picture = VAE((1, 4, 4), name="picture", **shared)
    word = VAE(5, name="word", likelihood=likelihoods.Normal, **shared)
    model, guide = program([picture, word])
    turn = torch.arange(6) % 3
    data = (torch.rand(6, 1, 4, 4).round(), torch.randn(6, 5))
    return Scenario(
        model,
        guide,
        (data, (turn != 1, turn != 2)),
        nn.ModuleList([picture, word]),
        ("z",),
        initial=lambda: {"z": torch.zeros(6, 2)},
    )
