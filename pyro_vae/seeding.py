"""The random state: seeded within a block, and left as it was for the caller."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["own_randomness", "seed_device"]


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds PyTorch within, and leaves the caller's random state as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_device(device, seed)
        yield


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the processor and one device, where ``torch.manual_seed`` would seed every device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
