"""How the cost of a run grows: seconds of training and evaluation, one factor at a time.

    python benchmarks/cost.py [--rounds 3] [--compile]

Each line changes one factor of a base case fourfold, and shows the time of an epoch and of the log
evidence of 100 rows, and their ratios to the base case. Rounds repeat all cases in turn; times are
medians. The data are random zeros and ones, because the time does not depend on them.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch

from pyro_vae import VAE, evaluate, fit, networks, objectives

BASE = {
    "rows": 2000, "dimensions": 196, "latent_dim": 10, "hidden": 200, "batch_size": 100,
    "particles": 1, "samples": 500,
}  # fmt: skip
FACTOR = 4


def measure(case: dict[str, int], compiled: bool) -> tuple[float, float]:
    """Returns the seconds of one epoch, and of the log evidence of 100 rows."""
    torch.manual_seed(0)
    network = partial(networks.MLP, hidden=[case["hidden"]])
    vae = VAE((case["dimensions"],), case["latent_dim"], encoder=network, decoder=network)
    x = (torch.rand(case["rows"], case["dimensions"]) < 0.3).float()
    particles = case["particles"]
    objective: Any = objectives.ELBO() if particles == 1 else objectives.IWAE(particles)
    moments: list[float] = []

    class Clock:
        def log(self, values: dict[str, float], step: int) -> None:
            moments.append(time.perf_counter())

    settings = {"batch_size": case["batch_size"], "objective": objective, "compile": compiled}
    # The first epoch compiles.
    fit(vae, x, epochs=3, tracker=Clock(), progress=False, **settings)
    epoch = (moments[2] - moments[0]) / 2
    durations = []
    for samples in (case["samples"], 3 * case["samples"]):
        start = time.perf_counter()
        evaluate.log_evidence(vae, x[:100], samples, compile=compiled, progress=False)
        durations.append(time.perf_counter() - start)
    # The difference leaves out the encoder and the compilation.
    return epoch, (durations[1] - durations[0]) / 2


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = {"base case": BASE}
    cases |= {name: BASE | {name: FACTOR * value} for name, value in BASE.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(given.rounds):
        for name, case in cases.items():
            times[name].append(measure(case, given.compile))
    base = [statistics.median(values) for values in zip(*times["base case"], strict=True)]
    print(f"torch {torch.__version__}, 1 thread, {given.rounds} rounds")
    print(f"base case: {BASE}")
    print("| fourfold | epoch, ms | ratio | evidence, ms | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, pairs in times.items():
        epoch, evidence = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(
            f"| {name} | {epoch * 1e3:.0f} | {epoch / base[0]:.1f} | {evidence * 1e3:.0f} | "
            f"{evidence / base[1]:.1f} |"
        )


if __name__ == "__main__":
    main()
