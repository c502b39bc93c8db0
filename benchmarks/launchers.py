"""One sweep with the launchers basic, slots and joblib, one thread a job.

    python benchmarks/launchers.py [--jobs 8] [--workers 2] [--epochs 1200]

Prints the seconds of each and their ratio to the first, the training seconds of the shortest job,
and whether all gave the same metrics, histories and weights to the bit. Needs the extra ``joblib``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def sweep(folder: Path, launcher: list[str], jobs: int, epochs: int) -> float:
    """Runs the sweep in a folder, and returns the seconds that it took."""
    seeds = ",".join(map(str, range(jobs)))
    settings = [f"seed={seeds}", f"train.epochs={epochs}", "train.patience=null"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pyro_vae", "-m", *settings, "train.compile=false", *launcher],
        cwd=folder, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - began


def results(folder: Path) -> dict[str, object]:
    """Returns what the jobs computed, and under their names."""
    found = {}
    for path in sorted(folder.glob("multirun/sweep/*/metrics.json")):
        figures = json.loads(path.read_text())
        figures.pop("seconds")
        files = [path.with_name(name).read_bytes() for name in ("history.csv", "model.safetensors")]
        found[path.parent.name] = figures, files
    return found


def shortest(folder: Path) -> float:
    """Returns the seconds that the shortest job spent on training alone."""
    paths = folder.glob("multirun/sweep/*/metrics.json")
    return min(json.loads(path.read_text())["seconds"] for path in paths)


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1200)
    given = parser.parse_args()
    launchers = {
        "basic": [],
        "slots": [
            "hydra/launcher=slots",
            "hydra.launcher.devices=[cpu]",
            f"hydra.launcher.jobs_per_device={given.workers}",
        ],
        "joblib": ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={given.workers}"],
    }
    with tempfile.TemporaryDirectory() as place:
        seconds, computed = {}, {}
        for name, launcher in launchers.items():
            folder = Path(place, name)
            folder.mkdir()
            seconds[name] = sweep(folder, launcher, given.jobs, given.epochs)
            computed[name] = results(folder)
        print(f"{given.jobs} jobs, the shortest trains for {shortest(Path(place, 'basic')):.1f} s")
        for name, one in seconds.items():
            same = "the same bits" if computed[name] == computed["basic"] else "OTHER RESULTS"
            print(f"{name}: {one:.1f} s, {seconds['basic'] / one:.2f} times as fast, {same}")


if __name__ == "__main__":
    main()
