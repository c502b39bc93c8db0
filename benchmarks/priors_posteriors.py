"""Log evidence of MNIST for each of four priors with each of four posteriors, at equal steps.

MNIST, binarized anew for each batch; an MLP of 200 units on each side, 10 latent dimensions, 10,000
steps of Adam at a learning rate of 1e-3 with batches of 100 rows, no early stopping. The test rows
are binarized once. The evidence is that of the first 1,000 test rows by 500 samples each.

    python benchmarks/priors_posteriors.py --seeds 3 --results benchmarks/results/mnist.jsonl

A finished job is a line of the file of results, and is not run again. ``--part 0/2`` and
``--part 1/2`` share the jobs between two processes.
"""

import argparse
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyro_vae import VAE, data, evaluate, fit, networks, posteriors, priors

PRIORS = {
    "normal": priors.Normal,
    "mixture": partial(priors.Mixture, components=50),
    "vamp": partial(priors.Vamp, components=50),
    "flow": priors.Flow,
}
POSTERIORS = {
    "normal": posteriors.Normal,
    "full": posteriors.Full,
    "low_rank": posteriors.LowRank,
    # Coupling transforms, because the density of a VampPrior takes their inverse.
    "flow": partial(posteriors.Flow, passes=2),
}
STEPS, BATCH, LATENT_DIM, ROWS, SAMPLES = 10_000, 100, 10, 1000, 500


def run_job(prior: str, posterior: str, seed: int) -> dict[str, Any]:
    digits = data.mnist(binarize="dynamic")
    network = partial(networks.MLP, hidden=[200])
    torch.manual_seed(seed)
    vae = VAE(
        digits.event_shape,
        LATENT_DIM,
        prior=PRIORS[prior],
        posterior=POSTERIORS[posterior],
        encoder=network,
        decoder=network,
        name=f"{prior}_{posterior}_{seed}",
    )
    epochs = round(STEPS / math.ceil(len(digits.x.train) / BATCH))
    start = time.perf_counter()
    result = fit(
        vae,
        digits.train,
        epochs=epochs,
        batch_size=BATCH,
        optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-3),
        seed=seed,
        compile=True,
    )
    seconds = time.perf_counter() - start
    torch.manual_seed(seed)
    x = digits.x.test[:ROWS]
    evidence = evaluate.log_evidence(vae, x, SAMPLES, compile=True, progress=False)
    bound = evaluate.elbo(vae, x, 50)
    return {
        "prior": prior,
        "posterior": posterior,
        "seed": seed,
        "log_evidence": evidence.double().mean().item(),
        "elbo": bound.elbo.double().mean().item(),
        "rate": bound.rate.double().mean().item(),
        "steps": result.steps,
        "seconds": seconds,
    }


def print_table(rows: list[dict[str, Any]], key: str, digits: int) -> None:
    print(f"\n| {key} | " + " | ".join(POSTERIORS) + " |\n|---|" + "---|" * len(POSTERIORS))
    for prior in PRIORS:
        cells = []
        for posterior in POSTERIORS:
            values = [r[key] for r in rows if (r["prior"], r["posterior"]) == (prior, posterior)]
            if len(values) > 1:
                error = statistics.stdev(values) / math.sqrt(len(values))
                cells.append(f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}")
            else:
                cells.append(f"{values[0]:.{digits}f}" if values else "")
        print(f"| {prior} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--part", default="0/1", help="which share of the jobs, as 0/2 or 1/2")
    arguments = parser.parse_args()
    path = arguments.results
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    finished = {(row["prior"], row["posterior"], row["seed"]) for row in rows}
    jobs = [(p, q, s) for s in range(arguments.seeds) for p in PRIORS for q in POSTERIORS]
    own, parts = map(int, arguments.part.split("/"))
    for job in [job for job in jobs[own::parts] if job not in finished]:
        rows.append(run_job(*job))
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], flush=True)
    for key, digits in (("log_evidence", 2), ("elbo", 2), ("rate", 1)):
        print_table(rows, key, digits)


if __name__ == "__main__":
    main()
