"""Registers a VAE's parameters with Pyro: by messages, and in the store only under SVI."""

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

__all__ = ["Scope", "remove_entry"]

_DIVIDER = "$$$"
"""Pyro's separator between the name of a module and the name of its parameter."""

_TAG = "_pyro_vae_scope"
"""The key of a param message under which it refers to the scope of its VAE."""

_owners: "weakref.WeakValueDictionary[str, Scope]" = weakref.WeakValueDictionary()
"""The living scope that owns the entries of Pyro's store under a name."""


class Scope:
    """The name of a VAE, shared by the VAE, its model and its guide.

    Pyro's global parameter store keys parameters by name: two modules with the same name silently
    share an entry, and one of them is never trained. A scope writes to the store only while a
    handler captures parameters, such as SVI's. It raises an error if another living VAE owns the
    name, and removes its entries when the VAE, its model and its guide are deleted. Under Pyro's
    setting ``module_local_params`` it never writes to the store.

    Arguments:
        name: The name of the VAE.

    Raises:
        ValueError: If ``name`` is empty, is not a string, or contains Pyro's separator.
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
        """Copies and pickles only the name: a copy owns no entries of the store."""
        return Scope, (self.name,)

    def announce_parameters(self, module: nn.Module) -> None:
        """Sends a param message for each trainable parameter of a module.

        Raises:
            ValueError: If the program contains another VAE of this name, the store has another
                tensor under the name, or a handler replaces the value of a parameter.
        """
        if not _PYRO_STACK:
            return
        captured = any(isinstance(h, TraceMessenger) and h.param_only for h in _PYRO_STACK)
        local = pyro.settings.get("module_local_params")
        if captured and local:
            for parameter in module.parameters():
                # SVI reads this attribute, also on frozen parameters that a PyroModule sends.
                parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
        register = self._enter_in_store if captured and not local else self._send_message
        for name, parameter in module.named_parameters():
            full = f"{self.name}{_DIVIDER}{name}"
            if parameter.requires_grad and register(full, parameter) is not parameter:
                _check_not_replaced(full)
        if captured:
            self._remove_other_names()

    def _send_message(self, full: str, parameter: nn.Parameter) -> torch.Tensor:
        """Sends a message that bypasses the store; returns the value after all handlers."""
        traces = [h.trace for h in _PYRO_STACK if isinstance(h, TraceMessenger)]
        if any(self._belongs_to_other(trace, full) for trace in traces):
            raise ValueError(self._describe_clash())
        return _send_param(parameter, name=full, infer={_TAG: weakref.ref(self)})

    def _remove_other_names(self) -> None:
        """Removes entries of the parameters under other names than the VAE's.

        A PyroModule registers the parameters of a child under the attribute's name at each access.
        Parameters that model or guide registered before are then in the store twice.
        """
        for full, entry in self._entries.items():
            parameter = entry()
            if parameter is not None:
                _remove_other(pyro.get_param_store(), full, parameter)

    def rename(self, name: str) -> None:
        """Renames the VAE, and removes its entries in the store under the old name."""
        Scope(name)
        if _owners.get(self.name) is self:
            del _owners[self.name]
        _remove_entries(self._entries)
        self._entries.clear()
        self.name = name

    def _belongs_to_other(self, trace: Trace, full: str) -> bool:
        """Whether a trace has this parameter from another VAE of the same name."""
        if full not in trace:
            return False
        infer: Any = trace.nodes[full]["infer"]
        tag = (infer or {}).get(_TAG)
        return tag is not None and tag() is not self

    def _enter_in_store(self, full: str, parameter: nn.Parameter) -> torch.Tensor:
        """Enters a parameter into Pyro's store, where SVI reads it, under this name only."""
        store = pyro.get_param_store()
        self._claim_name(store)
        if full in store and store._params[full] is not parameter:
            entry = self._entries.get(full)
            if entry is None or entry() is not store._params[full]:
                raise ValueError(
                    f"Pyro's parameter store already holds another tensor named {full!r}: remove "
                    f"it (pyro.clear_param_store()), or give this VAE another name, "
                    f"VAE(..., name=...)"
                )
            remove_entry(store, full)
        self._entries[full] = weakref.ref(parameter)
        _remove_other(store, full, parameter)
        return pyro.param(full, parameter)

    def _claim_name(self, store: ParamStoreDict) -> None:
        """Claims the name, unless another living VAE has entries under it."""
        if _owners.get(self.name) is self:
            return
        if _has_living_owner(self.name, store):
            gc.collect()
        if _has_living_owner(self.name, store):
            raise ValueError(self._describe_clash())
        _owners[self.name] = self
        if self._finalizer is None:
            self._finalizer = weakref.finalize(self, _remove_entries, self._entries)
            self._finalizer.atexit = False

    def _describe_clash(self) -> str:
        return (
            f"Two VAEs named {self.name!r} are alive in one program: give one of them another "
            f"name, VAE(..., name=...), so that both are trained"
        )


@effectful(type="param")
def _send_param(parameter: torch.Tensor) -> torch.Tensor:
    """A param site that bypasses the store."""
    return parameter


def _check_not_replaced(full: str) -> None:
    """Raises a ``ValueError`` if a handler has replaced the value of a parameter.

    The networks would still use the parameter itself. Under Pyro's compiler this is correct.
    """
    for handler in _PYRO_STACK:
        if isinstance(handler, (LiftMessenger, SubstituteMessenger)):
            raise ValueError(
                f"Expected the parameter {full!r} as it is, got another value from a "
                f"{type(handler).__name__}, which would not reach the network: for random weights, "
                f"use a PyroModule as network and give them a prior by PyroSample"
            )


def _has_living_owner(name: str, store: ParamStoreDict) -> bool:
    """Whether a living VAE has entries in the store under this name."""
    owner = _owners.get(name)
    return owner is not None and any(
        full in store and store._params[full] is entry() for full, entry in owner._entries.items()
    )


def _remove_entries(entries: "dict[str, weakref.ref[nn.Parameter]]") -> None:
    """Removes entries from the store, except those that another tensor has replaced."""
    store = pyro.get_param_store()
    for name, entry in entries.items():
        if name in store and store._params[name] is entry():
            remove_entry(store, name)


def _remove_other(store: ParamStoreDict, full: str, parameter: nn.Parameter) -> None:
    """Removes the entry of a parameter under a name that is not a VAE's.

    Such an entry would outlive the VAE.
    """
    name = store._param_to_name.get(parameter, full)
    if name != full and name.partition(_DIVIDER)[0] not in _owners:
        remove_entry(store, name)


def remove_entry(store: ParamStoreDict, name: str) -> None:
    """Removes an entry, even if its tensor has another name too; Pyro's own deletion fails then."""
    value = store._params.pop(name)
    store._constraints.pop(name, None)
    store._param_to_name.pop(value, None)
    others = [other for other, tensor in store._params.items() if tensor is value]
    if others:
        store._param_to_name[value] = others[0]
