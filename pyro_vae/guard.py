"""State of the whole process: the handlers of Pyro, random numbers, the cache of autocast."""

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from pyro.poutine.runtime import _PYRO_STACK

__all__ = ["guard_process_state"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_lock = threading.RLock()


def guard_process_state(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Makes a function safe in threads and under ``torch.autocast``.

    Pyro's handler stack and PyTorch's random state belong to the process, so that two threads that
    use Pyro at once change each other's results. Guarded functions run in one thread at a time,
    in whatever thread they are called; a guarded function may call another. All entry points of
    this package are guarded. Guard a function of your own that uses Pyro in a thread, such as a
    loop over ``SVI.step``, in the same way.

    ``torch.autocast`` keeps the weights that it has rounded until its block ends, also when an
    optimizer changes them. A guarded function rounds the current weights instead.

    Arguments:
        function: The function; it must not wait for another thread that calls a guarded one.

    Example:
        >>> import pyro
        >>> from pyro_vae import VAE
        >>> vae = VAE((8,), latent_dim=2)
        >>> @guard_process_state
        ... def train(x):
        ...     optimizer = pyro.optim.Adam({"lr": 1e-3})
        ...     svi = pyro.infer.SVI(vae.model, vae.guide, optimizer, pyro.infer.Trace_ELBO())
        ...     return [svi.step(x) for _ in range(3)]
        >>> len(train(torch.ones(10, 8)))
        3
    """

    @functools.wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_dynamo_compiling():
            # What is compiled has no handlers left, and Dynamo knows no locks.
            return function(*args, **kwargs)
        with _lock:
            cached = torch.is_autocast_cache_enabled()
            if not cached:
                return function(*args, **kwargs)
            torch.set_autocast_cache_enabled(False)
            try:
                return function(*args, **kwargs)
            finally:
                torch.set_autocast_cache_enabled(cached)

    return guarded


def _free_in_child() -> None:
    """Frees a forked process of a lock, and of handlers, of a thread that it does not have."""
    global _lock
    if _lock.acquire(blocking=False):
        _lock.release()
        return
    _lock = threading.RLock()
    _PYRO_STACK.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_in_child)
