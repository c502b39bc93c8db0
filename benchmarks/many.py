"""Several VAEs at once, by ``fit_many``, beside one after another, by ``fit``.

    python benchmarks/many.py [--vaes 8] [--steps 3000] [--repeats 3] [--threads 1]

The VAEs are MLPs for the digits of 8 by 8 pixels, batch 100, with seeds and betas of their own; one
line for each width of the hidden layer. Each way is a process of its own, with Inductor's cache of
its own, empty in the first of the ``--repeats`` and full in the others; all of a process is timed
but importing. The ways compared give the same weights but for rounding, which is tested; here their
last ELBOs are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

WAYS = ("at_once", "compiled", "eager")
WIDTHS = (32, 64, 200)


def work(way: str, width: int, count: int, steps: int, threads: int) -> dict[str, float]:
    """Trains in this process; returns seconds, and the objective of the last epoch."""
    import torch

    from pyro_vae import VAE, data, fit, fit_many, networks, objectives

    torch.set_num_threads(threads)
    digits = data.digits()
    vaes, net = [], partial(networks.MLP, hidden=[width])
    for seed in range(count):
        torch.manual_seed(seed)
        vaes.append(VAE(digits.event_shape, 10, encoder=net, decoder=net))
    betas = [objectives.ELBO(beta=0.5 + seed / count) for seed in range(count)]
    epochs = rounded_up(steps, rounded_up(len(digits.x.train), 100))
    began = time.perf_counter()
    if way == "at_once":
        results = fit_many(
            vaes, digits.train, objective=betas, epochs=epochs, seed=range(count), strict=True
        )
    else:
        compile = "strict" if way == "compiled" else False
        results = [
            fit(vae, digits.train, objective=beta, epochs=epochs, seed=seed, compile=compile)
            for seed, (vae, beta) in enumerate(zip(vaes, betas, strict=True))
        ]
    last = [result.history[-1]["train_objective"] for result in results]
    return {"seconds": time.perf_counter() - began, "objective": statistics.mean(last)}


def rounded_up(number: int, divisor: int) -> int:
    """Returns a quotient, rounded up."""
    return -(-number // divisor)


def timed(way: str, width: int, given: argparse.Namespace, cache: str) -> dict[str, float]:
    """Does the work in a process of its own."""
    command = [
        sys.executable, __file__, "--work", way, "--width", width, "--vaes", given.vaes,
        "--steps", given.steps, "--threads", given.threads,
    ]  # fmt: skip
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vaes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps(work(given.work, given.width, given.vaes, given.steps, given.threads)))
        return
    print("| hidden | way | seconds, empty cache | full cache | objective |\n|---|---|---|---|---|")
    for width in WIDTHS:
        with tempfile.TemporaryDirectory() as cache:
            # In turn, so that a slow minute of the machine is one for all.
            found = [
                {way: timed(way, width, given, f"{cache}/{way}") for way in WAYS}
                for _ in range(given.repeats)
            ]
        for way in WAYS:
            first, *others = (repeat[way]["seconds"] for repeat in found)
            later = " to ".join(f"{value:.1f}" for value in sorted({min(others), max(others)}))
            print(f"| {width} | {way} | {first:.1f} | {later} | {found[0][way]['objective']:.2f} |")


if __name__ == "__main__":
    main()
