"""The process of one contender: reads commands, one a line, and answers each by a line of JSON.

check STEPS         trains, and answers the loss per datum
calibrate SECONDS   answers the calls of a block that takes about so long
block CALLS         trains, and answers the seconds for a row
quit                answers the most memory that the process has taken
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

PACKAGES = ("torch", "pyro-ppl", "pyro_vae", "jax", "jaxlib", "numpyro", "pythae")


def private_output() -> TextIO:
    """Returns what was standard output, which from now on goes to the log of errors."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def most_memory() -> float:
    """Returns the most memory taken so far, in MiB.

    It is not ``ru_maxrss``, which begins with that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter, and of the libraries within PyTorch."""
    found = {package: installed for package in PACKAGES if (installed := version_of(package))}
    if "torch" in sys.modules:
        lines = sys.modules["torch"].__config__.show().splitlines()
        for line in lines:
            if "Math Kernel Library" in line or "MKL-DNN" in line or "oneDNN" in line:
                found["MKL" if "Math Kernel Library" in line else "oneDNN"] = line.strip(" -")
    return found


def version_of(package: str) -> str | None:
    """Returns the version of a package, if it is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def on_device(device: str) -> str | None:
    """Returns the name of the accelerator, if it is used."""
    if device == "cpu" or "torch" not in sys.modules:
        return None
    return sys.modules["torch"].cuda.get_device_name()


class Worker:
    """Trains as it is told.

    Arguments:
        runner: The training.
        case: The case.
        rows: The rows of the data.
    """

    def __init__(self, runner: Any, case: Any, rows: int) -> None:
        self.runner, self.case, self.made = runner, case, 0
        self.whole = max(1, rows // runner.rows_per_call) if case.epoch else 1

    def answer(self, command: str) -> dict[str, Any]:
        """Does what it is told."""
        word, *rest = command.split()
        if word == "quit":
            return {"peak_mib": most_memory(), "notes": self.runner.notes()}
        action: Callable[[str], dict[str, Any]] = getattr(self, word)
        return action(*rest)

    def check(self, steps: str) -> dict[str, Any]:
        """Trains for so many steps."""
        return {"loss": self.runner.check(self.case, int(steps), self.made)}

    def calibrate(self, seconds: str) -> dict[str, Any]:
        """Finds the calls of a block; all of them warm up."""
        calls, taken = self.whole, self.seconds(self.whole)
        while taken < float(seconds) / 3:
            calls *= 2
            taken = self.seconds(calls)
        return {"calls": max(self.whole, round(calls * float(seconds) / taken))}

    def block(self, calls: str) -> dict[str, Any]:
        """Measures a block, after a few calls that bring data back into the caches."""
        if self.whole == 1 and self.runner.rows_per_call == self.case.batch:
            self.runner.run(max(1, int(calls) // 20))
        return {"seconds": self.seconds(int(calls)) / (int(calls) * self.runner.rows_per_call)}

    def seconds(self, calls: int) -> float:
        """Returns the time of some calls."""
        began = time.perf_counter()
        self.runner.run(calls)
        self.made += calls
        return time.perf_counter() - began


def ready(given: argparse.Namespace) -> tuple[dict[str, Any], Worker | None]:
    """Imports the contender, makes it and has it run once; says what that took."""
    from cases import CASES, presented
    from contenders import CONTENDERS

    case, contender = CASES[given.case], CONTENDERS[given.contender]
    try:
        module = importlib.import_module(f"contenders.{contender.module}")
    except ModuleNotFoundError as error:
        return {"missing": str(error.name)}, None
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(given.threads)
    imported = most_memory()
    import numpy as np

    data = presented(case, np.load(given.data))
    began = time.perf_counter()
    runner = module.prepare(case, data, given.device, **contender.options)
    worker = Worker(runner, case, len(data))
    worker.seconds(1)
    return {
        "imported_mib": imported,
        "first_seconds": time.perf_counter() - began,
        "versions": versions(),
        "accelerator": on_device(given.device),
    }, worker


def main() -> None:
    """Answers until it is told to quit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", required=True)
    parser.add_argument("--contender", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    answers = private_output()

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    answer, worker = ready(given)
    say(answer)
    for line in sys.stdin if worker is not None else ():
        say(worker.answer(line))
        if line.strip() == "quit":
            break
    # Threads of a training that waits for its next epoch do not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
