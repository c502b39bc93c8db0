"""Files that are whole or not there, and folders that one process at a time writes to."""

import errno
import json
import math
import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FolderInUseError",
    "check_new_file",
    "hold_folder",
    "is_held",
    "remove_partial",
    "strict_json",
    "write_whole",
]

_LOCK = ".lock"

PATIENCE = 5.0
"""Seconds to wait for another process that holds a folder, which may just be dying."""

_BUSY = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EIO, errno.EINVAL)
"""Errors of file systems on which nothing can be locked."""


class FolderInUseError(ValueError):
    """Another process writes to a folder."""


class _Folders(threading.local):
    """The folders that a thread holds: how many times, and the file that is locked for it."""

    def __init__(self) -> None:
        self.times: dict[Path, int] = {}
        self.files: dict[Path, int] = {}


_folders = _Folders()
_locked: set[int] = set()
"""The locked files of all threads."""
_warned: set[Path] = set()


def _after_fork() -> None:
    # A lock lasts as long as any process has its file open.
    for file in _locked:
        os.close(file)
    _locked.clear()
    _folders.times.clear()
    _folders.files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def hold_folder(folder: Path, *, patience: float | None = None) -> Iterator[None]:
    """Holds a folder for this process, and frees it at the end or when the process dies.

    Holding a folder again in the same thread does nothing. A file system without locks gives a
    warning, once, and the folder is used without one.

    Arguments:
        folder: The folder; it is created if it does not exist.
        patience: Seconds to wait for another process; by default :data:`PATIENCE`.

    Raises:
        FolderInUseError: If another process holds the folder.
        ValueError: If nothing can be written to the folder.
    """
    folder = folder.resolve()
    times, files = _folders.times, _folders.files
    if folder not in times:
        files[folder] = _lock(folder, PATIENCE if patience is None else patience)
        times[folder] = 0
    times[folder] += 1
    try:
        yield
    finally:
        # Both are empty in a process that was forked meanwhile.
        if folder in times:
            times[folder] -= 1
            if not times[folder]:
                del times[folder]
                _unlock(files.pop(folder))


def is_held(folder: Path) -> bool:
    """Whether any process, this one included, holds a folder.

    False where it cannot be found out: on a file system without locks, or without permission.
    """
    try:
        # A pipe of that name would otherwise block.
        file = os.open(folder / _LOCK, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        _take(file, shared=True)
    except OSError as error:
        return error.errno in _BUSY
    finally:
        os.close(file)
    return False


def _lock(folder: Path, patience: float) -> int:
    """Returns the descriptor of a file that is locked, where files can be locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"Expected a folder that can be written to, got '{folder}' ({error.strerror}): free "
            f"space or change its permissions, or choose another folder"
        ) from None
    end = time.monotonic() + patience
    try:
        while not _taken(file, folder):
            if time.monotonic() >= end:
                raise FolderInUseError(
                    f"Expected a folder that no other process writes to, got '{folder}': wait for "
                    f"that process, or choose another folder"
                )
            time.sleep(0.05)
    except BaseException:
        os.close(file)
        raise
    _locked.add(file)
    return file


def _unlock(file: int) -> None:
    _locked.discard(file)
    os.close(file)


def _taken(file: int, folder: Path) -> bool:
    """Whether a lock could be taken, or the file system has no locks."""
    try:
        _take(file)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        if folder not in _warned:
            _warned.add(folder)
            warnings.warn(
                f"'{folder}' cannot be locked ({error.strerror}): make sure that no other process "
                f"writes to it",
                stacklevel=6,
            )
    return True


def _take(file: int, *, shared: bool = False) -> None:
    """Locks an open file, or raises an ``OSError``."""
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    else:
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)


def check_new_file(name: str, value: Any) -> Path:
    """Returns the path of a file to write, or raises a ``ValueError`` if it cannot be one.

    Arguments:
        name: The argument that names the file.
        value: Its value.
    """
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError(f"Expected {name} to name a file, got {value!r}")
    path = Path(value).expanduser()
    if path.is_dir():
        raise ValueError(f"Expected {name} to name a file, got the folder '{value}'")
    parent = next(folder for folder in path.parents if os.path.lexists(folder) or not folder.name)
    if not parent.is_dir():
        raise ValueError(f"Expected {name} to name a file in a folder, got '{value}' in a file")
    return path


def remove_partial(folder: Path) -> None:
    """Removes the partial files that killed processes left in a folder, which is held."""
    for partial in folder.glob(".*.part"):
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, also if the machine loses power.

    An ``OSError`` names the file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            # The error of a write names no file, and that of another call the partial one.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def strict_json(values: Any) -> str:
    """Returns JSON without NaN and infinity, which the standard does not know: null there."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(values), indent=2, allow_nan=False) + "\n"
