"""Eight whole jobs that differ in their seeds: by joblib with two workers, and by ``fit_many``.

    python benchmarks/vectorized.py [--jobs 8] [--repeats 3]

All jobs are trained, evaluated on held-out digits and reported, with the default settings, on one
thread each. ``fit_many`` trains all jobs of a process by one graph. Evaluation and report follow
one after the other. ``2 x fit_many`` shares the jobs between two processes. The times include the
start of the commands. The first repeat fills the caches and is not counted.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MANY = """
import sys
from pathlib import Path
import torch
from pyro_vae import config, fit_many
from pyro_vae.report.content import build_report
from pyro_vae.report.page import write
from pyro_vae.report.trained_run import TrainedRun
from pyro_vae.run.experiment import evaluate_trained_run
torch.set_num_threads(1)
folder, *seeds = Path(sys.argv[1]), *map(int, sys.argv[2:])
jobs = [config.compose([f"seed={seed}", f"out={folder}/job{seed}"]) for seed in seeds]
data = config.build(jobs[0].data)
vaes = []
for cfg in jobs:
    torch.manual_seed(cfg.seed)
    vaes.append(config.build(cfg.vae, event_shape=tuple(data.event_shape)))
settings = jobs[0].train
results = fit_many(
    vaes, data.train, valid=data.valid, seed=seeds, epochs=settings.epochs,
    batch_size=settings.batch_size, patience=settings.patience, strict=True,
    optimizer=config.build(jobs[0].optimizer),
)
for cfg, vae, result in zip(jobs, vaes, results):
    cfg.evaluate.tolerance = None
    run = TrainedRun(cfg, data, vae, config.build(cfg.objective), result)
    metrics, evidence = evaluate_trained_run(run)
    Path(cfg.out).mkdir()
    write(build_report(run, metrics, evidence), Path(cfg.out))
"""


def time_commands(commands: list[list[str]], folder: Path) -> float:
    """Runs commands at the same time, and returns the seconds until the last one ends."""
    began = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen([sys.executable, *words], cwd=folder, **quiet) for words in commands
    ]
    codes = [process.wait() for process in processes]
    assert not any(codes), codes
    return time.perf_counter() - began


def list_contenders(jobs: int) -> dict[str, list[list[str]]]:
    """Returns the commands of each contender."""
    seeds = [str(seed) for seed in range(jobs)]
    sweep = ["-m", "pyro_vae", "-m", f"seed={','.join(seeds)}"]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    many = ["-W", "ignore", "-c", MANY, "."]
    return {
        "joblib, 2 workers": [[*sweep, *joblib]],
        "fit_many": [[*many, *seeds]],
        "2 x fit_many": [[*many, *seeds[::2]], [*many, *seeds[1::2]]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    contenders = list_contenders(given.jobs)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(given.repeats + 1):
        for name, commands in contenders.items():
            with tempfile.TemporaryDirectory() as place:
                seconds[name].append(time_commands(commands, Path(place)))
    counted = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print("| jobs by | seconds | of joblib |\n|---|---:|---:|")
    for name, value in counted.items():
        print(f"| {name} | {value:.1f} | {value / counted['joblib, 2 workers']:.2f} |")


if __name__ == "__main__":
    main()
