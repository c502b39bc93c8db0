"""What products in bfloat16 change: the ELBO after training, and the time of an epoch.

    python benchmarks/precision.py --root FOLDER [--seeds 5] [--epochs 10] [--threads 1]

FOLDER is the one above ``MNIST/raw``. The network is that of the experiment ``seed_mnist``,
784-400-20, trained with each precision from the same weights on the same batches; the ELBO is that
of the test rows, in nats per datum, under the same noise. Differences are paired by seed.
"""

import argparse
import math
import statistics
from functools import partial

import torch

from pyro_vae import VAE, data, evaluate, fit, networks


def trained(digits: data.Data, precision: str, seed: int, epochs: int) -> tuple[float, float]:
    """Returns the ELBO of the test rows, and the seconds of an epoch."""
    torch.manual_seed(seed)
    net = partial(networks.MLP, hidden=[400])
    vae = VAE(digits.event_shape, 20, encoder=net, decoder=net)
    result = fit(
        vae, digits.train, epochs=epochs, batch_size=128, seed=seed, compile="strict",
        precision=precision,
    )  # fmt: skip
    torch.manual_seed(0)
    elbo = evaluate.elbo(vae, digits.x.test, num_particles=10).elbo.double().mean().item()
    return elbo, result.seconds / epochs


def written(values: list[float]) -> str:
    """Returns mean and standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):+.3f} +- {error:.3f}"


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    digits = data.mnist(root=given.root)
    differences, times = [], {"float32": [], "bfloat16": []}
    for seed in range(given.seeds):
        elbos = {}
        for precision in times:
            elbos[precision], seconds = trained(digits, precision, seed, given.epochs)
            times[precision].append(seconds)
        differences.append(elbos["bfloat16"] - elbos["float32"])
        print(f"seed {seed}: {elbos['float32']:.3f} float32, {elbos['bfloat16']:.3f} bfloat16")
    print(f"bfloat16 less float32: {written(differences)} nats per datum")
    full, half = (statistics.median(times[p]) for p in ("float32", "bfloat16"))
    print(f"an epoch: {full:.2f} s float32, {half:.2f} s bfloat16, {half / full:.2f} of it")


if __name__ == "__main__":
    main()
