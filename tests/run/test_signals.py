"""Interruptions and errors of the operating system at the command line: one line, no traceback."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from helpers.commands import call
from helpers.sweeping import JOBLIB, jobs
from pyro_vae.console import commands
from pyro_vae.sweeps import job_status

BOTH = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
QUICK = ["evaluate.num_particles=20", "evaluate.elbo_particles=5", "evaluate.baseline_components=0"]
ENDLESS = [
    "data=moons", "data.n=60", "vae/likelihood=normal", "vae.latent_dim=1", *QUICK,
    "train.epochs=100000", "train.patience=null", "train.checkpoint_seconds=0",
    "train.compile=false",
]  # fmt: skip


STARTED = []


@pytest.fixture(autouse=True)
def no_process_is_left():
    """Kills the processes of a test that failed."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def start(*arguments, cwd, **settings):
    """Starts the command as a user does."""
    STARTED.append(
        subprocess.Popen(
            [sys.executable, "-m", "pyro_vae", *arguments],
            cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings,
        )
    )  # fmt: skip
    return STARTED[-1]


def until(condition, seconds=100):
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# Within this process


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_a_signal_gives_one_line_and_its_code(number, code, capsys):
    before = [signal.getsignal(n) for n, _ in BOTH]
    found = commands.run_command(lambda: signal.raise_signal(number) or 0, program="pyro-vae")
    assert found == code
    name = signal.Signals(number).name
    line = f"pyro-vae: stopped by {name}; to continue, run the same command again\n"
    assert capsys.readouterr() == ("", line)
    assert [signal.getsignal(n) for n, _ in BOTH] == before
    commands.check_interrupted()


@pytest.mark.parametrize("lost", [False, True])
def test_a_signal_counts_where_its_exception_is_lost(lost, capsys):
    def command():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            if lost:
                commands.check_interrupted()
            raise RuntimeError("an import failed") from None

    assert commands.run_command(command, program="pyro-vae") == 143
    assert capsys.readouterr().err.startswith("pyro-vae: stopped by SIGTERM")


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with commands.raise_on_signals():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_kills(number):
    code = (
        "import signal, sys; from pyro_vae.console import commands\n"
        "def command():\n"
        "    try: signal.raise_signal(signal.SIGTERM)\n"
        f"    finally: signal.raise_signal({int(number)})\n"
        "sys.exit(commands.run_command(command, program='x'))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -number


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("Expected it"), "ValueError: Expected it"),
        (FloatingPointError("not finite"), "FloatingPointError: not finite"),
        (
            OSError(errno.ENOSPC, "No space left on device", "run/resume.pt"),
            "OSError: No space left on device: 'run/resume.pt': free space, or choose another "
            "folder; then run the same command again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "run"),
            "PermissionError: Permission denied: 'run': change the permissions, or choose another "
            "folder",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"),
            "NotADirectoryError: Not a directory: 'a/b': choose another folder",
        ),
    ],
)
def test_an_error_of_the_user_is_one_line(error, line, capsys, monkeypatch):
    def command():
        raise error

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert commands.run_command(command, program="pyro-vae") == 1
    assert capsys.readouterr().err.splitlines()[0] == line
    assert "HYDRA_FULL_ERROR" not in os.environ
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert commands.run_command(command, program="pyro-vae") == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_the_program_keeps_its_traceback(capsys):
    assert commands.run_command(lambda: {}["missing"], program="pyro-vae") == 1
    assert "Traceback" in capsys.readouterr().err


# Closed pipes


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("print('a')", 141),
        ("print('a'); sys.exit(0)", 141),
        # A sweep logs its jobs, and its processes inherit the text that is not yet written.
        ("logging.warning('a'); print('b')", 0),
    ],
)
def test_a_closed_pipe_ends_a_command_quietly(body, code, unbuffered):
    done = run_with_closed_output(body, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (code, "")


def test_another_broken_pipe_is_an_error():
    done = run_with_closed_output(
        "raise BrokenPipeError(32, 'Broken pipe', 'worker')", closed=False
    )
    assert done.returncode == 1
    assert "BrokenPipeError: Broken pipe: 'worker'" in done.stderr


def run_with_closed_output(body, *, closed=True, **environment):
    """Runs the body of a command with a standard output that nobody reads."""
    code = (
        "import logging, sys; from pyro_vae.console import commands\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        "def command():\n"
        f"    {body}\n"
        "    return 0\n"
        "sys.exit(commands.run_command(command, program='x'))"
    )
    reader, writer = os.pipe()
    if closed:
        os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True,
            env=os.environ | environment, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
        if not closed:
            os.close(reader)


# Commands


COMMANDS = {
    "pyro-vae-compare": "from pyro_vae.cli import compare as c; c._compare = stop; "
    "sys.exit(c.main(['.']))",
    "pyro-vae-embed": ("from pyro_vae.cli import reuse as c; c._write_table = stop; c.run_embed()"),
    "pyro-vae-evaluate": "from pyro_vae.cli import reuse as c; c._evaluate_and_print = stop; "
    "c.run_evaluate()",
}


@pytest.mark.parametrize(("number", "code"), BOTH)
@pytest.mark.parametrize("name", COMMANDS)
def test_the_other_commands_say_one_line_too(name, number, code, tmp_path):
    stop = f"import signal, sys\ndef stop(*_): signal.raise_signal({int(number)})\n"
    done = subprocess.run(
        [sys.executable, "-c", stop + COMMANDS[name]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    said = f"{name}: stopped by {number.name}; to continue, run the same command again\n"
    assert done.stderr == said
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(*BOTH[0], marks=pytest.mark.long), BOTH[1]]
)
def test_a_run_that_is_stopped_says_how_to_continue(number, code, tmp_path):
    process = start(*ENDLESS, "+train.tracker=null", 'out="it\'s, a=run"', cwd=tmp_path)
    place = tmp_path / "it's, a=run"
    until(lambda: (place / "resume.pt").exists())
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    *shown, err = err.splitlines()
    # A slow machine has time to show progress.
    assert all(line.startswith(("training: ", "expected: ")) for line in shown)
    pattern = rf"pyro-vae: stopped by {number.name} after [1-9]\d* of 100000 epochs of training; "
    said = re.match(pattern + "to continue, run: pyro-vae ", err)[0]
    assert out == ""
    assert not (place / "metrics.json").exists()
    assert not list(place.glob(".*.part"))
    if number == signal.SIGINT:
        return
    words = shlex.split(err.removeprefix(said).replace("train.epochs=100000", "train.epochs=1"))
    assert words[-1] == "resume=true"
    code, _, err = call("pyro-vae", *words, cwd=tmp_path)
    assert code == 0, err
    assert job_status.read_state(place) == "finished"
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").iterdir())


def stop_a_sweep(number, code, launcher, cwd):
    process = start("-m", *ENDLESS, "seed=0,1,2", *launcher, cwd=cwd)
    there = cwd / "multirun" / "sweep"
    until(lambda: list(there.glob("*/resume.pt")))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    said = f"pyro-vae: stopped by {number.name}; to continue, run the same command again"
    assert said in err.splitlines()
    assert "Traceback" not in err
    until(lambda: "running" not in [job_status.read_state(path) for path in jobs(there).values()])
    assert {job_status.read_state(path) for path in jobs(there).values()} == {"interrupted"}
    logs = list(there.glob("*/job.log"))
    assert logs
    assert not any("Traceback" in log.read_text() for log in logs)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(*BOTH[0], marks=pytest.mark.long), BOTH[1]]
)
def test_a_sweep_that_is_stopped_ends_its_jobs(number, code, tmp_path):
    stop_a_sweep(number, code, [], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), BOTH)
def test_a_sweep_by_joblib_that_is_stopped_ends_its_jobs(number, code, tmp_path):
    stop_a_sweep(number, code, JOBLIB, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("launcher", [[], JOBLIB], ids=["basic", "joblib"])
@pytest.mark.parametrize(("number", "code"), BOTH)
def test_a_signal_to_all_processes_shows_no_traceback(number, code, launcher, tmp_path):
    process = start("-m", *ENDLESS, "seed=0,1", *launcher, cwd=tmp_path, start_new_session=True)
    until(lambda: list((tmp_path / "multirun").glob("*/*/resume.pt")))
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    logs = list((tmp_path / "multirun").glob("*/*/job.log"))
    assert logs
    assert not any("Traceback" in log.read_text() for log in logs)


# Disks


@pytest.mark.long
@pytest.mark.parametrize("multirun", [False, True])
def test_a_full_disk_is_one_message(multirun, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
    if os.name != "posix" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    quick = [word for word in ENDLESS if "epochs" not in word]
    where = ["seed=0,1", "hydra.sweep.dir=disk", "-m"] if multirun else ["out=disk/run"]
    try:
        process = start(*reversed(where), *quick, "train.epochs=2", cwd=tmp_path)
        out, err = process.communicate(timeout=100)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert process.returncode == 1, err
    assert "Traceback" not in out + err
    assert "No space left on device: '" in out + err
    assert "free space, or choose another folder" in out + err
    if multirun:
        assert "2 jobs in" in out
        assert "2 failed" in out
