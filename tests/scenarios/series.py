"""Series whose codes are a Gaussian process over time; each time is decoded by itself."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae import VAE, networks
from pyro_vae.conditional import Prior
from scenarios.scenario import Scenario

JITTER, FLOOR = 1e-4, 1e-3


class GaussianProcess(Prior):
    r"""Independent Gaussian processes, each a feature of the code, at the same times.

    .. math:: k(t, t') = \exp(-(t - t')^2 / 2 \ell^2)

    The code holds the features of the first time, then those of the second, and so on.
    """

    times: Tensor

    def __init__(self, latent_dim: int, *, times: Tensor, length: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.register_buffer("times", times)
        self.raw_length = nn.Parameter(torch.tensor(length - FLOOR).expm1().log())

    @property
    def length(self) -> Tensor:
        """The length scale."""
        return softplus(self.raw_length) + FLOOR

    def forward(
        self, covariates: Tensor | None = None, *, encode: Callable[..., Any] | None = None
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()``."""
        apart = (self.times[:, None] - self.times) / self.length
        identity = torch.eye(len(self.times)).to(apart)
        tril = torch.linalg.cholesky((-0.5 * apart**2).exp() + JITTER * identity)
        features = torch.eye(self.latent_dim // len(self.times)).to(apart)
        return dist.MultivariateNormal(
            apart.new_zeros(self.latent_dim), scale_tril=torch.kron(tril.contiguous(), features)
        )


class EachTime(nn.Module):
    """A decoder that is the same at every time, and sees the features of that time alone."""

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], *, hidden: Sequence[int] = (16,)
    ) -> None:
        super().__init__()
        numbers, self.times, event = out_shape
        self.network = networks.MLP((in_shape[0] // self.times,), (numbers, event), hidden=hidden)

    def forward(self, z: Tensor) -> Tensor:
        """Maps ``(batch, times * features)`` to ``(batch, numbers, times, event)``."""
        out = networks.apply_network(self.network, z.unflatten(-1, (self.times, -1)), 1)
        return out.transpose(1, 2)


def make() -> Scenario:
    """Returns a small instance."""
    vae = VAE(
        (4, 5),
        8,
        name="series",
        prior=partial(GaussianProcess, times=torch.arange(4.0)),
        encoder=partial(networks.MLP, hidden=[16]),
        decoder=EachTime,
    )
    return Scenario(
        vae.model,
        vae.guide,
        (torch.rand(6, 4, 5).round(),),
        nn.ModuleList([vae]),
        ("series.z",),
        initial=lambda: {"series.z": torch.zeros(6, 8)},
    )
