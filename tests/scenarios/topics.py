"""Topics of documents, each a count of words, as in ProdLDA, by a likelihood of its own."""

from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import VAE, networks
from scenarios.scenario import Scenario


class Counts(nn.Module):
    """Words drawn by the logarithms of their shares; a document has at most so many."""

    def __init__(self, event_shape: torch.Size, longest: int) -> None:
        super().__init__()
        self.feature_shape = event_shape
        self.longest = longest

    def forward(self, features: Tensor) -> dist.Multinomial:
        """Returns p(counts)."""
        return dist.Multinomial(self.longest, logits=features)


class Topics(nn.Module):
    """Log shares of words, a mixture of topics by weights that are a softmax of z."""

    def __init__(self, in_shape: torch.Size, out_shape: torch.Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(*in_shape, *out_shape))

    def topics(self) -> Tensor:
        """Returns the shares of words, a row a topic."""
        return self.weight.softmax(-1)

    def forward(self, z: Tensor) -> Tensor:
        """Returns log shares of shape ``(batch, words)``."""
        return ((2 * z).softmax(-1) @ self.topics()).log()


class LogCounts(networks.MLP):
    """An MLP on the logarithms of counts, whose sizes are alike."""

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Returns features."""
        return super().forward(x.log1p(), covariates)


def topic_model(words: int, topics: int, longest: int, hidden: int) -> VAE:
    """Returns a VAE of documents of up to so many words."""
    return VAE(
        words,
        topics,
        name="document",
        likelihood=partial(Counts, longest=longest),
        encoder=partial(LogCounts, hidden=[hidden], batch_norm=True),
        decoder=Topics,
    )


def make() -> Scenario:
    """Returns a small instance."""
    vae = topic_model(words=7, topics=3, longest=40, hidden=8)
    length = torch.tensor([[5], [10], [15], [20], [25], [30]])
    x = (torch.rand(6, 7) * length / 7).round()
    return Scenario(
        vae.model,
        vae.guide,
        (x,),
        nn.ModuleList([vae]),
        ("document.z",),
        initial=lambda: {"document.z": vae.encode(x).mean.detach()},
    )
