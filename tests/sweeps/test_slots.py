"""Slots of devices, which the jobs of several commands share."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from helpers.commands import call
from helpers.sweeping import SLOTS
from pyro_vae.sweeps import slots
from pyro_vae.sweeps.slots import Slots, find_devices
from pyro_vae.sweeps.worker_process import call_in_process
from pyro_vae.sweeps.workers import run_tasks

QUICK = [
    "data=moons", "data.n=60", "vae/likelihood=normal", "train.epochs=2", "train.compile=false",
    "evaluate.num_particles=10", "evaluate.elbo_particles=2", "evaluate.baseline_components=0",
]  # fmt: skip
FORK = multiprocessing.get_context("fork")


def use_slots(made, log, number, times):
    """Holds a slot several times, and writes who began and who ended."""
    for _ in range(times):
        with made.hold() as device:
            for mark in "+-":
                with log.open("a") as file:
                    file.write(f"{mark} {device} {number}\n")
                time.sleep(0.01)


def count_most(log):
    """Returns the largest number of holders at a time, by device."""
    held, most = {}, {}
    for line in log.read_text().splitlines():
        mark, device, _ = line.split()
        held[device] = held.get(device, 0) + (1 if mark == "+" else -1)
        most[device] = max(most.get(device, 0), held[device])
    return most


def test_processes_share_the_slots(tmp_path):
    log = tmp_path / "log"
    # Two commands that name the same folder: each of their jobs asks by itself.
    made = [Slots(["cuda:0", "cuda:1"], 2, str(tmp_path / "slots")) for _ in range(2)]
    processes = [FORK.Process(target=use_slots, args=(made[n % 2], log, n, 8)) for n in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    most = count_most(log)
    assert set(most) == {"cuda:0", "cuda:1"}
    assert max(most.values()) <= 2
    assert len(log.read_text().splitlines()) == 6 * 8 * 2


def test_jobs_are_spread_over_devices_before_they_share_one(tmp_path):
    made = Slots(["cuda:0", "cuda:1"], 2, str(tmp_path))
    order = []

    def hold(depth):
        if depth < 4:
            with made.hold() as device:
                order.append(device)
                thread = threading.Thread(target=hold, args=(depth + 1,))
                thread.start()
                thread.join()

    hold(0)
    assert order == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_a_killed_holder_frees_its_slot(tmp_path):
    made, log = Slots(["cpu"], 1, str(tmp_path / "slots")), tmp_path / "log"

    def hold():
        with made.hold():
            log.touch()
            time.sleep(60)

    process = FORK.Process(target=hold)
    process.start()
    while not log.exists():
        time.sleep(0.01)
    killer = threading.Timer(0.3, lambda: os.kill(process.pid, signal.SIGKILL))
    killer.start()
    began = time.monotonic()
    with made.hold() as device:
        assert device == "cpu"
        assert time.monotonic() - began > 0.2
    process.join()


def test_the_processor_has_a_slot_for_each_share_of_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert len(Slots(["cpu"], threads=1)) == 12
    assert len(Slots(["cpu"], threads=5)) == 2
    assert len(Slots(["cpu"], threads=None)) == len(Slots(["cpu"], threads=99)) == 1
    assert len(Slots(["cpu", "cuda:0"], threads=4)) == 4
    assert len(Slots(["cuda:0", "cuda:1"])) == 2


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("0,1", ["cuda:0", "cuda:1"]), ("GPU-abc", ["cuda:0"]), ("", ["cpu"]), ("-1", ["cpu"])],
)
def test_visible_gpus_are_found(visible, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_devices() == expected


def test_gpus_are_found_by_their_files(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    files = [Path("/dev/nvidia0"), Path("/dev/nvidia3")]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(files))
    assert find_devices() == ["cuda:0", "cuda:1"]


def test_commands_that_see_different_gpus_do_not_share_them(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with Slots("auto", None, str(tmp_path)).hold() as device:
        assert device == "cuda:0"
        assert [path.name for path in tmp_path.iterdir()] == ["cuda-2-0"]


def test_the_folder_is_the_same_for_all_commands_of_a_user():
    assert Slots(["cpu"]).folder == Slots(["cpu"]).folder
    assert slots._find_folder().name == "slots"


def is_cuda_initialized():
    return int(torch.cuda.is_initialized())


def test_jobs_are_forked_from_a_server_without_cuda(tmp_path):
    assert call_in_process(is_cuda_initialized, (), log=tmp_path / "log") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": []}, r"devices to be auto or a list of different devices, .* got \[\]"),
        ({"devices": "cpu"}, "devices to be auto or a list .* got 'cpu'"),
        ({"devices": ["cpu", "cpu"]}, "devices to be auto or a list of different devices"),
        ({"devices": ["../x"]}, "devices to be auto or a list of different devices"),
        ({"devices": [0]}, "devices to be auto or a list of different devices"),
        ({"jobs_per_device": 0}, "jobs_per_device to be a positive integer or null, got 0"),
        ({"jobs_per_device": 1.5}, "jobs_per_device to be a positive integer or null, got 1.5"),
        ({"jobs_per_device": True}, "jobs_per_device to be a positive integer or null, got True"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Slots(**arguments)


def test_results_are_in_order_and_a_lost_task_harms_no_other():
    def task(number):
        time.sleep(0.02 * (number % 3))
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 5:
            raise RuntimeError("no luck")
        return number, os.getpid()

    results = run_tasks(task, 9, 3, lambda number, code: (number, f"lost {code}"))
    assert [number for number, _ in results] == list(range(9))
    assert results[4] == (4, "lost -9")
    assert results[5] == (5, "lost 1")
    pids = {pid for number, pid in results if number not in (4, 5)}
    assert len(pids) <= 5
    assert os.getpid() not in pids


def test_a_sweep_runs_each_job_on_a_device_that_it_holds(tmp_path):
    words = [*SLOTS, f"hydra.launcher.folder={tmp_path / 'slots'}", "isolate=false"]
    outcome = call("pyro-vae", "-m", *QUICK, *words, "seed=0,1,2", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "3 finished" in outcome.out
    assert outcome.out.count("on cpu: ") <= 3
    assert sorted(path.name for path in (tmp_path / "slots").iterdir()) == ["cpu-0-0", "cpu-0-1"]


@pytest.mark.long
def test_a_killed_worker_fails_its_job_alone(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", "-m", *QUICK, *SLOTS, "train.epochs=100000,1",
         "train.patience=null", "seed=0", f"hydra.launcher.folder={tmp_path / 'slots'}"],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    there = tmp_path / "multirun" / "sweep"
    deadline = time.monotonic() + 120
    while not (list(there.glob("*/resume.pt")) and list(there.glob("*/report.html"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    busy = [c for c in children if Path(f"/proc/{c}/task/{c}/children").read_text().split()]
    for child in busy:
        os.kill(int(child), signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert re.search("1 finished, 1 failed|1 failed, 1 finished", said), said


def test_the_device_of_jobs_is_not_set_twice(tmp_path):
    outcome = call("pyro-vae", "-m", *QUICK, *SLOTS, "device=cpu,meta", cwd=tmp_path)
    assert outcome.code == 1
    assert "Expected hydra.launcher.devices to choose the device" in outcome.err
