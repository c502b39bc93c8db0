"""What the contenders that run on PyTorch share: networks, batches, the optimizer."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from cases import EPSILON, LEARNING_RATE, PIXELS, Case, Order, weights
from contenders.base import Runner
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def perceptron(widths: list[int], activation: str) -> nn.Sequential:
    """Makes a multilayer perceptron."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def networks(case: Case) -> tuple[nn.Module, nn.Module]:
    """Makes encoder and decoder, from rows of pixels to rows of logits."""
    if not case.hidden:
        return convolutions(case.latent)
    encoder = perceptron([PIXELS, *case.hidden, 2 * case.latent], case.activation)
    decoder = perceptron([case.latent, *reversed(case.hidden), PIXELS], case.activation)
    return encoder, decoder


def convolutions(latent: int) -> tuple[nn.Module, nn.Module]:
    """Makes the same networks as pyro_vae's ConvEncoder and ConvDecoder by default."""
    halve = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
    double = partial(nn.ConvTranspose2d, kernel_size=3, stride=2, padding=1, output_padding=1)
    encoder = nn.Sequential(
        nn.Unflatten(-1, (1, 28, 28)), halve(1, 32), nn.ReLU(), halve(32, 64), nn.ReLU(),
        nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 2 * latent),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(latent, 128), nn.ReLU(), nn.Linear(128, 3136), nn.Unflatten(-1, (64, 7, 7)),
        nn.ReLU(), double(64, 32), nn.ReLU(), double(32, 1), nn.Flatten(),
    )  # fmt: skip
    return encoder, decoder


@torch.no_grad()
def load(case: Case, *parts: nn.Module) -> None:
    """Copies the initial weights that all contenders share."""
    parameters = [parameter for part in parts for parameter in part.parameters()]
    for parameter, value in zip(parameters, weights(case), strict=True):
        parameter.copy_(torch.from_numpy(value))


def fused_adam(parameters: Iterable[Tensor]) -> torch.optim.Adam:
    """Makes the optimizer, all of it in one call."""
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=EPSILON, fused=True)


def as_tensor(case: Case, data: np.ndarray, device: str) -> Tensor:
    """Returns the data as floats on the device; grey bytes within [0, 1]."""
    x = torch.from_numpy(data).to(device).float()
    return x.div_(255) if case.epoch else x


class StepRunner(Runner):
    """Calls a step on batch after batch of a tensor on the device.

    Arguments:
        case: The case.
        data: Bytes.
        device: The device.
        step: Makes an optimizer step on a batch; returns the loss, summed over rows or per datum.
        shape: The shape of a row.
        per_datum: Whether the loss is one per datum.
    """

    def __init__(
        self,
        case: Case,
        data: np.ndarray,
        device: str,
        step: Callable[[Tensor], Tensor | float],
        *,
        shape: tuple[int, ...] = (PIXELS,),
        per_datum: bool = False,
    ) -> None:
        self.rows_per_call = case.batch
        self.binarize = case.binarize
        self.device = device
        self.step = step
        self.scale = 1 if per_datum else case.batch
        self.x = as_tensor(case, data, device).reshape(-1, *shape)
        self.order = Order(len(data), case.batch)
        self.permutation = torch.empty(0)

    def run(self, calls: int) -> float:
        """Trains for so many steps."""
        total = torch.zeros((), device=self.device)
        left = calls
        while left:
            first, last = self.order.advance(left)
            if first == 0:
                self.permutation = torch.from_numpy(self.order.permutation).to(self.device)
            for i in range(first, last):
                total += self.step(self.batch(i))
            left -= last - first
        if self.device == "cuda":
            torch.cuda.synchronize()
        return total.item() / (calls * self.scale)

    def batch(self, i: int) -> Tensor:
        """Returns a batch, drawn anew if it is to be."""
        size = self.rows_per_call
        x = self.x.index_select(0, self.permutation[i * size : (i + 1) * size])
        return torch.bernoulli(x) if self.binarize else x
