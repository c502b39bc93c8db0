"""Synthetic series of different lengths."""

import math

import torch

from pyro_vae.data.base import Data, split_row_numbers
from pyro_vae.validation import check_number, check_seed, check_size

__all__ = ["waves"]

_KINDS = ("sine", "square", "sawtooth")


def waves(
    n: int = 2000,
    *,
    length: int = 40,
    noise: float = 0.1,
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Data:
    """Returns series of sine, square or sawtooth waves that differ in length, labelled by wave.

    Amplitude, period, phase and decay differ by row. A series has between a quarter of the steps
    and all of them; the mask of observed values marks the rest. Values after the end are zero.

    Arguments:
        n: The number of rows.
        length: The number of steps of the longest series, at least 4.
        noise: The standard deviation of the noise.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise.
        seed: The seed of rows and split.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> series = waves(100)
        >>> series.x.train.shape, series.mask.train.shape
        (torch.Size([70, 40, 1]), torch.Size([70, 40, 1]))
    """
    n, length = check_size("n", n, least=3), check_size("length", length, least=4)
    noise, seed = check_number("noise", noise, least=0.0), check_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, 1, generator=generator)

    labels = torch.randint(3, (n,), generator=generator)
    steps = torch.arange(length)
    cycles = steps / draw(6.0, 16.0) + draw(0.0, 1.0)
    sine = torch.sin(2 * math.pi * cycles)
    shapes = torch.stack([sine, sine.sign(), 2 * (cycles % 1) - 1])
    x = draw(0.5, 1.5) * torch.exp(-steps / draw(20.0, 80.0)) * shapes[labels, torch.arange(n)]
    x = x + noise * torch.randn(x.shape, generator=generator)
    ends = torch.randint(length // 4, length + 1, (n, 1), generator=generator)
    mask = (steps < ends).unsqueeze(-1)
    rows = split_row_numbers(n, valid=valid, test=test, seed=seed)
    return Data(
        name="waves",
        binarize="none",
        x=rows.select(x.unsqueeze(-1) * mask),
        labels=rows.select(labels),
        source=f"{n} series of up to {length} steps drawn by seed {seed}, noise {noise:g}",
        mask=rows.select(mask),
        label_names=_KINDS,
        row_numbers=rows,
    )
