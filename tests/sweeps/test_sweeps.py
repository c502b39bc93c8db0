"""Sweeps: jobs named by what they compute, which survive each other and can be run again."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from helpers.commands import call
from helpers.sweeping import JOBLIB, SLOTS, jobs, results
from pyro_vae import config
from pyro_vae.files import atomic
from pyro_vae.files.atomic import hold_folder
from pyro_vae.sweeps import job, job_status, journal
from pyro_vae.sweeps.job_id import UNRELATED, read_run_id, run_id
from pyro_vae.sweeps.worker_process import call_in_process

QUICK = [
    "data=moons",
    "data.n=60",
    "vae/likelihood=normal",
    "train.epochs=2",
    "evaluate.num_particles=20",
    "evaluate.elbo_particles=5",
    "evaluate.baseline_components=0",
]
STUDIES = sorted(path.stem for path in (config.APP / "sweep").glob("*.yaml"))


def command(*arguments, cwd, **settings):
    """Starts the command as a user does, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *arguments],
        cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings,
    )  # fmt: skip


@pytest.fixture
def started():
    """Starts the command; it is killed at the end also if the test fails."""
    processes = []

    def start(*arguments, **settings):
        processes.append(command(*arguments, **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def sweep(*arguments, cwd):
    """Runs a quick sweep to its end, and returns its exit code and all that it said."""
    code, out, err = call("pyro-vae", "-m", *QUICK, *arguments, cwd=cwd)
    return code, out + err


def written(place):
    """Returns when the figures of each finished job were written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in place.glob("*/metrics.json")}


# Names


def named(*overrides):
    return run_id(config.compose([*overrides, "out=."]))


def test_a_setting_that_equals_the_default_does_not_change_the_name():
    assert named() == named("seed=0", "vae/prior=normal", "vae.latent_dim=10")
    assert len(named()) == 12
    assert int(named(), 16) >= 0


@pytest.mark.parametrize(
    "override",
    [
        "threads=2", "device=cuda", "out=elsewhere", "resume=true", "study=mine", "isolate=false",
        "train.checkpoint_seconds=1", "+data.root=here", "+data.download=true", "tracker=mlflow",
    ],
)  # fmt: skip
def test_what_does_not_change_the_result_does_not_change_the_name(override):
    assert override.lstrip("+").split("=")[0] in UNRELATED
    assert run_id(config.compose(["out=.", override])) == named()


def test_jobs_of_older_sweeps_keep_their_names():
    # A fixed number of samples was the only choice before there was a tolerance.
    assert named("evaluate.tolerance=null") == named("~evaluate.tolerance") == named()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "vae/prior=vamp", "vae.latent_dim=11", "data.seed=1", "train.epochs=2",
        "objective.beta=2", "optimizer.lr=0.01", "evaluate.num_particles=7", "data=ring",
        "train.compile=false", "evaluate.tolerance=0.1", "+train.schedules.beta.end=1",
    ],
)  # fmt: skip
def test_what_changes_the_result_changes_the_name(override):
    assert named(override) != named()


def test_the_order_of_settings_and_references_do_not_matter():
    first = OmegaConf.create({"a": 1, "b": "${a}", "out": "${nowhere}"})
    assert run_id(first) == run_id({"b": 1, "a": 1})
    assert run_id({"a": "${nowhere}"}) != run_id({"a": "${elsewhere}"})


def test_what_refers_to_an_unrelated_setting_is_a_setting_too():
    first = {"a": "${out}/x", "out": "here", "threads": 1, "b": "${threads}"}
    assert run_id(first) == run_id(first | {"out": "there", "threads": 2})
    assert run_id(first) != run_id(first | {"a": "x"})


def test_a_folder_knows_the_name_of_its_run(tmp_path):
    cfg = config.compose(["seed=3", "optimizer.eps=1e-12", f"out={tmp_path}"])
    assert read_run_id(tmp_path) is None
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config.resolve_references(cfg)))
    assert read_run_id(tmp_path) == run_id(cfg)


# Processes of their own


CALLED = """
import os, signal, sys, time
from pathlib import Path

def leave(place, code):
    import pyro, torch
    pyro.param("trace", torch.ones(()))
    Path(place, str(os.getpid())).write_text(str(len(pyro.get_param_store())))
    print("said", file=sys.stderr)
    return code

def killed(name):
    os.kill(os.getpid(), getattr(signal, name))

def long(place):
    Path(place).write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture
def called(tmp_path, monkeypatch):
    """A module of functions that a new process can import."""
    folder = tmp_path / "called"
    folder.mkdir()
    (folder / "called.py").write_text(CALLED)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "called", raising=False)
    return import_module("called")


def test_each_call_has_a_fresh_process_and_its_output_in_a_file(called, tmp_path):
    log = tmp_path / "log" / "job.log"
    assert [call_in_process(called.leave, (str(tmp_path), code), log=log) for code in (0, 3)] == [
        0,
        3,
    ]
    assert log.read_text() == "said\nsaid\n"
    traces = [p for p in tmp_path.iterdir() if p.is_file()]
    assert len(traces) == 2
    assert {p.read_text() for p in traces} == {"1"}
    assert str(os.getpid()) not in {p.name for p in traces}


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_process_that_is_killed_says_so_by_its_code(name, called, tmp_path):
    code = call_in_process(called.killed, (name,), log=tmp_path / "log")
    assert code == -getattr(signal, name)
    assert name in job.describe_exit(code)


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_process_ends_with_its_caller(number, called, tmp_path):
    code = (
        "import sys, called; from pathlib import Path; "
        "from pyro_vae.sweeps.worker_process import call_in_process; "
        "call_in_process(called.long, (sys.argv[1],), log=Path(sys.argv[2]))"
    )
    path = [str(Path(called.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    caller = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "pid"), str(tmp_path / "log")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    caller.send_signal(number)
    caller.wait(30)
    assert until(lambda: not Path(f"/proc/{pid}").exists())


def until(condition, seconds=60):
    """Waits for a condition, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


# States


def test_the_states_of_a_job(tmp_path):
    assert job_status.read_state(tmp_path) == "interrupted"
    with hold_folder(tmp_path):
        (tmp_path / "metrics.json").write_text("{}")
        assert job_status.read_state(tmp_path) == "running"
        (tmp_path / "report.html").write_text("page")
        assert job_status.read_state(tmp_path) == "finished"
    (tmp_path / "report.html").unlink()
    assert job_status.read_state(tmp_path) == "interrupted"
    failed = job_status.Failure("ValueError: no", "pyro-vae", "2020-01-01", "trace")
    job_status.write_failure(tmp_path, failed)
    assert job_status.read_state(tmp_path) == "failed"
    assert job_status.read_failure(tmp_path) == failed


def test_a_finished_sweep_is_passed_over_without_pytorch():
    code = "import sys, pyro_vae.cli.train, pyro_vae.sweeps.job; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Whole sweeps


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep with a job that fails, and what the command said."""
    place = tmp_path_factory.mktemp("swept")
    code, said = sweep("seed=0", "vae.latent_dim=0,2", cwd=place)
    return place, code, said


def test_a_job_that_fails_harms_no_other_and_is_told(swept):
    place, code, said = swept
    assert code == 1
    assert "2 jobs" in said
    assert "1 failed, 1 finished" in said
    assert said.count("reason  ValueError: Expected latent_dim to be an integer of at least 1") == 1
    assert "Traceback" not in said
    states = [job_status.read_state(p) for p in jobs(place / "multirun" / "sweep").values()]
    assert sorted(states) == ["failed", "finished"]
    for path in jobs(place / "multirun" / "sweep").values():
        assert read_run_id(path) == path.name
        if failed := job_status.read_failure(path):
            assert f"command {failed.command}" in said
            assert " evaluate.tolerance=null " in failed.command
            assert "Traceback" in failed.trace
            assert "Traceback" in (path / "job.log").read_text()


def test_the_command_that_is_told_runs_the_job_alone(swept):
    place, *_ = swept
    failed = [
        f for p in jobs(place / "multirun" / "sweep").values() if (f := job_status.read_failure(p))
    ]
    words = shlex.split(failed[0].command.replace("vae.latent_dim=0", "vae.latent_dim=1"))
    code, _, err = call(*words, cwd=place)
    assert code == 0, err
    # Of another configuration now: the sweep will not take it for its job.
    code, said = sweep("seed=0", "vae.latent_dim=0,2", cwd=place)
    assert code == 1
    assert "with the run of another" in said


def test_the_same_command_again_runs_only_what_is_missing(swept):
    place, *_ = swept
    there = place / "multirun" / "sweep"
    before = written(there)
    code, said = sweep("seed=0", "vae.latent_dim=2,3", cwd=place)
    assert code == 0, said
    assert "1 skipped, 1 finished" in said
    after = written(there)
    assert before.items() <= after.items()
    assert len(after) >= len(before) + 1


WAYS = {
    "reused": ["isolate=false"],
    "isolated": [],
    "joblib": JOBLIB,
    "slots": SLOTS,
    "joblib_reused": [*JOBLIB, "hydra.launcher.n_jobs=1", "isolate=false"],
}


@pytest.mark.parametrize("ways", [["reused"], pytest.param([*WAYS], marks=pytest.mark.long)])
def test_launchers_isolation_and_a_run_alone_give_the_same_bits(ways, tmp_path):
    """The run that is compared with that of a process of its own comes second."""
    for name in ways:
        choices = ["vae/prior=vamp,normal", "seed=1", "vae.latent_dim=2", f"study={name}"]
        code, said = sweep(*choices, *WAYS[name], cwd=tmp_path)
        assert code == 0, said
        assert len(jobs(tmp_path / "multirun" / name)) == 2
    settings = ["vae/prior=normal", "seed=1", "vae.latent_dim=2"]
    place = "hydra.run.dir=multirun/alone/normal"
    code, _, err = call("pyro-vae", *QUICK, *settings, place, cwd=tmp_path)
    assert code == 0, err
    found = {p.name: results(p) for p in (tmp_path / "multirun").iterdir()}
    for name in ways:
        assert found[name] == found["reused"]
        if "joblib" in name:
            assert {metrics["threads"] for metrics, *_ in found[name].values()} == {1}
    assert found["alone"]["normal"] in found["reused"].values()


@pytest.mark.long
def test_jobs_of_a_sweep_draw_a_fixed_number_of_samples(tmp_path):
    most = ["evaluate.num_particles=4000", "isolate=false", "data.n=400"]
    code, said = sweep("seed=0", *most, cwd=tmp_path)
    assert code == 0, said
    code, _, err = call("pyro-vae", *QUICK, *most, "hydra.run.dir=alone", cwd=tmp_path)
    assert code == 0, err
    (job,) = jobs(tmp_path / "multirun" / "sweep").values()
    swept, alone = (job_status.read_metrics(place) for place in (job, tmp_path / "alone"))
    assert swept["log_evidence_particles"] == 4000
    assert alone["log_evidence_particles"] < 4000
    assert abs(alone["log_evidence"] - swept["log_evidence"]) < 0.02


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_two_processes_share_the_jobs_of_a_sweep(count, tmp_path):
    seeds = ",".join(map(str, range(count)))
    other = command("-m", *QUICK, f"seed={seeds}", cwd=tmp_path)
    until(lambda: list((tmp_path / "multirun").glob("*/*/.lock")))
    code, *said = sweep(f"seed={seeds}", cwd=tmp_path)
    said.append(other.communicate()[0])
    assert (code, other.returncode) == (0, 0), said
    assert len(results(tmp_path / "multirun" / "sweep")) == count
    for text in said:
        assert f"{count} jobs" in text
        assert "failed" not in text
    logs = [p / "job.log" for p in jobs(tmp_path / "multirun" / "sweep").values()]
    # Each job was done once, by one of the two.
    assert [log.read_text().count("log evidence") for log in logs] == [1] * count


@pytest.mark.parametrize(
    "launcher",
    [pytest.param([], id="basic"), pytest.param(JOBLIB, id="joblib", marks=pytest.mark.long)],
)
def test_a_killed_job_is_told_and_the_others_finish(launcher, tmp_path):
    endless = ["train.epochs=100000,2", "train.patience=null", "train.checkpoint_seconds=0"]
    there = tmp_path / "multirun" / "sweep"
    killer = threading.Thread(target=until, args=(lambda: kill_endless(there),))
    killer.start()
    code, said = sweep(*endless, "seed=0", *launcher, cwd=tmp_path)
    killer.join()
    assert code == 1
    assert said.count("reason  the process was terminated by SIGKILL") == 1, said
    assert len(written(there)) == 1
    assert "Traceback" not in said


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [pytest.param([], id="basic"), pytest.param(JOBLIB, id="joblib", marks=pytest.mark.long)],
)
def test_a_killed_sweep_leaves_no_process_behind(launcher, tmp_path, started):
    endless = ["train.epochs=100000", "train.patience=null", "train.checkpoint_seconds=0"]
    process = started("-m", *QUICK, *endless, "seed=0,1,2", *launcher, cwd=tmp_path)
    until(lambda: list((tmp_path / "multirun").glob("*/*/resume.pt")))
    assert len(living(tmp_path)) >= 2
    process.kill()
    process.communicate()
    until(lambda: not living(tmp_path))


def living(folder):
    """Returns the processes that work in a folder, but for those that only tidy up."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if Path(os.readlink(path / "cwd")) == folder:
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if line and "resource_tracker" not in line]


def kill_endless(sweep):
    """Kills a job that would train for ever, if there is one, and tells whether there was."""
    for path in sweep.glob("*/resume.pt"):
        epochs = yaml.safe_load((path.parent / "config.yaml").read_text())["train"]["epochs"]
        if epochs > 2 and job_status.read_state(path.parent) == "running":
            inode = (path.parent / ".lock").stat().st_ino
            for line in Path("/proc/locks").read_text().splitlines():
                _, _, _, _, pid, place, *_ = line.split()
                if place.endswith(f":{inode}"):
                    os.kill(int(pid), signal.SIGKILL)
                    return True
    return False


def test_a_job_that_lost_its_report_makes_it_again(tmp_path):
    code, said = sweep("seed=0", cwd=tmp_path)
    assert code == 0, said
    there = tmp_path / "multirun" / "sweep"
    before = results(there)
    for path in jobs(there).values():
        (path / "report.html").unlink()
    code, said = sweep("seed=0", cwd=tmp_path)
    assert code == 0, said
    assert results(there) == before
    assert all((p / "report.html").is_file() for p in jobs(there).values())


def test_a_folder_in_use_is_refused_to_a_run_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE", 0.1)
    cfg = config.compose([*QUICK, f"out={tmp_path}"])
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(ValueError, match="no other process writes to"),
    ):
        job.run_single(cfg)


def test_a_strange_folder_a_study_of_ones_own_and_a_reference(tmp_path):
    place = tmp_path / "lr=0.1, it's (a) test"
    (place / "mine" / "sweep").mkdir(parents=True)
    (place / "mine" / "sweep" / "own.yaml").write_text(
        "# @package _global_\nstudy: own\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"
    )
    choices = ["--config-dir", "mine", "sweep=own", *QUICK, "evaluate.elbo_particles=${threads}"]
    for said_of in ("2 failed", "2 failed"):
        code, out, err = call("pyro-vae", "-m", *choices, "vae.latent_dim=0", cwd=place)
        assert code == 1, err
        assert said_of in out
    failed = [
        f for p in jobs(place / "multirun" / "own").values() if (f := job_status.read_failure(p))
    ]
    assert "another configuration" not in failed[0].reason
    words = shlex.split(failed[0].command)
    err = call(*words, cwd=place).err
    assert "Expected latent_dim to be an integer of at least 1, got 0" in err
    good = [word.replace("vae.latent_dim=0", "vae.latent_dim=1") for word in words]
    code, _, err = call(*good, cwd=place)
    assert code == 0, err


def test_a_sweep_without_its_journal_still_runs(tmp_path):
    code, said = sweep("seed=0", "~hydra.callbacks.journal", cwd=tmp_path)
    assert code == 0, said
    assert len(results(tmp_path / "multirun" / "sweep")) == 1


@pytest.mark.parametrize("done", [False, True])
def test_a_kill_does_not_hide_what_another_command_has_done(done, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "PATIENCE", 0.1)
    task = SimpleNamespace(folder=tmp_path, command="pyro-vae")
    before = job_status.Failure("OldError: old", "pyro-vae", "2020")
    job_status.write_failure(tmp_path, before)
    with FileLock(tmp_path / ".lock"):
        assert job.diagnose_exit(task, -9, before) == ("elsewhere", "")
    if done:
        (tmp_path / "failure.json").unlink()
        for name in ("metrics.json", "report.html"):
            (tmp_path / name).write_text("{}")
        assert job.diagnose_exit(task, -9, before) == ("finished", "")
        assert job_status.read_failure(tmp_path) is None
    else:
        assert job.diagnose_exit(task, 1, before)[1] == "the process exited with code 1"
        assert job.diagnose_exit(task, -9, None)[1].startswith(
            "the process was terminated by SIGKILL"
        )


@pytest.mark.parametrize("name", [".job", "metrics.json", "failure.json"])
def test_a_damaged_folder_fails_its_job_alone(name, tmp_path):
    (tmp_path / "report.html").write_text("")
    (tmp_path / name).write_bytes(b"{\xff")
    task = SimpleNamespace(folder=tmp_path, name="0" * 12, cfg={})
    outcome, reason = job.try_task(task)
    assert outcome == "failed"
    assert name in reason


def test_a_setting_that_refers_to_nothing_fails_in_its_job(tmp_path):
    code, said = sweep("seed=0", "vae.latent_dim=2,${nowhere}", cwd=tmp_path)
    assert code == 1
    assert "1 finished, 1 failed" in said
    assert "reason  InterpolationKeyError: Interpolation key 'nowhere' not found" in said


def test_a_job_enters_the_folder_of_the_command(tmp_path, monkeypatch):
    """Processes of a cluster start elsewhere."""
    (tmp_path / "command").mkdir()
    monkeypatch.chdir(tmp_path)
    hydra = OmegaConf.create({
        "job": {"chdir": False}, "runtime": {"cwd": str(tmp_path / "command")},
        "sweep": {"dir": "multirun/sweep"},
    })  # fmt: skip
    monkeypatch.setattr(job.HydraConfig, "get", lambda: hydra)
    with pytest.raises(job._JobFailed, match=r"to be an absolute path .*'multirun/sweep'"):
        job._enter_folder()
    assert Path.cwd() == tmp_path
    hydra.sweep.dir = str(tmp_path / "command" / "multirun")
    job._enter_folder()
    assert Path.cwd() == tmp_path / "command"


# The journal


def test_the_journal_is_only_a_sweeps(monkeypatch, capsys):
    monkeypatch.delenv(journal.VARIABLE, raising=False)
    assert [journal.close_journal(code) for code in (0, 2)] == [0, 2]
    assert capsys.readouterr().out == ""


def test_sweeps_started_in_the_same_second_have_journals_of_their_own(tmp_path, monkeypatch):
    settings = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    paths = set()
    # Set once, so that the variable is restored at the end.
    monkeypatch.setenv(journal.VARIABLE, "")
    for _ in range(5):
        journal.Journal().on_multirun_start(settings)
        paths.add(os.environ[journal.VARIABLE])
        assert journal.find_owner() == os.getpid()
    assert len(paths) == 5


def test_a_job_whose_process_vanished_is_told(tmp_path, monkeypatch, capsys):
    path = tmp_path / ".journal" / "x.jsonl"
    monkeypatch.setenv(journal.VARIABLE, str(path))
    done = tmp_path / "done"
    done.mkdir()
    for name in ("metrics.json", "report.html"):
        (done / name).write_text("{}")
    journal.add_entry(
        journal.Entry(str(tmp_path / "gone"), "seed=1", "started", command="pyro-vae")
    )
    journal.add_entry(journal.Entry(str(done), "seed=2", "elsewhere"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "failure.json").write_text("[")
    journal.add_entry(journal.Entry(str(damaged), "seed=3", "started"))
    assert journal.close_journal(0) == 1
    said = capsys.readouterr().out
    assert "reason  its process ended before the job" in said
    assert "damaged/failure.json" in said
    assert "3 jobs" in said
    assert "2 failed, 1 finished" in said
    assert journal.VARIABLE not in os.environ


def test_each_machine_has_a_file_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(journal.VARIABLE, str(tmp_path / ".journal" / "x.jsonl"))
    job = journal.Entry(str(tmp_path / "job"), "seed=1", "started")
    # A machine fails, and another one ends its job; the order of their names does not matter.
    for machine, outcomes in (("b", ["started"]), ("a.net", ["started", "finished"]), ("c", [])):
        monkeypatch.setattr(journal.socket, "gethostname", lambda machine=machine: machine)
        for outcome in outcomes:
            journal.add_entry(job._replace(outcome=outcome))
    journal._ENTRIES.clear()
    assert {path.name for path in (tmp_path / ".journal").iterdir()} == {
        "x.a.net.jsonl", "x.b.jsonl"
    }  # fmt: skip
    assert journal.close_journal(0) == 0
    assert "1 job in" in (said := capsys.readouterr().out)
    assert "1 finished" in said


# Studies


def test_there_are_studies():
    assert {"priors", "posteriors", "likelihoods", "objectives", "latent_dims"} <= set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_composes_and_each_of_its_choices_does(name):
    cfg = config.compose([f"sweep={name}", "out=."])
    assert cfg.study == name
    raw = yaml.safe_load((config.APP / "sweep" / f"{name}.yaml").read_text())
    params = raw["hydra"]["sweeper"]["params"]
    assert raw["hydra"]["mode"] == "MULTIRUN"
    parser = OverridesParser.create()
    names = set()
    for key, values in params.items():
        for value in parser.parse_override(f"{key}={values}").sweep_string_iterator():
            names.add(run_id(config.compose([f"sweep={name}", f"{key}={value}", "out=."])))
    assert len(names) >= 4


def test_a_study_is_one_word_and_takes_other_settings(tmp_path):
    choices = ["-m", "sweep=priors", *QUICK, "seed=5", "vae/prior=normal,vamp"]
    code, _, err = call("pyro-vae", *choices, cwd=tmp_path)
    assert code == 0, err
    there = jobs(tmp_path / "multirun" / "priors")
    assert len(there) == 2
    seeds = {yaml.safe_load((p / "config.yaml").read_text())["seed"] for p in there.values()}
    assert seeds == {5}


# The command line


def test_a_shell_completes_groups_options_and_settings():
    def completed(line):
        environment = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
        done = subprocess.run(
            [sys.executable, "-m", "pyro_vae", "-sc", "query=bash"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    assert "vae/prior=vamp" in completed("pyro-vae vae/prior=v")
    assert "sweep=priors" in completed("pyro-vae sweep=")
    assert "vae.latent_dim=" in completed("pyro-vae vae.lat")


def test_the_help_names_groups_and_commands():
    done = subprocess.run(
        [sys.executable, "-m", "pyro_vae", "--help"], capture_output=True, text=True, check=True
    )
    for text in ("vae/prior: ", "sweep: ", "pyro-vae -m", "hydra/launcher=slots"):
        assert text in done.stdout
