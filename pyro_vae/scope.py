"""How a VAE's parameters meet Pyro: param messages, and the store only where SVI asks for it."""

import gc
import weakref
from typing import Any

import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import nn

__all__ = ["Scope", "remove"]

DIVIDER = "$$$"
"""What Pyro puts between the name of a module and that of its parameter."""

TAG = "_pyro_vae_scope"
"""The key under which a param message says which VAE it comes from."""

_owners: "weakref.WeakValueDictionary[str, Scope]" = weakref.WeakValueDictionary()
"""The scope, alive, that holds entries of Pyro's store under a name."""


class Scope:
    """The name of one VAE, shared by it, its model and its guide.

    Pyro's global parameter store keys parameters by name: two modules of one name silently share
    an entry, and one of them is never trained. A scope writes there only while a handler that
    captures parameters is active, as SVI's is; refuses to if another living VAE holds the name;
    and takes its entries away when the VAE, its model and its guide are gone.

    Arguments:
        name: The name of the VAE.

    Raises:
        ValueError: If ``name`` is not usable as one.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name or DIVIDER in name:
            raise ValueError(
                f"Expected name to be a non-empty string without {DIVIDER!r}, got {name!r}"
            )
        self.name = name
        self._entries: dict[str, weakref.ref[nn.Parameter]] = {}
        self._finalizer: weakref.finalize | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles as a name alone: a copy holds no entry of the store."""
        return Scope, (self.name,)

    def announce(self, module: nn.Module) -> None:
        """Sends a param message for each parameter of a module that is to be trained.

        Raises:
            ValueError: If another VAE of this name takes part, or the store holds something else.
        """
        if not _PYRO_STACK:
            return
        handlers = [h for h in _PYRO_STACK if isinstance(h, TraceMessenger)]
        captured = any(handler.param_only for handler in handlers)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            full = f"{self.name}{DIVIDER}{name}"
            if captured:
                self._store(full, parameter)
                continue
            if any(self._stranger(handler.trace, full) for handler in handlers):
                raise ValueError(self._clash())
            _message(parameter, name=full, infer={TAG: weakref.ref(self)})

    def rename(self, name: str) -> None:
        """Gives the VAE another name, and takes what stands in the store under the old one away."""
        Scope(name)
        if _owners.get(self.name) is self:
            del _owners[self.name]
        _forget(self._entries)
        self._entries.clear()
        self.name = name

    def _stranger(self, trace: Trace, full: str) -> bool:
        """Tells whether a trace holds this parameter of another VAE of the same name."""
        if full not in trace:
            return False
        infer: Any = trace.nodes[full]["infer"]
        tag = (infer or {}).get(TAG)
        return tag is not None and tag() is not self

    def _store(self, full: str, parameter: nn.Parameter) -> None:
        """Enters a parameter into Pyro's store, where SVI looks for it."""
        store = pyro.get_param_store()
        self._claim(store)
        if full in store and store._params[full] is not parameter:
            known = self._entries.get(full)
            if known is None or known() is not store._params[full]:
                raise ValueError(
                    f"Pyro's parameter store already holds another tensor named {full!r}: remove "
                    f"it (pyro.clear_param_store()), or give this VAE another name, "
                    f"VAE(..., name=...)"
                )
            remove(store, full)
        self._entries[full] = weakref.ref(parameter)
        pyro.param(full, parameter)

    def _claim(self, store: ParamStoreDict) -> None:
        """Takes the name, unless another living VAE has entries under it."""
        if _owners.get(self.name) is self:
            return
        if held(self.name, store):
            gc.collect()
        if held(self.name, store):
            raise ValueError(self._clash())
        _owners[self.name] = self
        if self._finalizer is None:
            self._finalizer = weakref.finalize(self, _forget, self._entries)
            self._finalizer.atexit = False

    def _clash(self) -> str:
        return (
            f"Two VAEs named {self.name!r} are alive in one program: give one of them another "
            f"name, VAE(..., name=...), so that both are trained"
        )


@effectful(type="param")
def _message(parameter: torch.Tensor) -> torch.Tensor:
    """A param site that leaves the store alone."""
    return parameter


def held(name: str, store: ParamStoreDict) -> bool:
    """Tells whether a living VAE has entries in the store under this name."""
    owner = _owners.get(name)
    return owner is not None and any(
        full in store and store._params[full] is entry() for full, entry in owner._entries.items()
    )


def _forget(entries: "dict[str, weakref.ref[nn.Parameter]]") -> None:
    """Takes entries out of the store, except where something else has taken their place."""
    store = pyro.get_param_store()
    for name, entry in entries.items():
        if name in store and store._params[name] is entry():
            remove(store, name)


def remove(store: ParamStoreDict, name: str) -> None:
    """Removes an entry, also where its tensor stands under another name too.

    Pyro's own removal fails there: a PyroModule enters the parameters of a child under its
    attribute's name, beside the VAE's own.
    """
    value = store._params.pop(name)
    store._constraints.pop(name, None)
    store._param_to_name.pop(value, None)
    others = [other for other, known in store._params.items() if known is value]
    if others:
        store._param_to_name[value] = others[0]
