"""Files that are whole or not there, and folders that one process at a time writes to."""

import errno
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

__all__ = ["FolderInUseError", "hold_folder", "remove_partial", "strict_json", "write_whole"]

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO)
"""Errors of file systems on which nothing can be locked."""


class FolderInUseError(ValueError):
    """Another process writes to a folder."""


@contextmanager
def hold_folder(folder: Path, *, patience: float = 5.0) -> Iterator[None]:
    """Holds a folder for this process, and frees it at the end or when the process dies.

    Holding a folder again in the same thread does nothing. A file system without locks gives a
    warning, and the folder is used without one.

    Arguments:
        folder: An existing folder.
        patience: Seconds to wait for another process, which may just be dying.

    Raises:
        FolderInUseError: If another process holds the folder.
    """
    lock = FileLock(folder / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise FolderInUseError(
            f"Expected a folder that no other process writes to, got '{folder}': wait for that "
            f"process, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"'{folder}' cannot be locked ({error.strerror}): make sure that no other process "
            f"writes to it",
            stacklevel=4,
        )
        yield
        return
    try:
        yield
    finally:
        lock.release()


def remove_partial(folder: Path) -> None:
    """Removes the partial files that killed processes left in a folder, which is held."""
    for partial in folder.glob(".*.part"):
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, also if the machine loses power."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
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
