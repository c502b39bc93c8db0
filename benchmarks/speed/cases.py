"""What is trained: networks, objectives, batches and data; all that the contenders share.

Nothing here needs more than NumPy, so that every contender can read it in its own environment.
"""

import gzip
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

PIXELS = 784
LEARNING_RATE = 1e-3
EPSILON = 1e-8
DENSITY = 0.1307
"""The mean of MNIST's pixels."""


class Case(NamedTuple):
    """One thing to train.

    Attributes:
        name: The name.
        batch: The rows of a batch.
        latent: The latent dimensions.
        hidden: The widths of the hidden layers of an MLP; none for the convolutional network.
        activation: The activation.
        particles: The samples K of the importance-weighted bound; 0 for the ELBO.
        epoch: Whether whole epochs are measured, on grey pixels, instead of steps on fixed zeros
            and ones.
        binarize: Whether each presentation of the grey pixels draws zeros and ones.
        check: The steps after which losses are compared.
        references: The contenders that the others are compared with.
    """

    name: str
    batch: int
    latent: int = 10
    hidden: tuple[int, ...] = (200,)
    activation: str = "relu"
    particles: int = 0
    epoch: bool = False
    binarize: bool = False
    check: int = 2000
    references: tuple[str, ...] = (
        "hand",
        "hand_compiled",
        "pyro_meanfield",
        "numpyro_step",
        "numpyro_loop",
    )

    def window(self, steps: int) -> int:
        """Returns the last of some steps over which a loss is averaged.

        It is 200, more where batches are small, and half of them where there are only epochs.
        """
        return steps // 2 if self.epoch else min(steps, max(200, 25_600 // self.batch))

    def network(self) -> str:
        """Describes the networks."""
        if not self.hidden:
            return f"convolutions of 32 and 64 channels, a layer of 128, latent {self.latent}"
        widths = [PIXELS, *self.hidden, self.latent, *reversed(self.hidden), PIXELS]
        return "-".join(map(str, widths)) + f", {self.activation}"

    def objective(self) -> str:
        """Describes the objective."""
        return f"IWAE, K = {self.particles}" if self.particles else "ELBO, closed-form KL"

    def seen(self) -> str:
        """Describes the data as they are presented."""
        if not self.epoch:
            return "zeros and ones, drawn once"
        return "zeros and ones drawn at each presentation" if self.binarize else "grey pixels"


def iwae(particles: int, check: int) -> Case:
    """Makes a case of the importance-weighted bound."""
    return Case(
        f"iwae-{particles}", 20, latent=50, hidden=(200, 200), activation="tanh",
        particles=particles, check=check,
    )  # fmt: skip


WHOLE = ("loader", "pythae", "hand")
CASES = {
    case.name: case
    for case in (
        Case("mlp-20", 20, check=3000),
        Case("mlp-128", 128),
        Case("mlp-1024", 1024, check=500),
        iwae(1, 2560),
        iwae(5, 2000),
        iwae(50, 1500),
        Case("conv-128", 128, hidden=(), check=400),
        Case("epoch", 128, epoch=True, binarize=True, check=936, references=WHOLE),
        Case("epoch-grey", 128, epoch=True, check=936, references=WHOLE),
    )
}


def shapes(case: Case) -> list[tuple[int, ...]]:
    """Returns the shapes of all weights, first the encoder's, each with its bias after it."""
    sides = mlp_shapes(case) if case.hidden else conv_shapes(case)
    return [shape for side in sides for shape in side]


def mlp_shapes(case: Case) -> list[list[tuple[int, ...]]]:
    """Returns the shapes of encoder and decoder, a matrix as (out, in)."""
    encoder = [PIXELS, *case.hidden, 2 * case.latent]
    decoder = [case.latent, *reversed(case.hidden), PIXELS]
    return [
        [shape for a, b in pairwise(widths) for shape in ((b, a), (b,))]
        for widths in (encoder, decoder)
    ]


def conv_shapes(case: Case) -> list[list[tuple[int, ...]]]:
    """Returns the same for the convolutional networks."""
    encoder = [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 3136), (128,)]
    decoder = [(128, case.latent), (128,), (3136, 128), (3136,), (64, 32, 3, 3), (32,)]
    width = 2 * case.latent
    return [[*encoder, (width, 128), (width,)], [*decoder, (32, 1, 3, 3), (1,)]]


def weights(case: Case, seed: int = 0) -> list[np.ndarray]:
    """Draws the initial weights, uniform as PyTorch's own, the same for every contender."""
    random = np.random.default_rng(seed)
    drawn, bound = [], 1.0
    for shape in shapes(case):
        if len(shape) > 1:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
        drawn.append(random.uniform(-bound, bound, shape).astype(np.float32))
    return drawn


class Order:
    """The rows of batch after batch: the same order for every contender that asks.

    The rows that are left over at the end of an epoch are left out.
    """

    def __init__(self, rows: int, batch: int, seed: int = 0) -> None:
        self.rows = rows
        self.batches = rows // batch
        self.random = np.random.default_rng(seed)
        self.at = self.batches
        self.permutation = np.arange(0)

    def advance(self, most: int) -> tuple[int, int]:
        """Goes on by at most so many batches of an epoch; returns the first and the one after.

        At the start of an epoch :attr:`permutation` is new.
        """
        if self.at == self.batches:
            self.permutation = self.random.permutation(self.rows)
            self.at = 0
        first = self.at
        self.at = min(first + most, self.batches)
        return first, self.at


def pixels(root: str | None, rows: int) -> np.ndarray:
    """Returns MNIST's training pictures as bytes, or without a folder noise of their density."""
    if root is None:
        random = np.random.default_rng(1)
        return (255 * (random.random((rows, PIXELS)) < DENSITY)).astype(np.uint8)
    return read(Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte")[:rows]


def read(path: Path) -> np.ndarray:
    """Reads pictures from a file of MNIST's, unpacked or not."""
    if path.exists():
        content = path.read_bytes()
    else:
        content = gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, PIXELS)


def presented(case: Case, grey: np.ndarray) -> np.ndarray:
    """Returns what the contenders are given: bytes, and zeros and ones for steps."""
    if case.epoch:
        return grey
    random = np.random.default_rng(2)
    parts = [
        random.random(part.shape, np.float32) * 255 < part
        for part in np.array_split(grey, max(1, len(grey) // 10_000))
    ]
    return np.concatenate(parts).astype(np.uint8)


def chosen(names: str, known: Sequence[str], what: str) -> list[str]:
    """Returns the names in a list with commas, or raises a ``SystemExit``."""
    found = [name for name in names.split(",") if name]
    for name in found:
        if name not in known:
            raise SystemExit(f"Expected {what} among {', '.join(known)}, got {name!r}")
    return found
