"""Progress of long tasks: a bar in a terminal or notebook, lines at intervals elsewhere."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TextIO

__all__ = ["Progress", "announce", "check_progress", "read_progress", "show_always"]

_REDRAW = 0.1
"""Seconds between two updates of a bar."""
_FIRST_BAR = 1.0
"""Seconds of work after which a library function shows a bar."""
_FIRST_LINE = 2.0

_FORMAT = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"
)

_always: ContextVar[bool] = ContextVar("always", default=False)


@contextmanager
def show_always() -> Iterator[None]:
    """Shows progress without a terminal too, and bars from the start, within the context."""
    token = _always.set(True)
    try:
        yield
    finally:
        _always.reset(token)


def announce(text: str) -> None:
    """Prints a line, above a bar if there is one, within :func:`show_always`."""
    if not _always.get():
        return
    # A full disk or a closed pipe must not stop the work.
    with suppress(OSError):
        if _draws_bars():
            from tqdm.auto import tqdm

            tqdm.write(text, file=_choose_stream())
        else:
            print(text, file=sys.stderr, flush=True)


def check_progress(progress: Any) -> None:
    """Raises a ``ValueError`` unless progress is a boolean or ``None``."""
    if progress is not None and not isinstance(progress, bool):
        raise ValueError(f"Expected progress to be True, False or None, got {progress!r}")


class Progress:
    """The progress of one stage of work, as a context manager.

    A report only reads the clock, unless an update of the display is due.

    Arguments:
        stage: The name of the stage.
        total: The number of units.
        unit: The name of the units, in the plural.
        show: Whether to show it. Default: in a terminal or notebook, and within
            :func:`show_always` everywhere.
        at_once: Whether to show a bar from the start.
        done: The number of units that are completed at the start.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        *,
        show: bool | None = None,
        at_once: bool = False,
        done: float = 0.0,
    ) -> None:
        check_progress(show)
        always = _always.get()
        self.stage, self.total, self.unit = stage, total, unit
        self.done, self.initial, self.note = done, done, ""
        self._bar: Any = None
        self._in_bar = _draws_bars()
        hidden = show is False or not (self._in_bar or always or show)
        self._first = _FIRST_LINE if not self._in_bar else 0.0 if always or at_once else _FIRST_BAR
        self._start = time.monotonic()
        self._next = float("inf") if hidden else self._start + self._first

    def __enter__(self) -> "Progress":
        self._show_if_due()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            with suppress(AttributeError, TypeError):
                vars(error).setdefault("work_done", self.position())
        if self._bar is not None:
            self._bar.close()

    def advance(self, amount: float = 1.0) -> None:
        """Adds to the number of completed units."""
        self.reach(self.done + amount)

    def reach(self, done: float, note: str | None = None) -> None:
        """Sets the number of completed units, and a note such as the current ELBO."""
        self.done = min(done, self.total)
        if note is not None:
            self.note = note
        self._show_if_due()

    def position(self) -> str:
        """Returns the position within the stage, as in ``3 of 10 epochs of training``."""
        # Sums of fractions of units are rounded to slightly less than whole units.
        return f"{int(self.done + 1e-6)} of {self.total} {self.unit} of {self.stage}"

    def _show_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        # A full disk or a closed pipe must not stop the work.
        with suppress(OSError):
            if self._in_bar:
                self._draw()
            else:
                self._print(now - self._start)
        self._next = now + (_REDRAW if self._in_bar else _line_interval(now - self._start))

    def _draw(self) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=self.total,
                # Units of an earlier call do not count for the estimate of the time.
                initial=self.initial,
                desc=self.stage,
                unit=self.unit,
                leave=False,
                bar_format=_FORMAT,
                file=_choose_stream(),
                # Some terminals, such as those of containers, report zero columns.
                ncols=None if _in_notebook() else shutil.get_terminal_size().columns,
            )
            self._bar.start_t -= time.monotonic() - self._start
        self._bar.n = int(self.done) if float(self.done).is_integer() else round(self.done, 1)
        self._bar.set_postfix_str(self.note, refresh=False)
        self._bar.refresh()

    def _print(self, seconds: float) -> None:
        note = f", {self.note}" if self.note else ""
        print(
            f"{self.stage}: {int(self.done + 1e-6)} of {self.total} {self.unit}{note}, "
            f"{seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def _line_interval(seconds: float) -> float:
    """Returns the seconds to the next line: 5 % of the elapsed time, but between 10 and 60."""
    return min(60.0, max(10.0, seconds / 20))


def read_progress(error: BaseException | None) -> str | None:
    """Returns the position of the work that an error or its cause stopped, ``None`` if unknown."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        if isinstance(text := getattr(error, "work_done", None), str):
            return text
        error = error.__cause__ or error.__context__
    return None


def _draws_bars() -> bool:
    """Whether standard error is a terminal, or this is a notebook."""
    with suppress(AttributeError, ValueError):
        if sys.stderr.isatty():
            return True
    return _in_notebook()


def _choose_stream() -> TextIO:
    """Returns standard error, or standard output in a notebook, which marks the other in red."""
    return sys.stdout if _in_notebook() else sys.stderr


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())
