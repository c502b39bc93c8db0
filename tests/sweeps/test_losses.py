"""Jobs that a cluster loses or refuses, with a stand-in for the launcher of another package."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus

from helpers.commands import call
from helpers.sweeping import jobs
from pyro_vae.sweeps import clusters, job_status

QUICK = [
    "-m", "data=moons", "data.n=60", "vae/likelihood=normal", "train.epochs=2",
    "evaluate.num_particles=20", "evaluate.elbo_particles=5", "evaluate.baseline_components=0",
    "train.compile=false", "isolate=false",
]  # fmt: skip
SLURM = ["hydra/launcher=basic", "hydra.launcher._target_=hydra_plugins.pyro_vae.SlurmLauncher"]


def lose_the_first(settings, parts, job_overrides, first):
    launcher = BasicLauncher()
    launcher.setup(**parts)
    cluster = SimpleNamespace(results=fail)
    with clusters._keep_losses(cluster, "results", lambda lost: lost):
        lost = cluster.results("state: FAILED")
    return [lost, *launcher.launch(job_overrides[1:], first + 1)]


def fail(text):
    raise RuntimeError(f"no output\n({text})")


def refuse(settings, parts, job_overrides, first):
    raise RuntimeError("sbatch: error: invalid partition\nsubmission failed")


def test_a_lost_job_is_listed_and_the_others_finish(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "_launch_on_slurm", lose_the_first)
    code, out, err = call("pyro-vae", *QUICK, *SLURM, "seed=0,1,2", cwd=tmp_path)
    assert code == 1
    assert "3 jobs in" in out
    assert "2 finished" in out
    assert "1 failed" in out
    assert "reason  RuntimeError: no output (state: FAILED)" in out
    assert "seed=0" in out.partition("failed    ")[2].splitlines()[0]
    assert "Traceback" not in out + err
    code, out, _ = call("pyro-vae", *QUICK, "seed=0,1,2", cwd=tmp_path)
    assert code == 0
    assert "2 skipped" in out
    assert "1 finished" in out


def test_a_lost_job_that_finished_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "_launch_on_slurm", lose_the_first)
    assert call("pyro-vae", *QUICK, "seed=0", cwd=tmp_path).code == 0
    code, out, _ = call("pyro-vae", *QUICK, *SLURM, "seed=0,1", cwd=tmp_path)
    # The sweep ends with an error, but nothing is missing.
    assert (code, "1 failed" in out) == (1, False)
    states = [job_status.read_state(path) for path in jobs(tmp_path / "multirun/sweep").values()]
    assert states == ["finished"] * 2


def test_a_refusal_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "_launch_on_slurm", refuse)
    code, out, err = call("pyro-vae", *QUICK, *SLURM, "seed=0,1", cwd=tmp_path)
    assert code == 1
    assert "takes the jobs of hydra.launcher, got an error: sbatch: error: invalid" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("engine", [refuse, lose_the_first])
def test_a_search_ends_after_too_many_lost_trials(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "_launch_on_slurm", engine)
    code, out, err = call(
        "pyro-vae", *QUICK, *SLURM, "hydra/sweeper=optuna", "hydra.sweeper.trials=2",
        "hydra.sweeper.max_failures=0", "vae.latent_dim=int(interval(2,4))", cwd=tmp_path,
    )  # fmt: skip
    assert code == 1
    assert "failed trials: 1, more than hydra.sweeper.max_failures=0" in err
    assert "failed trial 0, repeated by trial 1:" in out
    assert "Traceback" not in out + err


def test_the_function_is_restored():
    owner = SimpleNamespace(results=fail)
    with clusters._keep_losses(owner, "results", lambda lost: [lost]):
        (lost,) = owner.results("a")
    assert isinstance(lost, JobReturn)
    assert lost.status == JobStatus.FAILED
    assert owner.results is fail
    with suppress(KeyboardInterrupt), clusters._keep_losses(owner, "results", list):
        raise KeyboardInterrupt
    assert owner.results is fail
