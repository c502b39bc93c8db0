"""A call in a process of its own, which ends with its caller and cannot take it along."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any, TextIO

from pyro_vae.console.commands import run_process

__all__ = ["call", "end_with"]

_PRELOADED = ["pyro_vae.run", "torch._dynamo", "sklearn.manifold"]
"""What takes seconds to import, and starts no threads: done once for all processes."""


_GRACE = 10.0
"""Seconds in which an interrupted process may write its last checkpoint."""

_ENDING = threading.Event()
"""Set where this process is to end with its parent."""


def call(function: Callable[..., int], arguments: tuple[Any, ...], *, log: Path) -> int:
    """Calls a function in a new process, and returns the exit code that the function returned.

    Processes are forked from one that has imported PyTorch and done nothing else, where the
    system can: each starts as a fresh one does, but at once.

    Arguments:
        function: A function of a module, which returns an exit code.
        arguments: What it is called with.
        log: The file that output and errors are appended to.

    Returns:
        The exit code; that of a process ended by a signal is minus the signal's number.
    """
    context = _start_method()
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_run, args=(function, arguments, str(log)))
    process.start()
    try:
        process.join()
    finally:
        # On an interrupt, which stops this process and not that one.
        process.terminate()
        process.join(_GRACE)
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _start_method() -> Any:
    """Returns how processes are started: forked from a server, or where there is none spawned."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _run(function: Callable[..., int], arguments: tuple[Any, ...], log: str) -> None:
    """Calls the function, with its output in a file; in the new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _opened(log) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(run_process(lambda: function(*arguments)))


def _opened(log: str) -> TextIO:
    try:
        return open(log, "a", buffering=1, encoding="utf-8")
    except OSError:
        # The function itself will find that nothing can be written, and say so by its code.
        return open(os.devnull, "w", encoding="utf-8")


def end_with(parent: int) -> None:
    """Ends this process soon after its parent, if that is the process of this number.

    The workers of a pool that is killed would otherwise wait for its next task for ever, and do
    those that they were given already.
    """
    if os.name != "posix" or os.getppid() != parent or _ENDING.is_set():
        return
    _ENDING.set()
    # A terminal sends it to all processes; this one ends with its parent, and without a word.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when that which started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
