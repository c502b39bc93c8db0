"""Studies whose processes are killed end with exactly as many trials as asked."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import optuna
import pytest

from pyro_vae.search.storage import open_storage
from pyro_vae.sweeps import job_status

pytestmark = pytest.mark.long

TRIALS, KILLS = 60, 2
SEARCH = [
    "-m",
    "hydra/sweeper=optuna",
    "hydra/sweeper/pruner=median",
    "hydra.sweeper.pruner.n_startup_trials=5",
    f"hydra.sweeper.trials={TRIALS}",
    "hydra.sweeper.max_failures=0",
    "vae/prior=normal,vamp",
    "vae.latent_dim=int(interval(2,16))",
    "optimizer.lr=tag(log,interval(1e-4,3e-2))",
    "train.epochs=20",
    "train.checkpoint_seconds=0",
    "evaluate.num_particles=50",
    "evaluate.elbo_particles=10",
    "evaluate.baseline_components=3",
]


def start(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *SEARCH, *words],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def count_ended(folder):
    path = folder / "multirun" / "sweep" / "study.json"
    if not path.exists():
        return 0
    states = [trial["state"] for trial in json.loads(path.read_text())["trials"]]
    return states.count("finished") + states.count("pruned")


def wait_for(folder, number, process):
    deadline = time.monotonic() + 600
    while count_ended(folder) < number:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(random.Random(number).uniform(0, 2))


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_two_processes_one_of_them_killed_twice(kind, tmp_path):
    storage = [f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db"] if kind == "sqlite" else []
    steady, other = (start(*storage, cwd=tmp_path) for _ in range(2))
    for kill in range(KILLS):
        wait_for(tmp_path, 10 * (kill + 1), other)
        os.kill(other.pid, signal.SIGKILL)
        other.communicate()
        other = start(*storage, cwd=tmp_path)
    said = [process.communicate(timeout=1200)[0] for process in (steady, other)]
    assert (steady.returncode, other.returncode) == (0, 0), said
    there = tmp_path / "multirun" / "sweep"
    summary = json.loads((there / "study.json").read_text())
    states = [trial["state"] for trial in summary["trials"]]
    assert states.count("finished") + states.count("pruned") == TRIALS
    assert "pruned" in states
    # A killed trial is repeated, and listed; nothing is left open.
    assert 1 <= states.count("failed") <= KILLS
    assert set(states) == {"finished", "pruned", "failed"}
    name = storage[0].partition("=")[2] if storage else str(there / "study.journal")
    study = optuna.load_study(study_name="sweep", storage=open_storage(name))
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.COMPLETE:
            (folder,) = trial.user_attrs["folders"]
            metrics = job_status.read_metrics(there / folder)
            assert metrics["log_evidence"] == trial.value
