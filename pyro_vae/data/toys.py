"""Synthetic rows in the plane, from a separate generator; without files or downloads."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from pyro_vae.data.base import Data, build_data, split_row_numbers
from pyro_vae.validation import check_number, check_seed, check_size

__all__ = ["checkerboard", "moons", "pinwheel", "ring"]


def ring(
    n: int = 2000, *, noise: float = 0.05, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    """Returns rows near the unit circle: a uniform angle, then normal noise in both directions.

    Arguments:
        n: The number of rows.
        noise: The standard deviation of the noise.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise.
        seed: The seed of rows and split.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> ring(1000).x.train.shape
        torch.Size([700, 2])
    """

    def draw(generator: Generator) -> tuple[Tensor, None]:
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        return torch.stack([angle.cos(), angle.sin()], -1), None

    return draw_data("ring", draw, n, noise, valid, test, seed)


def moons(
    n: int = 2000, *, noise: float = 0.05, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    """Returns two interleaving half circles, labelled by half circle.

    Arguments and errors are those of :func:`ring`.
    """

    def draw(generator: Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (n,), generator=generator)
        angle = math.pi * torch.rand(n, generator=generator)
        sign = 1 - 2 * labels
        x = sign * angle.cos() + labels - 0.5
        return torch.stack([x, sign * angle.sin() + labels / 2 - 0.25], -1), labels

    return draw_data("moons", draw, n, noise, valid, test, seed)


def pinwheel(
    n: int = 2000, *, noise: float = 0.05, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    """Returns five spiral arms around the centre, labelled by arm.

    References:
        | Composing graphical models with neural networks (Johnson et al., 2016),
          https://arxiv.org/abs/1603.06277

    Arguments and errors are those of :func:`ring`.
    """

    def draw(generator: Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(5, (n,), generator=generator)
        along = 0.3 + 1.2 * torch.rand(n, generator=generator)
        angle = 2 * math.pi * labels / 5 + 0.25 * (along / 0.5).exp() / math.e
        return torch.stack([along * angle.cos(), along * angle.sin()], -1), labels

    return draw_data("pinwheel", draw, n, noise, valid, test, seed)


def checkerboard(
    n: int = 2000, *, noise: float = 0.0, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    r"""Returns rows uniform on the eight dark unit squares of a 4 x 4 board, centred at zero.

    Without noise the density is 1/8 on the dark squares, so the expected log evidence of a model
    is at most :math:`-\log 8 = -2.079` nats.

    Arguments and errors are those of :func:`ring`.
    """

    def draw(generator: Generator) -> tuple[Tensor, None]:
        square = torch.randint(8, (n,), generator=generator)
        row = square // 2
        corner = torch.stack([2 * (square % 2) + row % 2, row], -1)
        return corner + torch.rand(n, 2, generator=generator) - 2, None

    return draw_data("checkerboard", draw, n, noise, valid, test, seed)


def draw_data(
    name: str,
    draw: Callable[[Generator], tuple[Tensor, Tensor | None]],
    n: int,
    noise: float,
    valid: float,
    test: float,
    seed: int,
) -> Data:
    """Draws rows with a separate generator, adds noise and splits them."""
    n = check_size("n", n, least=3)
    noise, seed = check_number("noise", noise, least=0.0), check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, labels = draw(generator)
    x = x + noise * torch.randn(x.shape, generator=generator)
    rows = split_row_numbers(n, valid=valid, test=test, seed=seed)
    return build_data(
        name,
        rows.select(x),
        None if labels is None else rows.select(labels),
        binarize="none",
        seed=seed,
        source=f"{n} rows drawn by seed {seed}, noise {noise:g}",
        row_numbers=rows,
    )
