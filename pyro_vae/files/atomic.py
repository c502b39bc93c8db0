"""Atomic file writes, and locks for folders that one process at a time writes to."""

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
    "replace_non_finite",
    "strict_json",
    "write_whole",
]

_LOCK = ".lock"

PATIENCE = 5.0
"""Seconds to wait for another process that holds a folder, because it may be about to end."""

_BUSY = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EIO, errno.EINVAL)
"""Errors of file systems without locks."""


class FolderInUseError(ValueError):
    """Another process writes to a folder."""


class _Folders(threading.local):
    """The folders that a thread holds, with their lock counts and descriptors of locked files."""

    def __init__(self) -> None:
        self.times: dict[Path, int] = {}
        self.files: dict[Path, int] = {}


_folders = _Folders()
_locked: set[int] = set()
"""Descriptors of the locked files of all threads."""
_warned: set[Path] = set()


def _after_fork() -> None:
    # A lock lasts as long as any process, such as a forked child, has its file open.
    for file in _locked:
        os.close(file)
    _locked.clear()
    _folders.times.clear()
    _folders.files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def hold_folder(folder: Path, *, patience: float | None = None) -> Iterator[None]:
    """Locks a folder for this process, and releases it at exit or when the process dies.

    The lock is reentrant within a thread. A file system without locks causes one warning per
    folder, and the folder is used without a lock.

    Arguments:
        folder: The folder; it is created if it does not exist.
        patience: Seconds to wait for another process; by default :data:`PATIENCE`.

    Raises:
        FolderInUseError: If another process holds the folder.
        ValueError: If the folder is not writable.
    """
    folder = folder.resolve()
    times, files = _folders.times, _folders.files
    if folder not in times:
        files[folder] = _open_locked(folder, PATIENCE if patience is None else patience)
        times[folder] = 0
    times[folder] += 1
    try:
        yield
    finally:
        # Both are empty in a process forked in the meantime.
        if folder in times:
            times[folder] -= 1
            if not times[folder]:
                del times[folder]
                _unlock(files.pop(folder))


def is_held(folder: Path) -> bool:
    """Whether any process, including this one, holds a folder.

    False if this is unknown: on a file system without locks, or without permission.
    """
    try:
        # Opening a pipe of that name would otherwise block.
        file = os.open(folder / _LOCK, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        _lock_file(file, shared=True)
    except OSError as error:
        return error.errno in _BUSY
    finally:
        os.close(file)
    return False


def _open_locked(folder: Path, patience: float) -> int:
    """Returns the descriptor of the lock file, locked if the file system has locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"Expected a folder that can be written to, got '{folder}' ({error.strerror}): free "
            f"space or change its permissions, or choose another folder"
        ) from None
    deadline = time.monotonic() + patience
    try:
        while not _try_lock(file, folder):
            if time.monotonic() >= deadline:
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


def _try_lock(file: int, folder: Path) -> bool:
    """Locks a file; returns whether that succeeded or the file system has no locks."""
    try:
        _lock_file(file)
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


def _lock_file(file: int, *, shared: bool = False) -> None:
    """Locks an open file without waiting, or raises an ``OSError``."""
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
    """Removes partial files of killed processes from a folder, which the caller holds."""
    for partial in folder.glob(".*.part"):
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically, even if the machine loses power.

    Raises:
        OSError: If the file cannot be written; the error names the file.
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
            # A write error does not name the file, and other errors name the partial one.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def strict_json(values: Any) -> str:
    """Returns JSON with null in place of NaN and infinity, which the standard excludes."""
    return json.dumps(replace_non_finite(values), indent=2, allow_nan=False) + "\n"


def replace_non_finite(value: Any) -> Any:
    """Returns nested values with ``None`` in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
