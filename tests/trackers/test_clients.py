"""A sweep with a killed job, read back by each client, equals the files of its runs.

Needs the extras ``mlflow``, ``wandb`` and ``trackio``.
"""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from helpers.paths import ROOT
from helpers.sweeping import JOBLIB, SLOTS, jobs
from helpers.tracker_readers import READERS
from pyro_vae.trackers import split_metrics

# The clients of the stores have deprecations of their own.
pytestmark = [pytest.mark.trackers, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GRID = [
    "-m", "vae/prior=normal,mixture,vamp", "vae.latent_dim=2,3", "seed=0,1", "study=grid",
    "data=moons", "data.n=60", "vae/likelihood=normal", "train.epochs=10", "train.compile=false",
    "train.checkpoint_seconds=0", "evaluate.num_particles=10", "evaluate.elbo_particles=2",
    "evaluate.baseline_components=0",
]  # fmt: skip
KILL = ["+train.tracker._target_=helpers.killer.Killer", "+train.tracker.folder=${out}"]
LAUNCHERS = {"tensorboard": SLOTS, "mlflow": SLOTS, "wandb": JOBLIB, "trackio": JOBLIB}
LAST = {"tensorboard": "STATUS_SUCCESS", "mlflow": "FINISHED", "wandb": "exit 0", "trackio": ""}


def sweep(tracker, cwd):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "TRACKIO_DIR": str(cwd / "trackio_files"),
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pyro_vae", *GRID, f"tracker={tracker}", *LAUNCHERS[tracker], *KILL],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def read_history(folder):
    with (folder / "history.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return {name: [(row["epoch"], row[name]) for row in rows] for name in rows[0]}


def to_single(points):
    """Rounded to single precision, the one of TensorBoard."""
    return [(step, float(np.float32(value))) for step, value in points]


def read_latent_dim(settings):
    """Of flat settings, or of nested ones."""
    return int(settings.get("vae.latent_dim") or settings["vae"]["latent_dim"])


@pytest.mark.parametrize("tracker", READERS)
def test_a_sweep_with_a_killed_job_is_logged_completely_and_once(tracker, tmp_path, monkeypatch):
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio_files")
    code, said = sweep(tracker, tmp_path)
    assert code == 1, said
    # In the order in which the jobs end.
    assert re.search(r"(?=.*\b11 finished)(?=.*\b1 failed)", said), said
    assert "terminated by SIGKILL" in said
    first = READERS[tracker](tmp_path, "grid")
    killed = (tmp_path / "multirun" / "grid" / "killed").read_text()
    folders = jobs(tmp_path / "multirun" / "grid")
    assert len(folders) == 12
    assert set(folders) - {killed} <= set(first)
    # trackio writes in the background, and may not have begun when the job was killed.
    assert len(first) == 12 or tracker == "trackio"

    code, said = sweep(tracker, tmp_path)
    assert code == 0, said
    tracked = READERS[tracker](tmp_path, "grid")
    assert set(tracked) == set(folders)
    for name, folder in folders.items():
        run = tracked[name]
        curves = read_history(folder)
        assert len(curves["epoch"]) == 10
        numbers, texts = split_metrics(json.loads((folder / "metrics.json").read_text()))
        expected = curves | {key: [(10, value)] for key, value in numbers.items()}
        if tracker == "tensorboard":
            expected = {key: to_single(points) for key, points in expected.items()}
        assert {key: run.points[key] for key in expected} == expected
        assert {key: run.texts[key] for key in texts} == texts
        assert run.figures == {path.stem for path in (folder / "figures").glob("*.png")}
        assert (run.group, run.outcome) == ("grid", LAST[tracker])
        assert name == killed or run == first[name]
    assert {read_latent_dim(run.settings) for run in tracked.values()} == {2, 3}


ALONE = """
import logging, os, socket, sys, warnings
from pathlib import Path
from pyro_vae.trackers import MLflowTracker, TrackedRun, WandbTracker

state = lambda: (dict(os.environ), sys.stdout, sys.stderr, sys.excepthook, warnings.showwarning,
                 list(logging.root.handlers), logging.root.level, warnings.filters[:])
reached = []
connect = socket.socket.connect
def refuse(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        reached.append(address)
        raise OSError("no network")
    return connect(self, address)
socket.socket.connect = refuse
socket.getaddrinfo = lambda *words, **names: refuse(socket.socket(), words)
before = state()
kind = sys.argv[1]
tracker = MLflowTracker() if kind == "mlflow" else WandbTracker(kind)
tracker.start(TrackedRun("abc", "0" * 32, "study", {"seed": 1}, Path.cwd(), [{"epoch": 1}]))
tracker.log({"epoch": 2}, 2)
tracker.finish({"elbo": 1.0, "data": "moons"}, [])
names = ("environment", "stdout", "stderr", "hook", "warnings", "handlers", "level", "filters")
changed = [n for n, old, new in zip(names, before, state()) if old != new]
print("changed", changed, "reached", reached)
"""


@pytest.mark.parametrize("tracker", ["mlflow", "wandb", "trackio"])
def test_a_client_reaches_no_network_and_leaves_the_process_as_it_was(tracker, tmp_path):
    environment = os.environ | {
        "HF_TOKEN": "hf_abc", "TRACKIO_DIR": str(tmp_path / "files"), "WANDB_MODE": "offline",
    }  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-c", ALONE, tracker], cwd=tmp_path, env=environment, text=True,
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert said == "changed [] reached []\n"
