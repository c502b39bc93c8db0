"""Counts of cells by two latent levels, as in scANVI: the lower is observed through the upper."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae import VAE, likelihoods, networks, posteriors
from scenarios.scenario import NO_GRADIENT_BY_PATH, Fails, Scenario


class Cells(nn.Module):
    """The networks, and the distributions that they give.

    ``upper`` is a VAE of the lower code, z1: p(z2), p(z1 given z2 and the type), q(z2 given z1 and
    the type). The likelihood of the counts is a part of no VAE, so that p(x given z1) is a plain
    site.

    Arguments:
        genes: The number of genes.
        types: The number of types.
        lower: The length of z1.
        upper: The length of z2.
        width: The width of all hidden layers.
    """

    def __init__(self, genes: int, types: int, *, lower: int, upper: int, width: int) -> None:
        super().__init__()
        mlp = partial(networks.MLP, hidden=[width])
        self.upper = VAE(
            lower,
            upper,
            name="upper",
            plate=None,
            likelihood=partial(likelihoods.Normal, scale="network"),
            encoder=mlp,
            decoder=mlp,
            covariate_dim=types,
        )
        posterior = posteriors.Normal(lower)
        self.rest = nn.ModuleDict(
            {
                "encoder": nn.Sequential(mlp((genes,), posterior.feature_shape), posterior),
                "classifier": mlp((lower,), (types,)),
                "decoder": mlp((lower,), (1, genes)),
                "counts": likelihoods.NegativeBinomial((genes,), size_factor="covariate"),
            }
        )

    def q_code(self, x: Tensor) -> dist.TorchDistribution:
        """Returns q(z1 given x)."""
        return self.rest["encoder"](x.log1p())

    def q_type(self, z1: Tensor) -> dist.TorchDistribution:
        """Returns q(y given z1)."""
        return dist.Categorical(logits=networks.apply_network(self.rest["classifier"], z1, 1))

    def p_counts(self, z1: Tensor, total: Tensor) -> dist.TorchDistribution:
        """Returns p(x given z1), whose means add up to the total of the cell."""
        features = networks.apply_network(self.rest["decoder"], z1, 1)
        return self.rest["counts"](features, total)


def program(cells: Cells, *, weight: float = 1.0) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns model and guide of cells with their type, and of cells without.

    ``config_enumerate(guide)`` and ``TraceEnum_ELBO`` sum over the type.

    Arguments:
        cells: The networks.
        weight: That of log q(y given z1) of the cells with their type, which the bound leaves out.
    """
    one_hot = torch.eye(cells.upper.covariate_dim)

    def explain(x: Tensor, y: Tensor | None, group: str) -> None:
        types = dist.Categorical(logits=torch.zeros(len(one_hot)))
        given = one_hot[pyro.sample(f"type_{group}", types, obs=y)]
        code = poutine.block(cells.upper.model, hide=[f"upper.x_{group}"])
        z2 = code(covariates=given, suffix=group)
        z1 = pyro.sample(f"z1_{group}", cells.upper.decode(z2, given))
        pyro.sample(f"counts_{group}", cells.p_counts(z1, x.sum(-1)), obs=x)
        if y is not None:
            with poutine.scale(scale=weight):
                pyro.sample(f"told_{group}", cells.q_type(z1), obs=y)

    def infer(x: Tensor, y: Tensor | None, group: str) -> None:
        z1 = pyro.sample(f"z1_{group}", cells.q_code(x))
        if y is None:
            y = pyro.sample(f"type_{group}", cells.q_type(z1))
        cells.upper.guide(z1, covariates=one_hot[y], suffix=group)

    def of_both(side: Callable[..., None]) -> Callable[..., None]:
        def run(x: Tensor, y: Tensor, unlabelled: Tensor) -> None:
            pyro.module("cells", cells.rest)
            with pyro.plate("labelled", len(x)):
                side(x, y, "labelled")
            with pyro.plate("unlabelled", len(unlabelled)):
                side(unlabelled, None, "unlabelled")

        return run

    return of_both(explain), of_both(infer)


def make() -> Scenario:
    """Returns a small instance."""
    cells = Cells(6, 3, lower=3, upper=2, width=16)
    model, guide = program(cells)
    x = dist.Poisson(4.0).sample((10, 6))
    groups = {"labelled": 4, "unlabelled": 6}
    codes = {
        **{f"z1_{group}": (rows, 3) for group, rows in groups.items()},
        **{f"upper.z_{group}": (rows, 2) for group, rows in groups.items()},
    }
    return Scenario(
        model,
        guide,
        (x[:4], torch.tensor([0, 1, 2, 1]), x[4:]),
        nn.ModuleList([cells]),
        (*codes, "type_unlabelled"),
        discrete=True,
        initial=lambda: {name: torch.zeros(shape) for name, shape in codes.items()},
        fails={
            **NO_GRADIENT_BY_PATH,
            "TraceMeanField_ELBO": Fails(
                UserWarning,
                "Failed to verify mean field restriction",
                "needs the same order of latent sites in model and guide",
            ),
        },
    )
