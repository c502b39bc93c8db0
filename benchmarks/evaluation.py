"""Compiled evaluation beside the eager one, and beside the matmuls alone.

    python benchmarks/evaluation.py [--networks mlp,conv] [--rows 1000] [--particles 5000]
        [--threads 1] [--rounds 3]

The log evidence of binary images of 28 by 28 pixels, by a decoder 10-200-784 or by the default
convolutional one. Nothing is trained, because the time does not depend on the weights. Each round
runs the three in turn: the eager estimate on a tenth of the rows, the compiled one on all rows, and
for the perceptron the decoder's matmuls alone by oneDNN on as many samples. The first compiled call
includes the compilation and is shown apart. Both estimates of the same draws are compared, and so
are those of matmuls and convolutions in bfloat16.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from pyro_vae import VAE, evaluate, networks
from pyro_vae.compiled.matmul import get_onednn_matmul

NETWORKS = {
    "mlp": (partial(networks.MLP, hidden=[200]), partial(networks.MLP, hidden=[200])),
    "conv": (networks.ConvEncoder, networks.ConvDecoder),
}
BLOCK = 500
"""Samples at once for the matmuls alone, few enough for the cache of a core."""


def seconds(run: Callable[[], object]) -> float:
    """Returns the duration of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def multiply(vae: VAE, samples: int) -> None:
    """Makes the decoder's matmuls for a number of samples."""
    matmul = get_onednn_matmul()
    weights = [p for p in vae.decoder.parameters() if p.dim() == 2]
    inputs = [torch.randn(BLOCK, weight.shape[1]) for weight in weights]
    for _ in range(samples // BLOCK):
        for x, weight in zip(inputs, weights, strict=True):
            matmul(x, weight)


@torch.no_grad()
def compare(name: str, rows: int, particles: int, rounds: int) -> None:
    """Prints the times of one network."""
    encoder, decoder = NETWORKS[name]
    vae = VAE((1, 28, 28), 10, encoder=encoder, decoder=decoder)
    x = (torch.rand(rows, 1, 28, 28) < 0.3).float()
    few = max(100, rows // 10)

    def estimate(
        data: torch.Tensor,
        compiled: bool | str,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> torch.Tensor:
        torch.manual_seed(0)
        return evaluate.log_evidence(vae, data, particles, compile=compiled, precision=precision)

    first = seconds(lambda: estimate(x[:few], "strict"))
    exact = estimate(x[:few], False)
    difference = estimate(x[:few], "strict") - exact
    rounded = estimate(x[:few], "strict", "bfloat16") - exact
    times: dict[str, list[float]] = {"eager": [], "compiled": [], "matmuls": []}
    for _ in range(rounds):
        times["eager"].append(seconds(lambda: estimate(x[:few], False)) * rows / few)
        times["compiled"].append(seconds(lambda: estimate(x, "strict")))
        if name == "mlp":
            times["matmuls"].append(seconds(lambda: multiply(vae, rows * particles)))
    outputs = rows * particles * 784
    for kind, values in times.items():
        if values:
            middle = statistics.median(values)
            print(
                f"  {kind:8} {middle:7.2f} s, {middle / outputs * 1e9:6.2f} ns per pixel and sample"
            )
    pairs = zip(times["eager"], times["compiled"], strict=True)
    print(f"  eager to compiled {statistics.median(a / b for a, b in pairs):.2f}")
    if times["matmuls"]:
        pairs = zip(times["compiled"], times["matmuls"], strict=True)
        print(f"  compiled to matmuls {statistics.median(a / b for a, b in pairs):.2f}")
    print(f"  first call on {few} rows {first:.1f} s")
    print(f"  difference of the means {difference.mean().item():.1e} nats")
    print(
        f"  in bfloat16 {rounded.mean().item():.1e} nats, and {rounded.square().mean().sqrt():.1e} "
        f"per row"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="mlp,conv")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} thread(s), {given.rounds} rounds")
    print(f"{given.rows} rows, {given.particles} particles")
    for name in given.networks.split(","):
        torch.manual_seed(0)
        print(name)
        compare(name, given.rows, given.particles, given.rounds)


if __name__ == "__main__":
    main()
