"""Runs tasks in several forked processes, which are replaced if they die."""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import connection
from typing import Any, NamedTuple

from pyro_vae.console.commands import run_process

__all__ = ["can_fork", "run_tasks"]

_GRACE = 15.0
"""Seconds in which interrupted processes may end."""


class _Worker(NamedTuple):
    """A process with its end of a pipe.

    Attributes:
        process: The process.
        pipe: Sends the numbers of tasks, and receives their results.
    """

    process: Any
    pipe: Any


def can_fork() -> bool:
    """Whether this system forks processes."""
    return "fork" in multiprocessing.get_all_start_methods()


def run_tasks(
    task: Callable[[int], Any], count: int, workers: int, lost: Callable[[int, int], Any]
) -> list[Any]:
    """Runs tasks in forked processes; each takes the next task as soon as it is free.

    Arguments:
        task: A function of the number of a task. Its result has to be picklable.
        count: The number of tasks.
        workers: The number of processes.
        lost: Gives the result of a task whose process died, from its number and the exit code.

    Returns:
        The results, in the order of the tasks.
    """
    context = multiprocessing.get_context("fork")
    results: dict[int, Any] = {}
    running: dict[Any, tuple[_Worker, int]] = {}
    waiting = list(range(count))
    idle: list[_Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                worker = idle.pop() if idle else _start(context, task)
                number = waiting.pop(0)
                worker.pipe.send(number)
                running[worker.pipe] = (worker, number)
            for pipe in connection.wait(list(running)):
                worker, number = running.pop(pipe)
                try:
                    results[number] = worker.pipe.recv()
                    idle.append(worker)
                except (EOFError, OSError):
                    worker.process.join()
                    results[number] = lost(number, worker.process.exitcode)
    finally:
        _stop([*idle, *(worker for worker, _ in running.values())])
    return [results[number] for number in range(count)]


def _start(context: Any, task: Callable[[int], Any]) -> _Worker:
    own, other = context.Pipe()
    process = context.Process(target=_serve, args=(task, own, other))
    process.start()
    other.close()
    return _Worker(process, own)


def _serve(task: Callable[[int], Any], parent: Any, pipe: Any) -> None:
    """Runs tasks in a forked process until its parent closes the pipe."""
    # A terminal interrupts all processes; this one is ended by its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent.close()

    def serve() -> int:
        while True:
            try:
                number = pipe.recv()
            except EOFError:
                return 0
            pipe.send(task(number))

    run_process(serve)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()
        if worker.process.is_alive():
            worker.process.terminate()
    for worker in workers:
        worker.process.join(_GRACE)
        worker.process.kill()
        worker.process.join()
