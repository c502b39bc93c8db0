"""Pyro's own SVI on a model and a guide as its example of a VAE has them, networks the same.

Losses are sums over the batch, as they come; epsilon of Adam is scaled likewise, which makes its
updates those of a loss per datum.
"""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from cases import EPSILON, LEARNING_RATE, Case
from pyro import infer
from torch import Tensor, nn
from torch_parts import StepRunner, load, networks

from contenders.base import Runner


class Model(nn.Module):
    """Model and guide over an encoder and a decoder."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.latent = case.latent
        self.encoder, self.decoder = networks(case)
        load(case, self.encoder, self.decoder)

    def model(self, x: Tensor) -> None:
        """Draws z from a standard normal, and x given z."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draws z given x."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, F.softplus(raw) + 1e-4).to_event(1))


class KeptJitTraceMeanField_ELBO(infer.JitTraceMeanField_ELBO):  # noqa: N801, Pyro's own name
    """Pyro's, which keeps its graph: as released it looks for it under a name that it never sets.

    So it traces anew at each step, for several times the time of an eager one, and memory grows.
    """

    @property
    def _loss_and_surrogate_loss(self) -> Any:
        return getattr(self, "_differentiable_loss", None)


def estimator(name: str, case: Case) -> Any:
    """Makes one of Pyro's estimators."""
    if name == "RenyiELBO":
        return infer.RenyiELBO(
            alpha=0, num_particles=case.particles, max_plate_nesting=1, vectorize_particles=True
        )
    if name == "JitTraceMeanField_ELBO":
        return KeptJitTraceMeanField_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    options = {"ignore_jit_warnings": True} if name.startswith("Jit") else {}
    return getattr(infer, name)(max_plate_nesting=1, **options)


def prepare(case: Case, data: np.ndarray, device: str, loss: str, checked: bool = False) -> Runner:
    """Makes the training."""
    pyro.set_rng_seed(0)
    pyro.enable_validation(checked)
    both = Model(case).to(device)
    optimizer = pyro.optim.Adam({"lr": LEARNING_RATE, "eps": EPSILON * case.batch})
    svi = infer.SVI(both.model, both.guide, optimizer, estimator(loss, case))
    return StepRunner(case, data, device, svi.step)
