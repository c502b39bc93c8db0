"""The same sweep by Hydra's basic launcher and by joblib's, one thread a job.

    python benchmarks/launchers.py [--jobs 8] [--workers 2] [--epochs 1200]

Prints the seconds of both and their ratio, the seconds of the shortest job, and whether both gave
the same figures, histories and weights to the bit. Needs the extra ``joblib``.
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
    joblib = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={given.workers}"]
    with tempfile.TemporaryDirectory() as place:
        one, many = Path(place, "basic"), Path(place, "joblib")
        for folder in (one, many):
            folder.mkdir()
        basic = sweep(one, [], given.jobs, given.epochs)
        parallel = sweep(many, joblib, given.jobs, given.epochs)
        print(f"{given.jobs} jobs, the shortest {shortest(one):.1f} s of training alone")
        print(f"basic {basic:.1f} s, joblib with {given.workers} workers {parallel:.1f} s")
        print(f"joblib is {basic / parallel:.2f} times as fast")
        print(f"same bits: {results(one) == results(many)}")


if __name__ == "__main__":
    main()
