"""How a VAE's parameters meet Pyro: param messages, and the store only where SVI asks for it."""

import gc
import weakref
from typing import Any

import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.lift_messenger import LiftMessenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from pyro.poutine.substitute_messenger import SubstituteMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import nn

__all__ = ["Scope", "remove"]

_DIVIDER = "$$$"
"""What Pyro puts between the name of a module and that of its parameter."""

_TAG = "_pyro_vae_scope"
"""The key under which a param message says which VAE it comes from."""

_owners: "weakref.WeakValueDictionary[str, Scope]" = weakref.WeakValueDictionary()
"""The scope, alive, that holds entries of Pyro's store under a name."""


class Scope:
    """The name of one VAE, shared by it, its model and its guide.

    Pyro's global parameter store keys parameters by name: two modules of one name silently share
    an entry, and one of them is never trained. A scope writes there only while a handler that
    captures parameters is active, as SVI's is; refuses to if another living VAE holds the name;
    and takes its entries away when the VAE, its model and its guide are gone. Under Pyro's setting
    ``module_local_params`` it never writes there.

    Arguments:
        name: The name of the VAE.

    Raises:
        ValueError: If ``name`` is not usable as one.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name or _DIVIDER in name:
            raise ValueError(
                f"Expected name to be a non-empty string without {_DIVIDER!r}, got {name!r}"
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
            ValueError: If another VAE of this name takes part, the store holds something else, or a
                handler puts another value into a parameter's place.
        """
        if not _PYRO_STACK:
            return
        captured = any(isinstance(h, TraceMessenger) and h.param_only for h in _PYRO_STACK)
        local = pyro.settings.get("module_local_params")
        if captured and local:
            for parameter in module.parameters():
                # SVI asks for it, of frozen ones too where a PyroModule sends them.
                parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
        enter = self._store if captured and not local else self._send
        for name, parameter in module.named_parameters():
            full = f"{self.name}{_DIVIDER}{name}"
            if parameter.requires_grad and enter(full, parameter) is not parameter:
                _check_not_replaced(full)
        if captured:
            self._remove_other_names()

    def _send(self, full: str, parameter: nn.Parameter) -> torch.Tensor:
        """Sends a message that leaves the store alone; returns what handlers make of it."""
        traces = [h.trace for h in _PYRO_STACK if isinstance(h, TraceMessenger)]
        if any(self._stranger(trace, full) for trace in traces):
            raise ValueError(self._clash())
        return _message(parameter, name=full, infer={_TAG: weakref.ref(self)})

    def _remove_other_names(self) -> None:
        """Leaves each parameter in the store under the VAE's name alone.

        A PyroModule enters the parameters of a child under its attribute's name whenever it is
        asked for the child, so that those which the other side has entered are there again.
        """
        for full, entry in self._entries.items():
            parameter = entry()
            if parameter is not None:
                _remove_other(pyro.get_param_store(), full, parameter)

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
        tag = (infer or {}).get(_TAG)
        return tag is not None and tag() is not self

    def _store(self, full: str, parameter: nn.Parameter) -> torch.Tensor:
        """Enters a parameter into Pyro's store, where SVI looks for it, under this name alone."""
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
        _remove_other(store, full, parameter)
        return pyro.param(full, parameter)

    def _claim(self, store: ParamStoreDict) -> None:
        """Takes the name, unless another living VAE has entries under it."""
        if _owners.get(self.name) is self:
            return
        if _held(self.name, store):
            gc.collect()
        if _held(self.name, store):
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


def _check_not_replaced(full: str) -> None:
    """Raises a ``ValueError`` where a handler has put a value into a parameter's place.

    The networks would go on with the parameter, as they do rightly where Pyro's compiler traces.
    """
    for handler in _PYRO_STACK:
        if isinstance(handler, (LiftMessenger, SubstituteMessenger)):
            raise ValueError(
                f"Expected the parameter {full!r} as it is, got another value from a "
                f"{type(handler).__name__}, which would not reach the network: for weights that "
                f"are random give them a prior in a network that is a PyroModule, by PyroSample"
            )


def _held(name: str, store: ParamStoreDict) -> bool:
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


def _remove_other(store: ParamStoreDict, full: str, parameter: nn.Parameter) -> None:
    """Removes the entry of a parameter under a name that no VAE has given it.

    Such an entry would outlive the VAE.
    """
    name = store._param_to_name.get(parameter, full)
    if name != full and name.partition(_DIVIDER)[0] not in _owners:
        remove(store, name)


def remove(store: ParamStoreDict, name: str) -> None:
    """Removes an entry, also where its tensor stands under another name too: Pyro's own fails."""
    value = store._params.pop(name)
    store._constraints.pop(name, None)
    store._param_to_name.pop(value, None)
    others = [other for other, known in store._params.items() if known is value]
    if others:
        store._param_to_name[value] = others[0]
