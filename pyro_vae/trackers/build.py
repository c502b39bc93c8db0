"""Builds trackers from the configuration, with one error for each mistake."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from pyro_vae import config
from pyro_vae.trackers.protocol import RunTracker

__all__ = ["build_tracker", "check_in_process", "keep_process_state", "require_extra"]

_METHODS = {
    "start": "run",
    "log": "values, step",
    "finish": "metrics, figures",
    "abort": "outcome, reason",
}
"""The methods of a tracker, and the arguments of each."""


def build_tracker(node: Any) -> RunTracker | None:
    """Returns the tracker that ``tracker`` describes, or ``None`` if it is ``None``.

    Raises:
        ValueError: If it cannot be built, or lacks a method of :class:`RunTracker`.
    """
    if node is None:
        return None
    if not isinstance(node, (Mapping, DictConfig)) or not node.get("_target_"):
        raise ValueError(
            f"Expected tracker to have a _target_, the class of a tracker, got {node!r}: choose "
            f"one, as in tracker=tensorboard"
        )
    try:
        tracker = config.build(node)
    except ValueError:
        raise
    except Exception as error:
        # The error of Hydra has the original one as its cause.
        cause = error.__cause__ or error
        raise ValueError(
            f"Expected tracker to be settings of a tracker, got {node.get('_target_')}, which "
            f"cannot be built: {type(cause).__name__}: {cause}"
        ) from error
    for method, arguments in _METHODS.items():
        if not callable(getattr(tracker, method, None)):
            raise ValueError(
                f"Expected tracker to have a method {method}({arguments}), got "
                f"{type(tracker).__name__}"
            )
    return tracker


def check_in_process(node: Mapping[str, Any]) -> None:
    """Builds a tracker in another process, and raises its error.

    A sweep forks processes later, which must not share connections to a store.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(_check, node).result()


def _check(node: Mapping[str, Any]) -> None:
    build_tracker(node)


def require_extra(module: str, extra: str) -> None:
    """Raises a ``ValueError`` unless the module of an extra is installed."""
    if find_spec(module) is None:
        raise ValueError(
            f"Expected {module} for tracker={extra}, got none: pip install 'pyro_vae[{extra}]'"
        )


@contextmanager
def keep_process_state(**environment: str) -> Iterator[None]:
    """Restores the process state that the libraries of trackers change.

    These are environment variables, filters of warnings, and the hook for errors.

    Arguments:
        environment: Variables to set in the meantime, unless they are set.
    """
    before, hook = dict(os.environ), sys.excepthook
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.excepthook = hook
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
