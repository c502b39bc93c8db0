"""The data sets of this project."""

import torch

from pyro_vae.data import Data
from pyro_vae.data.base import split_row_numbers

__all__ = ["my_data"]


def my_data(
    n: int = 2000, *, size: int = 6, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    """Returns images of bars: each row and each column of pixels is on or off at random.

    References:
        | Forming sparse representations by local anti-Hebbian learning (Földiák, 1990),
          https://doi.org/10.1007/BF02331346

    Arguments:
        n: The number of images.
        size: Their height and width; there are ``2 * size`` bars, each with probability
            ``1 / size``.
        valid: The images for validation: a number, or a fraction if it is a float.
        test: The images for the test, likewise.
        seed: The seed of images and split.
    """
    # Read your own files here. Keep small ones in this package, and find them from any folder by
    # Path(__file__).parent / "my_file.csv"; pass the path of large ones as an argument.
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(n, 1, size, 1, generator=generator) < 1 / size
    columns = torch.rand(n, 1, 1, size, generator=generator) < 1 / size
    images = (rows | columns).float()
    bars = (rows.sum((1, 2, 3)) + columns.sum((1, 2, 3))).long()
    split = split_row_numbers(n, valid=valid, test=test, seed=seed)
    return Data(
        name="my_data",
        binarize="none",
        # Of shape (n, *event_shape); networks and likelihood follow from it.
        x=split.select(images),
        # Integers, for the colours of figures only; or None.
        labels=split.select(bars),
        source=f"{n} images of {size} x {size} pixels, drawn by seed {seed}",
        row_numbers=split,
    )
