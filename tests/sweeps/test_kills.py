"""A sweep that is killed at random moments ends with the results of one that is not."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from helpers.sweeping import GRID, JOBLIB, SLOTS, jobs, results
from pyro_vae.sweeps import job_status

pytestmark = pytest.mark.long

KILLS = 5


def start(*arguments, cwd):
    """Starts the sweep."""
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *GRID, "seed=0", *arguments],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The results of a sweep that no one disturbs."""
    place = tmp_path_factory.mktemp("unbroken")
    assert start(cwd=place).wait() == 0
    return results(place / "multirun" / "sweep")


def count_finished(there):
    states = (
        [job_status.read_state(path) for path in jobs(there).values()] if there.exists() else []
    )
    return states.count("finished")


def kill_after(process, there, number, delay):
    """Kills a sweep a while after a number of jobs have finished."""
    deadline = time.monotonic() + 600
    while count_finished(there) < number and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(delay)
    assert process.poll() is None, "The sweep ended before it could be killed often enough"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("launcher", [[], JOBLIB, SLOTS], ids=["basic", "joblib", "slots"])
def test_kills_change_nothing(launcher, unbroken, tmp_path):
    assert len(unbroken) == 24
    there = tmp_path / "multirun" / "sweep"
    chance = random.Random(len(launcher))
    for kill in range(KILLS):
        # From the import of PyTorch to the report of a job, whichever the moment falls into.
        kill_after(start(*launcher, cwd=tmp_path), there, 3 * kill, chance.uniform(0, 8))
    assert 0 < count_finished(there) < 24
    assert start(*launcher, cwd=tmp_path).wait() == 0
    assert results(there) == unbroken


@pytest.mark.parametrize("launcher", [JOBLIB, SLOTS], ids=["joblib", "slots"])
def test_launchers_give_the_same_bits(launcher, unbroken, tmp_path):
    assert start(*launcher, cwd=tmp_path).wait() == 0
    assert results(tmp_path / "multirun" / "sweep") == unbroken
