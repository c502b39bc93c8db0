"""Signals and errors of the console commands: one line each, and an exit code."""

import argparse
import errno
import functools
import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TypeVar

import pyro_vae
from pyro_vae.progress import read_progress

__all__ = [
    "AGAIN",
    "EXPECTED",
    "VERSION",
    "check_interrupted",
    "explain",
    "pass_errors",
    "prepare_options",
    "raise_on_signals",
    "raise_past_hydra",
    "run_command",
    "run_process",
    "show_errors",
    "stop_at_signals",
]

_T = TypeVar("_T")

AGAIN = "run the same command again"

VERSION = f"pyro_vae {pyro_vae.__version__}"
"""The output of ``--version``."""

_FULL = "HYDRA_FULL_ERROR"
"""The environment variable that enables tracebacks, here and in Hydra."""

_SPACE = "free space, or choose another folder"
_PERMISSION = "change the permissions, or choose another folder"
_ELSEWHERE = "choose another folder"
_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _ELSEWHERE,
    errno.EEXIST: _ELSEWHERE,
    errno.ENOTDIR: _ELSEWHERE,
}

EXPECTED = (ValueError, FloatingPointError)
"""Errors that are shown to the user by their message alone."""

_received: list[int] = []
"""The first signal received, if any."""


class _Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM was received.

    Arguments:
        number: The number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _UserError(BaseException):
    """Carries an error through Hydra, which would print another line for an ``Exception``.

    Arguments:
        cause: The error.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _UsageError(Exception):
    """A command line has unknown options."""


def pass_errors(task: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """Passes errors of a Hydra task to :func:`show_errors`, unless it is part of a sweep.

    In a sweep the other jobs continue, and Hydra's message names the failed one.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    @functools.wraps(task)
    def run_task(cfg: Any) -> _T:
        try:
            return task(cfg)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raise _UserError(error) from error

    return run_task


def raise_past_hydra(error: Exception) -> NoReturn:
    """Raises an error from a callback of Hydra, where an ``Exception`` would be a warning."""
    raise _UserError(error) from error


def prepare_options(program: str) -> None:
    """Checks the command line of a Hydra application, and prepares it for Hydra.

    Hydra accepts settings only side by side. Here they and options come in any order; settings are
    moved to the front. ``--version`` prints the version of this package.

    Raises:
        _UsageError: If an option is unknown to Hydra.
        ValueError: If a setting has no name.
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        dashes = ": settings are KEY=VALUE without dashes" * message.startswith("unrecognized")
        raise _UsageError(
            f"{program}: {message}{dashes} ({program} --help lists settings, {program} "
            f"--hydra-help options)"
        )

    # Hydra's own --version, which prints the version of Hydra alone, is replaced.
    parser = argparse.ArgumentParser(
        parents=[get_args_parser()], add_help=False, conflict_handler="resolve"
    )
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("--version", action="version", version=VERSION)
    settings = parser.parse_intermixed_args().overrides
    for word in settings:
        if word.startswith("="):
            raise ValueError(f"Expected settings as KEY=VALUE, got {word!r}: --help lists them")
    options = sys.argv[1:]
    for word in settings:
        options.remove(word)
    sys.argv[1:] = [*settings, *options]


def check_interrupted() -> None:
    """Raises :class:`_Interrupted` after a signal, even if its first exception was swallowed."""
    if _received:
        raise _Interrupted(_received[0])


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raises :class:`_Interrupted` in the main thread at SIGINT or SIGTERM; a second one kills.

    An ignored signal stays ignored. Outside the main thread this has no effect.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        before = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
    _received.clear()

    def raise_once(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        _received.append(number)
        raise _Interrupted(number)

    for number in before:
        signal.signal(number, raise_once)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_command(
    command: Callable[[], int],
    *,
    program: str,
    expected: tuple[type[Exception], ...] = EXPECTED,
) -> int:
    """Runs a console command that restarts after an interruption, and returns its exit code.

    Arguments:
        command: The command.
        program: Its name.
        expected: As in :func:`show_errors`.
    """
    return stop_at_signals(lambda: show_errors(command, expected=expected), program=program)


def stop_at_signals(
    command: Callable[[], int], *, program: str, continuation: Callable[[], str] = lambda: AGAIN
) -> int:
    """Runs a console command, and returns its exit code: 130 or 143 after a signal.

    If the reader of its output has gone, as after ``| head``, the command ends at the next line
    that it prints, without a message and with the exit code 141. A sweep, which logs its jobs,
    completes them instead.

    Arguments:
        command: The command.
        program: Its name.
        continuation: Returns how to continue after an interruption, as an imperative.
    """
    try:
        with raise_on_signals(), _drop_unread_logs():
            return _run_and_flush(command)
    except BaseException as error:
        if not (_received or isinstance(error, KeyboardInterrupt)):
            if _is_output_closed(error):
                _discard_output()
                return 128 + signal.SIGPIPE
            raise
        number = _received[0] if _received else signal.SIGINT
        name = signal.Signals(number).name
        done = read_progress(error)
        after = "" if done is None else f" after {done}"
        _print_error(f"{program}: stopped by {name}{after}; to continue, {continuation()}")
        return 128 + number
    finally:
        _received.clear()


def _run_and_flush(command: Callable[[], int]) -> int:
    """Runs a command, and raises a ``BrokenPipeError`` if nobody reads its output."""
    try:
        code = command()
    except SystemExit:
        _flush_output()
        raise
    _flush_output()
    return code


@contextmanager
def _drop_unread_logs() -> Iterator[None]:
    """Lets a command that logs to a closed pipe go on without output.

    Otherwise each record prints a traceback, and the jobs of a sweep fail with the unwritten text.
    """
    original = logging.Handler.handleError

    def handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
        if _is_output_closed(sys.exc_info()[1]):
            _discard_output()
        else:
            original(handler, record)

    logging.Handler.handleError = handle_error  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        logging.Handler.handleError = original  # type: ignore[method-assign]


def _flush_output() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError):
        # The interpreter reports it at exit.
        pass


def _is_output_closed(error: BaseException | None) -> bool:
    """Whether an error is due to a reader of standard output that has gone.

    Other pipes, such as those to worker processes, may break too.
    """
    cause = error.cause if isinstance(error, _UserError) else error
    return isinstance(cause, BrokenPipeError) and _is_closed_pipe(sys.stdout)


def _is_closed_pipe(stream: Any) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return False
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard_output() -> None:
    """Redirects closed pipes to the null device, because the interpreter flushes them at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_closed_pipe(stream):
            os.dup2(null, stream.fileno())
    os.close(null)


def show_errors(
    command: Callable[[], int],
    *,
    continuation: Callable[[], str] = lambda: AGAIN,
    expected: tuple[type[Exception], ...] = EXPECTED,
) -> int:
    """Runs a command, shows its error, and returns its exit code.

    User errors are shown without a traceback, unless ``HYDRA_FULL_ERROR=1``.

    Arguments:
        command: The command.
        continuation: Returns how to continue once there is free space on the disk.
        expected: Errors shown by their message alone, besides those of the operating system and
            Hydra.
    """
    full = os.environ.get(_FULL)
    # Hydra would otherwise show its traceback for most errors.
    os.environ[_FULL] = "1"
    try:
        return command()
    except _UsageError as error:
        _print_error(str(error))
        return 2
    except (Exception, _UserError) as error:
        check_interrupted()
        if _is_output_closed(error):
            raise
        # Unwrapped, to be shown like an error raised outside Hydra.
        error = error.cause if isinstance(error, _UserError) else error
        line = None if full == "1" else _format_error(error, expected)
        if line is None:
            traceback.print_exception(error)
        else:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                line += f"; then {continuation()}"
            _print_error(
                f"{line}\n\nSet the environment variable {_FULL}=1 for a complete stack trace."
            )
        return 1
    finally:
        if full is None:
            os.environ.pop(_FULL, None)
        else:
            os.environ[_FULL] = full


def run_process(function: Callable[[], int]) -> int:
    """Runs a function in a separate process, and returns its exit code.

    A signal ends the process after its cleanup, without a traceback.
    """
    try:
        with raise_on_signals():
            return function()
    except BaseException:
        if not _received:
            raise
        signal.signal(_received[0], signal.SIG_DFL)
        os.kill(os.getpid(), _received[0])
        return 128 + _received[0]


def explain(error: Exception) -> str:
    """Returns the message of an error; an ``OSError`` is followed by its file and a remedy."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    file = "" if error.filename is None else f": '{error.filename}'"
    advice = _ADVICE.get(error.errno)
    return f"{error.strerror}{file}{'' if advice is None else f': {advice}'}"


def _format_error(error: Exception, expected: tuple[type[Exception], ...]) -> str | None:
    """Returns a user error, or ``None`` for an error of the program.

    It is one line, with the items of a list below it.
    """
    if "hydra" in sys.modules:
        from pyro_vae.console.hydra_errors import describe_error

        if (line := describe_error(error)) is not None:
            return line
    if isinstance(error, OSError) and error.errno is not None:
        return f"{type(error).__name__}: {explain(error)}"
    if not isinstance(error, expected):
        return None
    # Pyro adds the shapes of a trace to errors within it.
    first, *rest = str(error).partition("Trace Shapes:")[0].rstrip().splitlines() or [""]
    if not all(line.startswith("  ") for line in rest):
        first, rest = " ".join([first, *rest]), []
    return "\n".join([f"{type(error).__name__}: {' '.join(first.split())}", *rest])


def _print_error(text: str) -> None:
    # Printing fails if standard error is a file on a full disk.
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
