"""Undoing a vectorized run that fails, and describing why."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.objectives.core.user_lines import user_line
from pyro_vae.param_store import remove

__all__ = ["describe_failure", "is_captured", "undone_on_error"]


@contextmanager
def undone_on_error() -> Iterator[None]:
    """Puts back random state, buffers and Pyro's parameter store if the block raises."""
    store = pyro.get_param_store()
    known = set(store.keys())
    noise = get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    buffers: dict[nn.Module, dict[str, tuple[Tensor, Tensor]]] = {}

    def save(module: nn.Module, _: Any) -> None:
        if module not in buffers:
            own = {name: b for name, b in module._buffers.items() if b is not None}
            buffers[module] = {name: (b, b.detach().clone()) for name, b in own.items()}

    # Networks reach a Pyro function by any way, often a closure: a hook meets them all.
    hook = register_module_forward_pre_hook(save)
    try:
        yield
    except Exception:
        set_rng_state(noise)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        for module, saved in buffers.items():
            for name, (buffer, value) in saved.items():
                with torch.no_grad():
                    module._buffers[name] = buffer.copy_(value)
        for name in set(store.keys()) - known:
            remove(store, name)
        raise
    finally:
        hook.remove()


def is_captured() -> bool:
    """Whether operations are recorded, as a graph is made of them."""
    return bool(torch._C._len_torch_dispatch_stack())


def describe_failure(error: Exception) -> str:
    """Returns type, first line and place in the user's program of an error."""
    reason = str(error).strip().split("\n")[0]
    described = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    line = user_line(error)
    return f"{described} ({line.filename}:{line.lineno})" if line else described
