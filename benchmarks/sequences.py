"""Series of different lengths: an MLP, a GRU and a transformer on both sides.

The data are those of ``data.waves``: 2,000 series of up to 40 steps. Each VAE has 6 latent
dimensions, a normal likelihood with one learned scale, 100 epochs of Adam at a learning rate of
2e-3 with batches of 100 rows, beta from 0.01 to 1 over the first 20 epochs, and early stopping
after 20 more. All encoders see the mask of observed steps. The evidence is that of the observed
steps of 400 test rows, by 1,000 samples.

    python benchmarks/sequences.py --seeds 3 --results benchmarks/results/sequences.jsonl

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

from pyro_vae import VAE, data, evaluate, fit, likelihoods, networks, objectives, priors, transforms

NETWORKS = {
    "mlp": (partial(networks.MLP, hidden=[200, 200]), partial(networks.MLP, hidden=[200, 200])),
    "gru": (partial(networks.GRUEncoder, masked=True), networks.GRUDecoder),
    "transformer": (
        partial(networks.TransformerEncoder, masked=True, max_period=40),
        partial(networks.TransformerDecoder, max_period=40),
    ),
}  # fmt: skip


def run_job(network: str, seed: int) -> dict[str, Any]:
    series = data.waves(seed=0)
    encoder, decoder = NETWORKS[network]
    torch.manual_seed(seed)
    vae = VAE(
        series.event_shape,
        6,
        prior=priors.Normal,
        likelihood=likelihoods.Normal,
        input_transform=partial(transforms.Identity, append_mask=True),
        encoder=encoder,
        decoder=decoder,
        name=f"{network}_{seed}",
    )
    # Without it, two of three transformers stay at a rate of zero.
    warm_up = objectives.Linear(0.01, 1.0, steps=20 * math.ceil(len(series.x.train) / 100))
    start = time.perf_counter()
    result = fit(
        vae,
        series.train,
        valid=series.valid,
        epochs=100,
        schedules={"beta": warm_up},
        patience=20,
        batch_size=100,
        optimizer=lambda parameters: torch.optim.Adam(parameters, 2e-3),
        seed=seed,
        compile=False,
    )
    seconds = time.perf_counter() - start
    torch.manual_seed(seed)
    x, mask = series.x.test, series.mask.test
    evidence = evaluate.log_evidence(vae, x, 1000, mask=mask, progress=False)
    return {
        "network": network,
        "seed": seed,
        "log_evidence": evidence.double().mean().item(),
        "rate": evaluate.elbo(vae, x, 50, mask=mask).rate.double().mean().item(),
        "epochs": len(result.history),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, required=True)
    arguments = parser.parse_args()
    path = arguments.results
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    finished = {(row["network"], row["seed"]) for row in rows}
    for seed in range(arguments.seeds):
        for network in NETWORKS:
            if (network, seed) not in finished:
                rows.append(run_job(network, seed))
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    print("\n| networks | log evidence | rate | seconds |\n|---|---|---|---|")
    for network in NETWORKS:
        own = [row for row in rows if row["network"] == network]
        values = [row["log_evidence"] for row in own]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        print(
            f"| {network} | {statistics.mean(values):.2f} ± {error:.2f} | "
            f"{statistics.mean(row['rate'] for row in own):.2f} | "
            f"{statistics.mean(row['seconds'] for row in own):.0f} |"
        )


if __name__ == "__main__":
    main()
