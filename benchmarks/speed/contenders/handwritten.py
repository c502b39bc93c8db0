"""Hand-written PyTorch, as fast as it is without tricks: eager, or with its loss compiled.

One tensor on the device, indexed; a Bernoulli by its logits; the KL in closed form; fused Adam; no
number read back within the loop.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from cases import Case
from torch import Tensor, nn
from torch_parts import StepRunner, fused_adam, load, networks

from contenders.base import Runner


class Model(nn.Module):
    """Encoder and decoder."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.encoder, self.decoder = networks(case)
        load(case, self.encoder, self.decoder)
        self.particles = case.particles

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and scale of q."""
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, F.softplus(raw) + 1e-4

    def elbo(self, x: Tensor) -> Tensor:
        """Returns the negative ELBO per datum."""
        loc, scale = self.posterior(x)
        logits = self.decoder(loc + scale * torch.randn_like(loc))
        kl = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum()
        return (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl) / len(x)

    def iwae(self, x: Tensor) -> Tensor:
        """Returns the negative importance-weighted bound per datum."""
        loc, scale = self.posterior(x)
        noise = torch.randn(self.particles, *loc.shape, device=loc.device)
        z = loc + scale * noise
        logits = self.decoder(z)
        some = x.expand(self.particles, *x.shape)
        fit = F.binary_cross_entropy_with_logits(logits, some, reduction="none").sum(-1)
        log_weight = (0.5 * (noise**2 - z**2) + scale.log()).sum(-1) - fit
        bound = log_weight.logsumexp(0) - math.log(self.particles)
        return -bound.mean()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the loss per datum."""
        return self.iwae(x) if self.particles else self.elbo(x)


def prepare(case: Case, data: np.ndarray, device: str, mode: str | None = None) -> Runner:
    """Makes the training; with a mode the loss is compiled."""
    torch.manual_seed(0)
    model = Model(case).to(device)
    optimizer = fused_adam(model.parameters())
    loss_of: Callable[[Tensor], Tensor] = model
    if mode is not None:
        loss_of = torch.compile(model, mode=mode)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return StepRunner(case, data, device, step, per_datum=True)
