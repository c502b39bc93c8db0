"""A Bayesian decoder: its weights are latent variables that all rows share."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoGuideList, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_vae import VAE, AutoVAEGuide, likelihoods, networks
from scenarios.scenario import Scenario


class BayesianLinear(PyroModule):
    """A linear network whose weights have a prior, the offset as their last column.

    Particles have each a draw of their own.
    """

    broadcasts = True

    def __init__(self, in_shape: torch.Size, out_shape: torch.Size) -> None:
        super().__init__()
        self.out_shape = out_shape
        size = out_shape.numel(), in_shape.numel() + 1
        self.weight = PyroSample(dist.Normal(torch.zeros(size), 1.0).to_event(2))

    def forward(self, z: Tensor) -> Tensor:
        """Maps ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``."""
        z = nn.functional.pad(z, (0, 1), value=1.0)
        return (self.weight @ z.unsqueeze(-1)).squeeze(-1).unflatten(-1, self.out_shape)


class Program(PyroModule):
    """The model: the weights once, and the rows given them."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.vae = vae

    def forward(self, x: Tensor) -> Tensor:
        """Returns the codes of rows."""
        # Sampled where it is asked for first, and remembered as long as this call lasts.
        _ = self.decoder.weight
        with pyro.plate("rows", len(x)):
            return self.vae.model(x)


def guide_of(model: Program, weights: type[AutoGuide], **options: float) -> AutoGuideList:
    """Returns a guide of a family for the weights, and of the encoder for the codes."""
    guide = AutoGuideList(model)
    guide.append(weights(poutine.block(model, expose=["decoder.weight"]), **options))
    guide.append(AutoVAEGuide(model, model.vae))
    return guide


def make() -> Scenario:
    """Returns a small instance."""
    vae = VAE(
        4,
        2,
        plate=None,
        likelihood=likelihoods.Normal,
        encoder=networks.MLP,
        decoder=BayesianLinear,
    )
    model = Program(vae)
    guide = guide_of(model, AutoNormal)
    x = torch.randn(6, 4)
    guide(x)
    return Scenario(
        model,
        guide,
        (x,),
        nn.ModuleList([vae, guide[0]]),
        ("decoder.weight", "vae.z"),
        initial=lambda: {"decoder.weight": torch.zeros(4, 3), "vae.z": torch.zeros(6, 2)},
    )
