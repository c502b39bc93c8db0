"""Guards process-wide state: handlers, random numbers, the cache of autocast, and validation."""

import functools
import os
import threading
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch.distributions import Distribution

__all__ = ["guard_process_state", "import_zuko"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_lock = threading.RLock()


def guard_process_state(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Makes a function safe in threads and under ``torch.autocast``.

    Pyro's handler stack and PyTorch's random state belong to the process. Two threads that use
    Pyro at the same time therefore change each other's results. Guarded functions run one at a
    time, in any thread; a guarded function may call another. All entry points of this package are
    guarded. If you use Pyro in a thread, such as in a loop over ``SVI.step``, guard your function
    in the same way.

    ``torch.autocast`` caches rounded weights until its block ends, even if an optimizer changes
    the weights. A guarded function rounds the current weights instead.

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
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_dynamo_compiling():
            # Dynamo cannot trace locks, and compiled code has no handlers.
            return function(*args, **kwargs)
        with _lock:
            if not torch.is_autocast_cache_enabled():
                return function(*args, **kwargs)
            torch.set_autocast_cache_enabled(False)
            try:
                return function(*args, **kwargs)
            finally:
                torch.set_autocast_cache_enabled(True)

    return wrapper


@functools.cache
def import_zuko() -> types.ModuleType:
    """Imports zuko, and restores the settings of PyTorch that it changes.

    zuko turns the validation of all distributions off, gives their base class empty constraints,
    and renames the class of inverse transforms. It also adds a method to all transforms, which it
    needs.
    """
    inverse = torch.distributions.transforms._InverseTransform
    before: Any = (Distribution._validate_args, vars(Distribution)["arg_constraints"])
    name = inverse.__name__
    try:
        import zuko
    finally:
        Distribution.set_default_validate_args(before[0])
        type.__setattr__(Distribution, "arg_constraints", before[1])
        inverse.__name__ = name
    for name in zuko.distributions.__all__:
        # Its own distributions would warn that they have no constraints.
        member: Any = getattr(zuko.distributions, name)
        if member.arg_constraints is before[1]:
            member.arg_constraints = {}
    return zuko


def _reset_in_child() -> None:
    """Releases the lock and the handlers of a thread that a forked process does not have."""
    global _lock
    if _lock.acquire(blocking=False):
        _lock.release()
        return
    _lock = threading.RLock()
    _PYRO_STACK.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
