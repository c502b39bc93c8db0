"""Steps of pyro_vae with fused Adam: eager as in its ``fit``, or compiled."""

from functools import partial

import numpy as np
import pyro
import torch
from cases import Case
from torch import Tensor
from torch_parts import StepRunner, fused_adam, load

import pyro_vae
from contenders.base import Runner
from pyro_vae import VAE, likelihoods, networks, objectives
from pyro_vae.compiled.step import Step

SHAPE = (1, 28, 28)
STEPS = 32
"""The steps of one call, as in ``fit``."""


def model(case: Case, device: str) -> VAE:
    """Makes the VAE, with the weights that all contenders share."""
    encoder, decoder = networks.ConvEncoder, networks.ConvDecoder
    if case.hidden:
        encoder = partial(networks.MLP, hidden=case.hidden, activation=case.activation)
        decoder = partial(networks.MLP, hidden=case.hidden[::-1], activation=case.activation)
    grey = case.epoch and not case.binarize
    likelihood = partial(likelihoods.Bernoulli, grey_scale=grey)
    vae = VAE(SHAPE, case.latent, encoder=encoder, decoder=decoder, likelihood=likelihood)
    load(case, vae.encoder, vae.decoder)
    return vae.to(device)


def objective(case: Case) -> objectives.Objective:
    """Makes the objective."""
    return objectives.IWAE(case.particles) if case.particles else objectives.ELBO()


class Ours(StepRunner):
    """Steps that say how they were computed."""

    compiled: Step | None = None

    def notes(self) -> str:
        """Returns the engine of the compiled step."""
        return "" if self.compiled is None else str(self.compiled.engine)


class OursInLoops(Ours):
    """Several steps in each call."""

    def run(self, calls: int) -> float:
        """Trains for so many steps."""
        assert self.compiled is not None
        total = torch.zeros((), device=self.device)
        left = calls
        while left:
            first, last = self.order.advance(left)
            if first == 0:
                self.permutation = torch.from_numpy(self.order.permutation).to(self.device)
            for start in range(first, last, STEPS):
                batches = [self.batch(i) for i in range(start, min(last, start + STEPS))]
                total += self.compiled.loop(torch.stack(batches)).sum()
            left -= last - first
        return total.item() / (calls * self.scale)


def prepare(
    case: Case,
    data: np.ndarray,
    device: str,
    products: str | None = None,
    precision: str = "float32",
    apart: bool = False,
    loop: bool = False,
) -> Runner:
    """Makes the training; with products the step is compiled, and the update in it or apart."""
    torch.manual_seed(0)
    vae, loss_of = model(case, device), objective(case)
    optimizer = fused_adam(vae.parameters())

    def eager(x: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        # As in fit, Pyro's checks are off after the first step.
        with pyro.validation_enabled(False):
            loss = loss_of.differentiable_loss(vae.model, vae.guide, x)
        (loss / len(x)).backward()
        optimizer.step()
        return loss.detach()

    if products is None:
        return Ours(case, data, device, eager, shape=SHAPE)
    compiled = pyro_vae.compile(
        loss_of,
        vae.model,
        vae.guide,
        parameters=vae.parameters(),
        products=products,
        precision=precision,
        strict=True,
        # As in fit, whose data are checked before.
        validate=False if loop else None,
        divide_by=case.batch,
        optimizer=None if apart else optimizer,
    )

    def stepped(x: Tensor) -> Tensor:
        loss = compiled(x)
        optimizer.step()
        return loss

    kind = OursInLoops if loop else Ours
    runner = kind(case, data, device, stepped if apart else compiled, shape=SHAPE)
    runner.compiled = compiled
    return runner
