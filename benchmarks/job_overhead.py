"""The overhead of a job by launcher, over many jobs of a fraction of a second.

    python benchmarks/job_overhead.py [--jobs 200] [--launchers basic,slots,joblib]

Each job trains an MLP for 60 moons for two epochs, evaluates it, and writes a report. The work is
measured by calling ``run`` for all jobs in one process, which has imported all and run one job
before. ``composing`` is the time of Hydra's configuration of a job. The overhead of a launcher is
the time of its sweep, times the number of jobs at a time, less the start of the command, divided by
the number of jobs, less the work. ``submitit_local``, ``slurm`` and ``ray_cluster`` need the extras
``slurm`` and ``ray``. The last two run two jobs at a time on a cluster of two nodes, which is
started on this machine; that of SLURM needs Debian's packages slurm-wlm, slurmdbd, mariadb-server
and munge.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS = [
    "data=moons", "data.n=60", "vae/likelihood=normal", "train.epochs=2", "train.compile=false",
    "evaluate.num_particles=10", "evaluate.elbo_particles=2", "evaluate.baseline_components=0",
]  # fmt: skip
LAUNCHERS = {
    "basic, isolate=false": (1, ["isolate=false"]),
    "basic": (1, []),
    "slots": (
        2,
        [
            "hydra/launcher=slots",
            "hydra.launcher.devices=[cpu]",
            "hydra.launcher.jobs_per_device=2",
        ],
    ),
    "joblib": (2, ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
    # It starts all jobs of a batch at once.
    "submitit_local": (2, ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2"]),
    "slurm": (2, ["hydra/launcher=slurm", "hydra.launcher.partition=debug"]),
    "ray_cluster": (2, ["hydra/launcher=ray_cluster"]),
}
WORK = """
import sys, time
import torch
from pyro_vae import config
from pyro_vae.run import run
torch.set_num_threads(1)
settings, jobs = sys.argv[2:], int(sys.argv[1])
run(config.compose([*settings, "seed=999999", "out=first"]))
began = time.perf_counter()
configurations = [config.compose([*settings, f"seed={i}", f"out=job{i}"]) for i in range(jobs)]
composed = time.perf_counter()
for configuration in configurations:
    run(configuration)
ended = time.perf_counter()
print((composed - began) / jobs, (ended - composed) / jobs)
"""


@contextmanager
def start_cluster(name: str) -> Iterator[dict[str, str]]:
    """Starts the cluster of a launcher, if it needs one, and yields the environment."""
    if name not in ("slurm", "ray_cluster"):
        yield {**os.environ}
        return
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from helpers.clusters import start_ray, start_slurm

    # A short path, because sockets lie there.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        if name == "slurm":
            with start_slurm(Path(folder)) as environment:
                yield environment
        else:
            with start_ray(Path(folder)) as cluster:
                yield cluster.environment


def sweep(folder: Path, launcher: list[str], jobs: int, environment: dict[str, str]) -> float:
    """Runs a sweep, and returns the seconds that it took."""
    seeds = ",".join(map(str, range(jobs)))
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pyro_vae", "-m", *SETTINGS, f"seed={seeds}", *launcher],
        cwd=folder, env=environment, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    found = len(list(folder.glob("multirun/sweep/*/metrics.json")))
    assert found == jobs, f"{found} jobs of {jobs} are finished"
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--launchers", default="basic,slots,joblib")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", WORK, str(given.jobs), *SETTINGS],
            cwd=place, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    composing, work = map(float, done.stdout.splitlines()[-1].split())
    print(f"work {work:.2f} s a job; composing {composing:.2f} s", flush=True)
    print("| launcher | jobs at a time | start and end, s | overhead of a job, s |")
    print("|---|---:|---:|---:|")
    for name in ["basic, isolate=false", *given.launchers.split(",")]:
        at_once, words = LAUNCHERS[name]
        seconds = []
        with start_cluster(name) as environment:
            for jobs in (at_once, given.jobs):
                with tempfile.TemporaryDirectory() as place:
                    seconds.append(sweep(Path(place), words, jobs, environment))
        each = (seconds[1] - seconds[0]) * at_once / (given.jobs - at_once)
        start = seconds[0] - each
        print(f"| {name} | {at_once} | {start:.1f} | {each - work:.2f} |", flush=True)


if __name__ == "__main__":
    main()
