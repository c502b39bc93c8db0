"""Batch correction of simulated cells by pyro_vae and by scvi-tools' SCVI, with the same budget.

    python benchmarks/cells.py --out FOLDER --scvi-python PATH [--seeds 3] [--epochs 400]
        [--cells 3000] [--genes 500]

PATH is the interpreter of an environment with scvi-tools. Both train in a process of their own, on
one thread, on the same cells, for the same epochs with batches of 128. Both raise the weight of the
KL to 1, SCVI over 400 epochs as by default, and pyro_vae over all of them. Results that exist in
FOLDER are kept, so the same command goes on after an interruption.

Measures, from the mean embeddings of all cells:

- ``type``: the accuracy of the type by 15 neighbours, in five folds. Higher is better.
- ``batch``: the same for the batch, within each type, minus the share of the largest batch there.
  Zero is perfect mixing.
- ``decoded``: the same from the logarithms of the genes' shares, of cells that are decoded as cells
  of the first batch.
- ``error``: the root mean square of the error of the logarithm of each gene's share, for cells of
  other batches that are decoded as cells of the first one, weighted by the true share.
"""

import argparse
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

TYPES, BATCHES = 6, 3


def simulate(seed: int, cells: int, genes: int) -> dict[str, np.ndarray]:
    """Returns counts, types, batches, and the true shares of all genes in the first batch."""
    rng = np.random.default_rng(seed)
    kind_effect = rng.normal(0, 1.0, (TYPES, genes)) * (rng.random((TYPES, genes)) < 0.15)
    batch_effect = rng.normal(0, 0.5, (BATCHES, genes))
    base = rng.normal(0, 1.2, genes)
    batch = rng.integers(BATCHES, size=cells)
    # Each type is in each batch, in another proportion.
    shares = rng.dirichlet(np.full(TYPES, 4.0), BATCHES)
    kind = np.array([rng.choice(TYPES, p=shares[b]) for b in batch])
    size = rng.lognormal(np.log(1500), 0.4, (cells, 1))
    theta = rng.lognormal(0.7, 0.5, genes)
    mean = size * _to_shares(base + kind_effect[kind] + batch_effect[batch])
    counts = rng.poisson(mean * rng.gamma(theta, 1 / theta, mean.shape)).astype(np.float32)
    truth = _to_shares(base + kind_effect[kind] + batch_effect[0])
    return {"counts": counts, "type": kind, "batch": batch, "truth": truth}


def _to_shares(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def train_ours(counts: Any, batch: Any, epochs: int) -> tuple[Any, Any]:
    """Trains a VAE, and returns embeddings and shares of the genes as in the first batch."""
    from functools import partial

    from pyro_vae import VAE, data, evaluate, fit, likelihoods, networks, objectives, transforms

    cells = data.counts(counts, obs={"batch": batch}, covariates="batch", valid=0, test=0)
    mlp = partial(networks.MLP, hidden=[128])
    vae = VAE(
        cells.event_shape, 10, covariate_dim=cells.covariate_columns.dim,
        likelihood=partial(likelihoods.NegativeBinomial, size_factor="row_sum"),
        input_transform=transforms.Log1p, encoder=mlp, decoder=mlp,
    )  # fmt: skip
    warm_up = objectives.Linear(0.0, 1.0, steps=epochs * (len(counts) // 128))
    fit(vae, cells.train, epochs=epochs, batch_size=128, schedules={"beta": warm_up})
    x, given = cells.x.train, cells.covariates.train
    first = cells.covariate_columns.replace(given, {"batch": 0})
    corrected = evaluate.transfer(vae, x, given, to=first, num_particles=25)
    return evaluate.posterior_means(vae, x, covariates=given), corrected


def train_scvi(counts: Any, batch: Any, epochs: int) -> tuple[Any, Any]:
    """Trains SCVI, and returns the same."""
    import anndata
    import scvi

    cells = anndata.AnnData(counts, obs={"batch": [str(b) for b in batch]})
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_latent=10, n_hidden=128, n_layers=1, gene_likelihood="nb")
    model.train(max_epochs=epochs, batch_size=128, train_size=1.0, accelerator="cpu")
    corrected = model.get_normalized_expression(transform_batch="0", n_samples=25)
    return model.get_latent_representation(), corrected


METHODS = {"pyro_vae": train_ours, "SCVI": train_scvi}


def run_one(name: str, source: Path, seed: int, epochs: int, out: Path) -> None:
    """Trains by one library, and writes its results."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    if name == "SCVI":
        import scvi

        scvi.settings.seed = seed
    cells = np.load(source)
    start = time.perf_counter()
    latent, corrected = METHODS[name](cells["counts"], cells["batch"], epochs)
    seconds = time.perf_counter() - start
    corrected = np.asarray(corrected, dtype=np.float64)
    shares = corrected / corrected.sum(1, keepdims=True)
    np.savez(out, latent=np.asarray(latent), shares=shares, seconds=seconds)


def measure(result: Any, cells: Any) -> dict[str, float]:
    """Returns the measures of a result."""
    other = cells["batch"] != 0
    truth = cells["truth"][other]
    difference = np.log(result["shares"][other] + 1e-12) - np.log(truth)
    return {
        "type": predict_by_neighbours(result["latent"], cells["type"]),
        "batch": measure_mixing(result["latent"], cells),
        "decoded": measure_mixing(np.log1p(1e4 * result["shares"]), cells),
        "error": float(np.sqrt((truth * difference**2).sum(1).mean())),
        "seconds": float(result["seconds"]),
    }


def measure_mixing(values: np.ndarray, cells: Any) -> float:
    """Returns the accuracy of the batch within each type, minus the share of the largest batch."""
    excesses = [
        predict_by_neighbours(values[rows], cells["batch"][rows])
        - np.bincount(cells["batch"][rows]).max() / rows.sum()
        for rows in (cells["type"] == kind for kind in range(TYPES))
    ]
    return float(np.mean(excesses))


def predict_by_neighbours(latent: np.ndarray, labels: np.ndarray) -> float:
    """Returns the accuracy of labels by 15 neighbours, in five folds."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(KNeighborsClassifier(15), latent, labels, cv=folds).mean())


def count_lines(function: Any) -> int:
    """Returns the number of lines of a function that a user types."""
    body = inspect.getsource(function).split('"""', 2)[2].splitlines()
    return sum(bool(line.strip()) for line in body)


def main() -> None:
    """Trains each library on each seed, unless its result exists, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scvi-python", default=sys.executable)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(given.one, given.source, given.seed, given.epochs, given.out)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(given.seeds):
        source = given.out / f"cells_{seed}.npz"
        if not source.exists():
            np.savez(source, **simulate(seed, given.cells, given.genes))
        for name, python in (("pyro_vae", sys.executable), ("SCVI", given.scvi_python)):
            out = given.out / f"{name}_{seed}_{given.epochs}.npz"
            if not out.exists():
                subprocess.run(
                    [python, __file__, "--one", name, "--source", source, "--seed", str(seed),
                     "--epochs", str(given.epochs), "--out", out], check=True,
                )  # fmt: skip
            rows[name].append(measure(np.load(out), np.load(source)))
            print(json.dumps({"library": name, "seed": seed, **rows[name][-1]}), flush=True)
    print("\n| library | lines | seconds | type | batch | decoded | error |")
    print("|---|---|---|---|---|---|---|")
    for name, found in rows.items():
        means = {key: np.mean([row[key] for row in found]) for key in found[0]}
        print(
            f"| {name} | {count_lines(METHODS[name])} | {means['seconds']:.0f} | "
            f"{means['type']:.3f} | {means['batch']:+.3f} | {means['decoded']:+.3f} | "
            f"{means['error']:.3f} |"
        )


if __name__ == "__main__":
    main()
