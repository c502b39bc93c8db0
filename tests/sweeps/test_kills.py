"""A sweep that is killed at random moments ends with the results of one that is not."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from helpers.sweeping import JOBLIB, SLOTS, jobs, results
from pyro_vae.sweeps import job_status

pytestmark = pytest.mark.long

SWEEP = [
    "-m",
    "vae/prior=normal,vamp",
    "vae/likelihood=normal,continuous_bernoulli",
    "vae.latent_dim=2,4,8",
    "objective=elbo,iwae",
    "seed=0",
    "data.binarize=none",
    "train.epochs=20",
    "train.checkpoint_seconds=0",
    "evaluate.num_particles=50",
    "evaluate.elbo_particles=10",
    "evaluate.baseline_components=3",
]
KILLS = 5


def start(*arguments, cwd):
    """Starts the sweep."""
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *SWEEP, *arguments], cwd=cwd, stdout=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The results of a sweep that no one disturbs, and how long it takes."""
    place = tmp_path_factory.mktemp("unbroken")
    began = time.monotonic()
    assert start(cwd=place).wait() == 0
    return results(place / "multirun" / "sweep"), time.monotonic() - began


@pytest.mark.parametrize("launcher", [[], JOBLIB, SLOTS], ids=["basic", "joblib", "slots"])
def test_kills_change_nothing(launcher, unbroken, tmp_path):
    expected, seconds = unbroken
    assert len(expected) == 24
    there = tmp_path / "multirun" / "sweep"
    chance = random.Random(len(launcher))
    killed = 0
    while killed < KILLS:
        process = start(*launcher, cwd=tmp_path)
        try:
            process.wait(chance.uniform(8, max(16, seconds / (KILLS + 1))))
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed == KILLS, "The sweep ended before it could be killed often enough"
    begun = [job_status.read_state(path) for path in jobs(there).values()]
    assert "finished" in begun
    assert len(begun) < 24 or set(begun) != {"finished"}
    assert start(*launcher, cwd=tmp_path).wait() == 0
    assert results(there) == expected


@pytest.mark.parametrize("launcher", [JOBLIB, SLOTS], ids=["joblib", "slots"])
def test_launchers_give_the_same_bits(launcher, unbroken, tmp_path):
    assert start(*launcher, cwd=tmp_path).wait() == 0
    assert results(tmp_path / "multirun" / "sweep") == unbroken[0]
