"""Calls a function in a subprocess, which ends with its caller and whose crash leaves it alive."""

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

__all__ = ["call_in_process", "exit_with_parent"]

_PRELOADED = [
    "pyro_vae.run",
    "pyro_vae.report.content",
    "sklearn.cluster",
    "sklearn.decomposition",
    "sklearn.manifold",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch._inductor.lowering",
]
"""Modules imported once for all processes: slow to import, but without threads."""


_GRACE = 10.0
"""Seconds in which an interrupted process may write its last checkpoint."""

_ENDING = threading.Event()
"""Set if this process ends with its parent."""


def call_in_process(function: Callable[..., int], arguments: tuple[Any, ...], *, log: Path) -> int:
    """Calls a function in a new process, and returns its exit code.

    Where the system supports it, processes are forked from a server that has only imported
    PyTorch: each starts in a fresh state, but at once.

    Arguments:
        function: A function of a module, which returns an exit code.
        arguments: The arguments of the function.
        log: The file to which output and errors are appended.

    Returns:
        The exit code; that of a process ended by a signal is minus the signal's number.
    """
    context = _choose_context()
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_run_function, args=(function, arguments, str(log)))
    process.start()
    try:
        process.join()
    finally:
        # An interrupt stops only this process.
        process.terminate()
        process.join(_GRACE)
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _choose_context() -> Any:
    """Returns the multiprocessing context: a fork server, or spawn where it is unavailable."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _run_function(function: Callable[..., int], arguments: tuple[Any, ...], log: str) -> None:
    """Calls the function in the new process, with its output in a file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_kill_with_parent, daemon=True).start()
    with _open_log(log) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(run_process(lambda: function(*arguments)))


def _open_log(log: str) -> TextIO:
    try:
        return open(log, "a", buffering=1, encoding="utf-8")
    except OSError:
        # The function itself will fail to write, and report this by its exit code.
        return open(os.devnull, "w", encoding="utf-8")


def exit_with_parent(parent: int) -> None:
    """Ends this process soon after its parent, if ``parent`` is the id of that process.

    Otherwise the workers of a killed pool would finish their queued tasks and then wait forever.
    """
    if os.name != "posix" or os.getppid() != parent or _ENDING.is_set():
        return
    _ENDING.set()
    # A terminal interrupts all processes; this one ends silently with its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _kill_with_parent() -> None:
    """Kills this process when its parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
