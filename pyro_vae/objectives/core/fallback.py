"""Recovery from a failed vectorized run, and a description of the failure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.objectives.core.user_lines import find_user_line
from pyro_vae.param_store import remove_entry

__all__ = ["describe_failure", "is_captured", "restore_on_error"]


@contextmanager
def restore_on_error() -> Iterator[None]:
    """Restores random state, buffers and Pyro's parameter store if the block raises an error."""
    store = pyro.get_param_store()
    params = set(store.keys())
    rng_state = get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    buffers: dict[nn.Module, dict[str, tuple[Tensor, Tensor]]] = {}

    def save(module: nn.Module, _: Any) -> None:
        if module not in buffers:
            present = {name: b for name, b in module._buffers.items() if b is not None}
            buffers[module] = {name: (b, b.detach().clone()) for name, b in present.items()}

    # A global hook also reaches the networks in closures of a Pyro function.
    hook = register_module_forward_pre_hook(save)
    try:
        yield
    except Exception:
        set_rng_state(rng_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        for module, saved in buffers.items():
            for name, (buffer, value) in saved.items():
                with torch.no_grad():
                    module._buffers[name] = buffer.copy_(value)
        for name in set(store.keys()) - params:
            remove_entry(store, name)
        raise
    finally:
        hook.remove()


def is_captured() -> bool:
    """Whether operations are being recorded into a graph."""
    return bool(torch._C._len_torch_dispatch_stack())


def describe_failure(error: Exception) -> str:
    """Returns the type and first line of an error, and its line in the user's program."""
    reason = str(error).strip().split("\n")[0]
    described = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    line = find_user_line(error)
    return f"{described} ({line.filename}:{line.lineno})" if line else described
