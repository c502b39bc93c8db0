"""The compiled step beside the eager one: loss and gradients, without the optimizer.

    python benchmarks/compiled_step.py [--cache FOLDER] [--threads 1] [--blocks 9]

For the default VAE on 8 by 8 pixels at batch 100 and on 28 by 28 pixels at batch 128: the seconds
of the first call, which compiles, and the medians of blocks of 100 steps, the two in turn. An empty
FOLDER makes the first call that of a machine that has never compiled; by default the cache of
PyTorch's Inductor is used as it is.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from pyro_vae import VAE, compile, objectives


def milliseconds(step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    """Returns the time of one of a hundred steps."""
    began = time.perf_counter()
    for _ in range(100):
        step(x)
    return 10 * (time.perf_counter() - began)


def compare(side: int, rows: int, blocks: int) -> str:
    """Returns a line of the table."""
    vae, objective = VAE((1, side, side), 10), objectives.ELBO()
    x = (torch.rand(rows, 1, side, side) > 0.5).float()

    def eager(x: torch.Tensor) -> torch.Tensor:
        vae.zero_grad()
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        loss.backward()
        return loss

    compiled = compile(objective, vae.model, vae.guide, strict=True)
    began = time.perf_counter()
    compiled(x)
    first = time.perf_counter() - began
    times = [(milliseconds(eager, x), milliseconds(compiled, x)) for _ in range(blocks)]
    slow, fast = map(statistics.median, zip(*times, strict=True))
    return (
        f"{side} x {side}, batch {rows}: first call {first:.1f} s; eager {slow:.2f} ms, "
        f"{compiled.engine} {fast:.2f} ms, {slow / fast:.1f} times as fast"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=9)
    given = parser.parse_args()
    if given.cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = given.cache
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {given.threads} thread(s), {given.blocks} blocks")
    for side, rows in ((8, 100), (28, 128)):
        print(compare(side, rows, given.blocks))


if __name__ == "__main__":
    main()
