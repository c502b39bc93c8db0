"""A mixture of VAEs, each with a code of its own; the component is summed out in the model."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import VAE, networks
from scenarios.scenario import Fails, Scenario

WHY = "needs the component in the guide; only enumeration in the model sums it out"

NO_POSTERIOR = {
    **{
        theirs: Fails(UserWarning, "vars in model but not guide: {'component'}", WHY)
        for theirs in (
            "Trace_ELBO",
            "TraceMeanField_ELBO",
            "TraceGraph_ELBO",
            "RenyiELBO",
            "JitTrace_ELBO",
            "ReweightedWakeSleep",
            "ELBO as a function",
        )
    },
    **{
        ours: Fails(ValueError, "got 'component' in the model only", WHY)
        for ours in ("ELBO", "IWAE")
    },
}


class Components(nn.Module):
    """The prior of the component."""

    def __init__(self, components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self) -> dist.Categorical:
        """Returns the prior, of batch shape ``()``."""
        return dist.Categorical(logits=self.logits)


def program(
    components: Components, vaes: Sequence[VAE]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    r"""Returns model and guide of rows that each come from one of several VAEs.

    The code of a VAE that a row does not come from is drawn as the guide draws it, and cancels. The
    bound is :math:`\mathbb{E} \log \sum_k \pi_k w_k`, where :math:`w_k` is the importance weight
    of the k-th VAE: it is tight where the posterior of each VAE is, and needs no posterior of the
    component.

    Pyro multiplies the densities of sites to sum a component out. A code whose rate exceeds 87 nats
    underflows in single precision, and one of 700 in double.

    References:
        | Bayesian model choice via Markov chain Monte Carlo methods (Carlin and Chib, 1995)
    """

    def model(x: Tensor) -> None:
        pyro.module("components", components)
        with pyro.plate("rows", len(x)):
            component = pyro.sample("component", components(), infer={"enumerate": "parallel"})
            decoded = []
            for k, vae in enumerate(vaes):
                z = pyro.sample(f"{vae.name}.z", switched(component == k, vae, x))
                decoded.append(vae.decode(z))
            pyro.sample("x", chosen(component, decoded), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            for vae in vaes:
                vae.guide(x)

    return model, guide


def switched(own: Tensor, vae: VAE, x: Tensor) -> dist.TorchDistribution:
    """Returns p(z) for a VAE's own rows, and q(z given x) for those of the others."""
    q, p = vae.encode(x).base_dist, vae.prior_distribution().base_dist
    # Number by number: of vectors Pyro does not see that both have the same support.
    return dist.MaskedMixture(own[..., None], q, p).to_event(1)


def chosen(component: Tensor, decoded: list[dist.TorchDistribution]) -> dist.TorchDistribution:
    """Returns p(x given z) of the component of each row.

    One site for all, as an enumeration multiplies the densities of sites, and the small ones of a
    site for each component would underflow.
    """
    p = decoded[0]
    for k, other in enumerate(decoded[1:], 1):
        p = dist.MaskedMixture(component == k, p, other)
    return p


def make() -> Scenario:
    """Returns a small instance."""
    mlp = partial(networks.MLP, hidden=[16])
    vaes = [VAE(5, 2, name=f"vae_{k}", plate=None, encoder=mlp, decoder=mlp) for k in range(3)]
    components = Components(3)
    model, guide = program(components, vaes)
    codes = tuple(f"{vae.name}.z" for vae in vaes)
    return Scenario(
        model,
        guide,
        (torch.rand(6, 5).round(),),
        nn.ModuleList([*vaes, components]),
        codes,
        discrete=True,
        initial=lambda: {name: torch.zeros(6, 2) for name in codes},
        fails=NO_POSTERIOR,
    )
