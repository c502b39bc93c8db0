"""Seeds PyTorch's random state, and restores it for the caller."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["fork_and_seed_rng", "seed_device"]


@contextmanager
def fork_and_seed_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds PyTorch within the context, and restores the caller's random state after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_device(device, seed)
        yield


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the CPU and one device; ``torch.manual_seed`` would seed every device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
