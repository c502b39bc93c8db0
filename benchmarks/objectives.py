"""All objectives on dynamically binarized MNIST, at the same number of decoder evaluations.

    python benchmarks/objectives.py --root FOLDER --out RESULTS [--seeds 3] [--epochs 8] [--jobs 2]

FOLDER is the one above ``MNIST/raw``. The network is that of the IWAE paper's one-layer model,
784-200-200-50-200-200-784 with tanh. Every objective evaluates the decoder eight times for a datum
and epoch: those of one sample go through eight times the epochs. Each run is a file of RESULTS;
the same command again makes what is missing, and goes on with what was cut off. Judged are the
weights of the last epoch on 1,000 test rows, in nats per datum. The table gives means over seeds;
differences are paired by seed, the standard error being that over seeds.
"""

import argparse
import json
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from pyro_vae import VAE, data, evaluate, fit, networks, objectives

PARTICLES = 8

CONTENDERS = {
    "ELBO, 1 sample, 8 x the steps": partial(objectives.ELBO, 1),
    "ELBO": objectives.ELBO,
    "ELBO, KL sampled": partial(objectives.ELBO, analytic=False),
    "ELBO, STL": partial(objectives.ELBO, estimator="stl"),
    "Capacity 25": partial(objectives.Capacity, capacity=25.0, gamma=10.0),
    "FreeBits 0.1": partial(objectives.FreeBits, nats=0.1),
    "GECO 80": partial(objectives.GECO, target=80.0, step_size=1e-5),
    "IWAE": objectives.IWAE,
    "IWAE, STL": partial(objectives.IWAE, estimator="stl"),
    "IWAE, DReG": partial(objectives.IWAE, estimator="dreg"),
    "CIWAE 0.5": partial(objectives.CIWAE, beta=0.5),
    "MIWAE 4 x 2": partial(objectives.MIWAE, groups=4),
    "PIWAE 4 x 2": partial(objectives.PIWAE, groups=4),
    "Renyi 0.5": partial(objectives.Renyi, alpha=0.5),
    "VR-max": partial(objectives.Renyi, alpha=-math.inf),
    "Jackknife, guide by ELBO": objectives.Jackknife,
    "Jackknife, guide by IWAE": partial(objectives.Jackknife, guide_bound="iwae"),
    "Jackknife, guide by itself": partial(objectives.Jackknife, guide_bound="jackknife"),
}


def make(name: str) -> tuple[objectives.Objective, int]:
    """Returns an objective, and by how much its epochs are multiplied."""
    if "1 sample" in name:
        return CONTENDERS[name](), PARTICLES
    return CONTENDERS[name](PARTICLES), 1


def judge(vae: VAE, x: torch.Tensor) -> dict[str, float]:
    """Returns the figures of a trained VAE."""
    torch.manual_seed(0)
    evidence = evaluate.log_evidence(vae, x, 1000)
    bound = evaluate.elbo(vae, x, num_particles=50)
    return {
        "log evidence": evidence.mean().item(),
        "ELBO": bound.elbo.mean().item(),
        "gap": (evidence - bound.elbo).mean().item(),
        "rate": bound.rate.mean().item(),
        "distortion": bound.distortion.mean().item(),
        "active units": float(evaluate.active_units(vae, x).sum()),
    }


def one(name: str, seed: int, root: str, out: Path, epochs: int) -> Path:
    """Makes one run, and writes its figures."""
    torch.set_num_threads(1)
    folder = out / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
    result = folder / "result.json"
    if result.exists():
        return result
    mnist = data.mnist(root, binarize="dynamic")
    torch.manual_seed(seed)
    network = partial(networks.MLP, hidden=[200, 200], activation="tanh")
    vae = VAE(mnist.event_shape, latent_dim=50, encoder=network, decoder=network)
    objective, times = make(name)
    trained = fit(
        vae,
        mnist.train,
        objective=objective,
        epochs=epochs * times,
        batch_size=25,
        seed=seed,
        out=folder,
        resume=True,
        compile=True,
    )
    figures = judge(vae, mnist.x.test[:1000])
    figures["seconds"] = trained.seconds
    partial_file = folder / "result.partial"
    partial_file.write_text(json.dumps(figures, indent=2))
    partial_file.rename(result)
    return result


def table(out: Path, seeds: int) -> str:
    """Returns the results in Markdown, those that there are."""
    runs = {}
    for name in CONTENDERS:
        paths = [
            out / f"{name.replace(' ', '_').replace(',', '')}-{seed}" / "result.json"
            for seed in range(seeds)
        ]
        if all(path.exists() for path in paths):
            runs[name] = [json.loads(path.read_text()) for path in paths]
    columns = ["log evidence", "ELBO", "gap", "rate", "distortion", "active units"]
    lines = [
        "| objective | log evidence - that of ELBO | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, results in runs.items():
        base = runs.get("ELBO", results)
        differences = [
            r["log evidence"] - b["log evidence"] for r, b in zip(results, base, strict=True)
        ]
        cells = [f"{statistics.mean(r[column] for r in results):.2f}" for column in columns]
        lines.append(f"| {name} | {with_error(differences)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_error(values: list[float]) -> str:
    """Returns a mean with its standard error."""
    mean = statistics.mean(values)
    if len(values) < 2 or not any(values):
        return f"{mean:+.2f}"
    return f"{mean:+.2f} +- {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def main() -> None:
    """Makes the runs that are missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        runs = {
            pool.submit(one, name, seed, given.root, given.out, given.epochs): (name, seed)
            for seed in range(given.seeds)
            for name in CONTENDERS
        }
        for run in as_completed(runs):
            name, seed = runs[run]
            print(f"{name}, seed {seed}: {json.loads(run.result().read_text())}", flush=True)
    print(table(given.out, given.seeds))


if __name__ == "__main__":
    main()
