"""Devices of one machine that the jobs of all commands share, by locks on folders."""

import getpass
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pyro_vae.files.atomic import FolderInUseError, hold_folder

__all__ = ["Slots", "find_devices"]

_POLL = 0.2
"""Seconds between two looks for a free slot."""


class Slots:
    """Slots of devices; a job holds one as long as it runs, and a killed process frees its own.

    Arguments:
        devices: ``"auto"``, or names of devices, such as ``["cuda:0", "cuda:1"]`` or ``["cpu"]``.
        jobs_per_device: The number of jobs at a time on each device, or ``None`` for one on a GPU
            and the cores divided by ``threads`` on the processor.
        folder: The folder of the locks, or ``None`` for one that all commands of a user share.
        threads: The threads of a job, or ``None`` for all cores.

    Raises:
        ValueError: If an argument is wrong.
    """

    def __init__(
        self,
        devices: Any = "auto",
        jobs_per_device: int | None = None,
        folder: str | None = None,
        threads: int | None = 1,
    ) -> None:
        names = find_devices() if devices == "auto" else devices
        if not _are_devices(names):
            raise ValueError(
                f"Expected hydra.launcher.devices to be auto or a list of different devices, such "
                f"as [cuda:0,cuda:1] or [cpu], got {devices!r}"
            )
        if jobs_per_device is not None and (
            isinstance(jobs_per_device, bool)
            or not isinstance(jobs_per_device, int)
            or jobs_per_device < 1
        ):
            raise ValueError(
                f"Expected hydra.launcher.jobs_per_device to be a positive integer or null, got "
                f"{jobs_per_device!r}"
            )
        if jobs_per_device is None:
            cores = (
                len(os.sched_getaffinity(0))
                if hasattr(os, "sched_getaffinity")
                else (os.cpu_count() or 1)
            )
            on_processor = max(1, cores // (threads or cores))
        self.slots = [
            (name, number)
            for name in names
            for number in range(jobs_per_device or (on_processor if name == "cpu" else 1))
        ]
        # The first slot of each device comes first, so jobs are spread over devices.
        self.slots.sort(key=lambda slot: slot[1])
        self.folder = _find_folder() if folder is None else Path(folder).expanduser()

    def __len__(self) -> int:
        return len(self.slots)

    @contextmanager
    def hold(self) -> Iterator[str]:
        """Waits for a free slot, and holds it; gives the name of its device."""
        with ExitStack() as stack:
            yield self._wait(stack)

    def _wait(self, stack: ExitStack) -> str:
        while True:
            for name, number in self.slots:
                folder = self.folder / f"{_name_physically(name)}-{number}"
                with suppress(FolderInUseError):
                    stack.enter_context(hold_folder(folder, patience=0.0))
                    return name
            time.sleep(_POLL)


def _are_devices(names: Any) -> bool:
    return (
        isinstance(names, Sequence)
        and not isinstance(names, str)
        and len(names) > 0
        and len(set(names)) == len(names)
        and all(isinstance(n, str) and re.fullmatch(r"[a-z]+(:\d+)?", n) for n in names)
    )


def find_devices() -> list[str]:
    """Returns the GPUs of this machine, or the processor of a machine without GPUs.

    Neither PyTorch nor CUDA is initialized. The environment variable ``CUDA_VISIBLE_DEVICES``
    restricts the GPUs.
    """
    visible = _list_visible()
    count = len(list(Path("/dev").glob("nvidia[0-9]*"))) if visible is None else len(visible)
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def _list_visible() -> list[str] | None:
    """Returns the GPUs in ``CUDA_VISIBLE_DEVICES``, or ``None`` if it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    return [name.strip() for name in text.split(",") if name.strip() not in ("", "-1")]


def _name_physically(name: str) -> str:
    """Returns the name of a device that is the same for commands that see different GPUs."""
    kind, _, index = name.partition(":")
    visible = _list_visible()
    if kind == "cuda" and visible is not None and int(index or 0) < len(visible):
        return f"cuda-{visible[int(index or 0)]}"
    return f"{kind}-{index or 0}"


def _find_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"pyro_vae-{getpass.getuser()}" / "slots"
