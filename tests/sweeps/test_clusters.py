"""Sweeps by slots, on SLURM and on Ray give the bits of one process, also after a kill.

Needs the extras ``slurm`` and ``ray``, and Debian's packages slurm-wlm, slurmdbd, mariadb-server
and munge.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from helpers.clusters import start_ray, start_slurm, wait_until
from helpers.paths import ROOT
from helpers.sweeping import GRID, SLOTS, jobs, results
from pyro_vae.sweeps import job_status

pytestmark = pytest.mark.cluster

LAST = "Run the same command again to run only the failed and missing jobs."


def sweep(*words, cwd, environment=None):
    """Runs the sweep; returns its exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "pyro_vae", *GRID, *words],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def count_finished(folder):
    there = folder / "multirun" / "sweep"
    if not there.exists():
        return 0
    return [job_status.read_state(path) for path in jobs(there).values()].count("finished")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The results of 48 jobs in one process after another."""
    folder = tmp_path_factory.mktemp("unbroken")
    code, said = sweep("seed=0,1", cwd=folder)
    assert code == 0, said
    return results(folder / "multirun" / "sweep")


@pytest.fixture
def short():
    """A folder with a short path, because sockets lie there."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def commands():
    """The commands of docs/clusters.md for each launcher, without those that install."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    return [block.partition("\n")[2].splitlines() for block in blocks]


def run_commands(commands, cwd, environment):
    """Runs commands of the page, with settings that make them quick."""
    quick = ["train.epochs=2", "evaluate.num_particles=20", "evaluate.elbo_particles=5"]
    programs = Path(sys.executable).parent
    for command in commands:
        words = [command, *quick] if command.startswith("pyro-vae ") else [command]
        done = subprocess.run(
            ["bash", "-c", " ".join(words)],
            cwd=cwd, env={**environment, "PATH": f"{programs}:{environment['PATH']}"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    assert count_finished(cwd) == 4


def test_slots(unbroken, tmp_path):
    code, said = sweep("seed=0,1", *SLOTS, cwd=tmp_path)
    assert code == 0, said
    assert results(tmp_path / "multirun" / "sweep") == unbroken
    assert len(unbroken) == 48


def test_processes_of_submitit(unbroken, tmp_path):
    # It starts all jobs of a command at once.
    for seed in (0, 1):
        for dimensions in (2, 4, 8):
            words = [f"seed={seed}", f"vae.latent_dim={dimensions}"]
            code, said = sweep(*words, "hydra/launcher=submitit_local", cwd=tmp_path)
            assert code == 0, said
    assert results(tmp_path / "multirun" / "sweep") == unbroken


def kill_a_task():
    """Kills the process of a running task of SLURM, as a lack of memory would."""
    found = subprocess.run(
        ["pgrep", "--full", "^[^ ]*python.* submitit.core._submit "],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)


def test_slurm(unbroken, commands, tmp_path, short):
    words = ["seed=0,1", "hydra/launcher=slurm", "hydra.launcher.partition=debug"]
    with start_slurm(short) as environment:
        killer = threading.Thread(
            target=lambda: (
                wait_until(lambda: count_finished(tmp_path) >= 5, "five jobs", 300),
                kill_a_task(),
            )
        )
        killer.start()
        code, said = sweep(*words, cwd=tmp_path, environment=environment)
        killer.join()
        assert code == 1, said
        assert "Traceback" not in said
        assert LAST in said
        # The others have run to their end.
        assert "48 jobs" in said
        assert "47 finished, 1 failed" in said
        code, said = sweep(*words, cwd=tmp_path, environment=environment)
        assert code == 0, said
        assert "48 jobs" in said
        assert results(tmp_path / "multirun" / "sweep") == unbroken
        (tmp_path / "page").mkdir()
        run_commands(commands[0], tmp_path / "page", environment)


def test_ray_loses_a_node(unbroken, tmp_path, short):
    words = ["seed=0,1", "hydra/launcher=ray_cluster"]
    with start_ray(short) as cluster:
        killer = threading.Thread(
            target=lambda: (
                wait_until(lambda: count_finished(tmp_path) >= 10, "ten jobs", 300),
                cluster.kill_node(1),
            )
        )
        killer.start()
        code, said = sweep(*words, cwd=tmp_path, environment=cluster.environment)
        killer.join()
        assert cluster.count_nodes() == 1
    assert code == 0, said
    assert "48 jobs" in said
    assert "48 finished" in said
    assert results(tmp_path / "multirun" / "sweep") == unbroken


def test_the_commands_of_the_page_for_ray(commands, tmp_path):
    run_commands(commands[1], tmp_path, {**os.environ, "RAY_AUTH_MODE": "disabled"})
