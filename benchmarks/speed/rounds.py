"""One case: a process for each contender, whose blocks take turns."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cases import Case
from contenders import CONTENDERS

REST = 0.02
"""Seconds between two blocks, in which the threads of the one before go to sleep."""


class Settings(NamedTuple):
    """How is measured."""

    threads: int
    blocks: int
    block_seconds: float
    device: str
    rows: int
    check: int | None

    def cores(self) -> list[int]:
        """Returns the cores to which each process is pinned: the last ones."""
        return sorted(os.sched_getaffinity(0))[-self.threads :]

    def environment(self) -> dict[str, str]:
        """Returns the environment of a process."""
        threads = str(self.threads)
        flags = os.environ.get("XLA_FLAGS", "")
        if self.threads == 1:
            flags += " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        pinned = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "XLA_FLAGS": flags.strip(),
            # Processes that compile would outlive the compiling, in the way of the others.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        if self.device == "cpu":
            pinned |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        else:
            # Not the processor instead, without a word, nor all of the memory at once.
            pinned |= {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return {**os.environ, **pinned}


class Process:
    """The process of a contender.

    Attributes:
        failed: Why it is out of the race, if it is.
        result: What is known of it.
    """

    def __init__(self, name: str, case: Case, data: Path, settings: Settings, python: str) -> None:
        self.name = name
        self.failed: str | None = None
        self.result: dict[str, Any] = {"seconds": []}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by quit
        self.process: subprocess.Popen[str] | None = None
        if shutil.which(python) is None:
            self.failed = f"not installed (no {python})"
            return
        command = [python, str(Path(__file__).with_name("worker.py"))]
        command += ["--case", case.name, "--contender", name, "--data", str(data)]
        command += ["--device", settings.device, "--threads", str(settings.threads)]
        # With a cache of its own, the first call of each is that of a machine which never compiled.
        cache = str(data.with_name(f"{case.name}-{name}"))
        places = {"TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": str(data.parent)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=settings.environment() | places,
            preexec_fn=lambda: os.sched_setaffinity(0, settings.cores()),
        )
        self.take_answer()
        if "missing" in self.result:
            self.failed = f"not installed ({self.result.pop('missing')})"

    def tell(self, command: str) -> None:
        """Has a command done; if that fails, the contender is out."""
        if self.failed is None:
            assert self.process is not None
            assert self.process.stdin is not None
            with suppress(BrokenPipeError):
                print(command, file=self.process.stdin, flush=True)
            self.take_answer()

    def take_answer(self) -> None:
        """Waits for an answer and enters it."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            lines = [line for line in self.log.read().splitlines() if line.strip()]
            self.failed = f"failed: {lines[-1].strip() if lines else self.process.returncode}"
            return
        answer = json.loads(line)
        if "seconds" in answer:
            self.result["seconds"].append(answer.pop("seconds"))
        self.result |= answer

    def quit(self) -> dict[str, Any]:
        """Ends the process, and returns what is known."""
        self.tell("quit")
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        return {"failed": self.failed} if self.failed else self.result


def say(text: str) -> None:
    """Tells how far it is."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def start(
    names: list[str], case: Case, data: Path, settings: Settings, pythons: dict[str, str]
) -> list[Process]:
    """Starts the contenders one after another, and has each train for its loss and warm up."""
    processes = []
    steps = case.check if settings.check is None else settings.check
    for name in names:
        process = Process(name, case, data, settings, pythons[CONTENDERS[name].python])
        if steps:
            process.tell(f"check {steps}")
        process.tell(f"calibrate {settings.block_seconds}")
        known = {key: process.result.get(key) for key in ("loss", "calls")}
        say(f"{case.name}: {name}: {process.failed or known}")
        processes.append(process)
    return processes


def race(
    names: list[str], case: Case, data: Path, settings: Settings, pythons: dict[str, str]
) -> dict[str, Any]:
    """Measures all contenders on a case, a block of each in every round."""
    began = time.perf_counter()
    processes = start(names, case, data, settings, pythons)
    loads = []
    for turn in range(settings.blocks):
        # Nobody always follows the same one, nor is always the first.
        first = turn % len(processes)
        for process in processes[first:] + processes[:first]:
            time.sleep(REST)
            process.tell(f"block {process.result.get('calls')}")
        loads.append(os.getloadavg()[0])
        say(f"{case.name}: round {turn + 1} of {settings.blocks}, load {loads[-1]:.2f}")
    return {
        "contenders": {process.name: process.quit() for process in processes},
        "loads": loads,
        "took_seconds": time.perf_counter() - began,
    }
