"""Frey Faces by a discretized logistic, with a standard normal prior and with a VampPrior.

The setting is that of Tomczak and Welling (2018, https://arxiv.org/abs/1705.07120), who publish
4.63 and 4.57 bits per dimension: 1565/200/200 rows, two gated layers of 300 units, 40 latent
dimensions, batches of 100, a warm-up of beta over 100 epochs, at most 2,000 epochs, early stopping
after 50 epochs, 500 pseudo-inputs, 5,000 samples of importance sampling. Other than there, the
optimizer is Adam without normalized gradients, and the location of a pixel is not bounded.
Everything was fixed before the first run.

    python benchmarks/frey_faces.py --seeds 5 --results benchmarks/results/frey_faces.jsonl

A finished job is a line of the file of results, and is not run again.
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

from pyro_vae import VAE, data, evaluate, fit, likelihoods, networks, priors
from pyro_vae.objectives import Linear

PRIORS = {"normal": priors.Normal, "vamp": partial(priors.Vamp, components=500)}
PUBLISHED = {"normal": 4.63, "vamp": 4.57}
LEARNING_RATE, BATCH, WARM_UP, EPOCHS, PATIENCE = 5e-4, 100, 100, 2000, 50


def run_job(prior: str, seed: int) -> dict[str, Any]:
    faces = data.frey_faces(scale="closed")
    network = partial(networks.GatedMLP, hidden=[300, 300])
    torch.manual_seed(seed)
    vae = VAE(
        faces.event_shape,
        40,
        prior=PRIORS[prior],
        likelihood=likelihoods.DiscretizedLogistic,
        encoder=network,
        decoder=network,
        name=f"{prior}_{seed}",
    )
    start = time.perf_counter()
    result = fit(
        vae,
        faces.x.train,
        valid=faces.x.valid,
        epochs=EPOCHS,
        batch_size=BATCH,
        patience=PATIENCE,
        optimizer=lambda parameters: torch.optim.Adam(parameters, LEARNING_RATE),
        schedules={"beta": Linear(0.0, 1.0, steps=WARM_UP * math.ceil(1565 / BATCH))},
        seed=seed,
        compile=True,
    )
    seconds = time.perf_counter() - start
    torch.manual_seed(seed)
    evidence = evaluate.log_evidence(vae, faces.x.test, 5000, compile=True, progress=False)
    bound = evaluate.elbo(vae, faces.x.test, 100)
    unit = math.log(2) * faces.event_shape.numel()
    return {
        "prior": prior,
        "seed": seed,
        "bits": -evidence.double().mean().item() / unit,
        "elbo_bits": -bound.elbo.double().mean().item() / unit,
        "rate": bound.rate.double().mean().item(),
        "valid_bits": -max(row["valid_elbo"] for row in result.history) / unit,
        "epochs": len(result.history),
        "best_epoch": result.best_epoch,
        "seconds": seconds,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    print("\n| prior | bits per dimension | published | ELBO | epochs |\n|---|---|---|---|---|")
    for prior, published in PUBLISHED.items():
        own = [row for row in rows if row["prior"] == prior]
        if own:
            bits, bound, epochs = (
                [row[key] for row in own] for key in ("bits", "elbo_bits", "epochs")
            )
            spread = f" ± {_standard_error(bits):.3f}" if len(bits) > 1 else ""
            print(
                f"| {prior} | {statistics.mean(bits):.3f}{spread} | {published} | "
                f"{statistics.mean(bound):.3f} | {statistics.mean(epochs):.0f} |"
            )
    by_seed = {(row["prior"], row["seed"]): row["bits"] for row in rows}
    seeds = sorted({seed for _, seed in by_seed})
    pairs = [s for s in seeds if all((prior, s) in by_seed for prior in PRIORS)]
    differences = [by_seed["normal", s] - by_seed["vamp", s] for s in pairs]
    if len(differences) > 1:
        print(
            f"\nnormal minus vamp, paired over {len(pairs)} seeds: "
            f"{statistics.mean(differences):.4f} ± {_standard_error(differences):.4f}"
        )


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    path = arguments.results
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    finished = {(row["prior"], row["seed"]) for row in rows}
    for seed in range(arguments.seeds):
        for prior in PRIORS:
            if (prior, seed) not in finished:
                rows.append(run_job(prior, seed))
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
