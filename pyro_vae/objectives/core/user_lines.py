"""The line of the user's program that led to an error or a warning."""

import os
import sys
import sysconfig
import traceback
from pathlib import Path

import numpy as np
import pyro
import torch

__all__ = ["find_stacklevel", "find_user_line"]

_LIBRARIES = tuple(
    str(folder) + os.sep
    for folder in (
        Path(torch.__file__).parent,
        Path(pyro.__file__).parent,
        Path(np.__file__).parent,
        Path(__file__).parents[2],
        sysconfig.get_path("stdlib"),
    )
)
"""The folders of library code."""


def find_stacklevel() -> int:
    """Returns the ``stacklevel`` of a warning of the caller that points at the user's program."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level


def find_user_line(error: BaseException) -> traceback.FrameSummary | None:
    """Returns the innermost line outside of libraries that led to an error, if there is one."""
    own, installed = None, None
    cause: BaseException | None = error
    while cause is not None:
        for line in traceback.extract_tb(cause.__traceback__):
            # Code that a library generates has a file name such as <string>.
            if line.filename.startswith(("<string>", *_LIBRARIES[:-1])):
                continue
            # Installed packages may be in a folder of the standard library.
            if "site-packages" in line.filename:
                installed = line
            elif not line.filename.startswith(_LIBRARIES[-1]):
                own = line
        cause = cause.__cause__
    return own or installed
