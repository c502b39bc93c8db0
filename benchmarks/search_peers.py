"""One search by ``hydra/sweeper=optuna`` and by hydra-optuna-mlflow-sweeper, on the digits.

    python benchmarks/search_peers.py --results FILE [--seeds 3] [--trials 24]

Both choose the prior, the latent dimensions and the learning rate by Optuna's TPE, with two trials
at a time on one thread each. Needs the extras ``joblib`` and ``optuna``, and the package
hydra-optuna-mlflow-sweeper 0.1.3. Prints the best log evidence, the epochs that were trained, and
the seconds; a finished search is a line of the file, and is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SPACE = [
    "vae/prior=normal,vamp",
    "vae.latent_dim=range(2,21)",
    "optimizer.lr=tag(log,interval(1e-4,3e-2))",
    "train.epochs=100",
]
OURS = ["hydra/sweeper=optuna", "hydra.sweeper.workers=2"]
SEARCHES = {
    "ours": OURS,
    "ours, median": [*OURS, "hydra/sweeper/pruner=median"],
    "peer": [
        "hydra/sweeper=mlflow_optuna",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "hydra.sweeper.optuna_config.direction=maximize",
        "hydra.sweeper.optuna_config.storage=sqlite:///study.db",
    ],
}


def list_words(name: str, trials: int, seed: int) -> list[str]:
    """Returns the words of a search."""
    if name == "peer":
        own = "hydra.sweeper.optuna_config"
        sampler = f"+{own}.sampler._target_=optuna.samplers.TPESampler"
        counted = [f"{own}.n_trials={trials}", sampler, f"+{own}.sampler.seed={seed}"]
    else:
        counted = [f"hydra.sweeper.trials={trials}", f"hydra.sweeper.sampler.seed={seed}"]
    return [*SEARCHES[name], *counted, *SPACE]


def search(name: str, trials: int, seed: int) -> dict[str, Any]:
    """Runs a search, and returns its figures."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pyro_vae", "-m", *list_words(name, trials, seed)],
            cwd=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        folders = [path.parent for path in Path(place).glob("multirun/sweep/*/history.csv")]
        metrics = [path / "metrics.json" for path in folders if (path / "metrics.json").exists()]
        values = [json.loads(path.read_text())["log_evidence"] for path in metrics]
        epochs = [len((path / "history.csv").read_text().splitlines()) - 1 for path in folders]
    return {
        "search": name, "seed": seed, "best": max(values), "finished": len(values),
        "jobs": len(folders), "epochs": sum(epochs), "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=24)
    given = parser.parse_args()
    path = given.results
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    finished = {(row["search"], row["seed"]) for row in rows}
    for seed in range(given.seeds):
        for name in SEARCHES:
            if (name, seed) not in finished:
                rows.append(search(name, given.trials, seed))
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(
        "| search | best log evidence | trials finished | epochs | seconds |\n|---|---|---|---|---|"
    )
    for name in SEARCHES:
        own = [row for row in rows if row["search"] == name]
        best, done, epochs, seconds = (
            statistics.mean(row[key] for row in own)
            for key in ("best", "finished", "epochs", "seconds")
        )
        print(f"| {name} | {best:.2f} | {done:.1f} | {epochs:.0f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
