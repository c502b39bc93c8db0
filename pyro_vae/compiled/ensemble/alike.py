"""What one graph holds of several models for good, and whether it is the same for all."""

import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from pyro_vae.compiled.graph import NotCapturedError
from pyro_vae.compiled.inspection import Look, held_by
from pyro_vae.compiled.optimizer_step import Update
from pyro_vae.compiled.pyro_objectives import stand_in
from pyro_vae.vae.vae import VAE

__all__ = [
    "Facts",
    "check_alike",
    "check_facts",
    "different",
    "facts_of",
    "look_at",
    "names_of",
    "of_objective",
    "of_optimizer",
    "tensors_of",
]

Facts = dict[str, tuple[Hashable, Any]]
"""What a graph holds for good, by name: what tells it from others, and itself."""

_OF_OPTIMIZERS = (
    "weight_decay", "eps", "nesterov", "decoupled_weight_decay", "amsgrad", "maximize",
    "differentiable", "dampening",
)  # fmt: skip
"""What a graph holds of a group of parameters; other numbers it reads anew, or not at all."""


def check_alike(
    vaes: Sequence[VAE], objectives: Sequence[Any], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Raises a ``NotCapturedError`` for what differs in more than a graph reads anew."""
    for vae, objective, optimizer in zip(vaes, objectives, optimizers, strict=True):
        _check_kind(objective)
        _check_optimizer(vae, optimizer)
    _check_memory(vaes, objectives)
    check_facts([facts_of(*each) for each in zip(vaes, objectives, optimizers, strict=True)])


def check_facts(facts: Sequence[Facts]) -> None:
    """Raises a ``NotCapturedError`` if a VAE differs from the first, saying in what."""
    for i, other in enumerate(facts[1:], 1):
        if name := different(facts[0], other):
            own, theirs = (_shown(known.get(name)) for known in (other, facts[0]))
            raise NotCapturedError(f"VAE {i} has {name} {own}, the first has {theirs}")


def different(first: Facts, other: Facts) -> str | None:
    """Returns the name of the first fact that differs, if any does."""
    nothing = (None, None)
    names = {**first, **other}
    return next((n for n in names if first.get(n, nothing)[0] != other.get(n, nothing)[0]), None)


def _shown(fact: tuple[Hashable, Any] | None) -> str:
    """Returns a fact as it is told."""
    if fact is None:
        return "missing"
    value = fact[1]
    return value.__name__ if isinstance(value, type) else reprlib.repr(value)


def _check_kind(objective: Any) -> None:
    """Raises a ``NotCapturedError`` for an objective that needs more than one graph."""
    if stand_in(objective) is not objective and objective.vectorize_particles:
        raise NotCapturedError("Pyro's vectorized particles draw noise to find the plates")
    if isinstance(objective, nn.Module):
        raise NotCapturedError(f"the objective {type(objective).__name__} is a module")


def _check_optimizer(vae: VAE, optimizer: torch.optim.Optimizer) -> None:
    """Raises a ``NotCapturedError`` for an update that cannot be mapped."""
    if not Update(optimizer, None).captured:
        raise NotCapturedError(
            f"the update of {type(optimizer).__name__} cannot be part of a graph here"
        )
    theirs = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if theirs != [id(p) for p in vae.parameters() if p.requires_grad]:
        raise NotCapturedError("an optimizer has other parameters than its VAE, or another order")


def _check_memory(vaes: Sequence[VAE], objectives: Sequence[Any]) -> None:
    """Raises a ``NotCapturedError`` for tensors that stacks would tear from others.

    Each tensor becomes a view of a stack; what else looks at its memory would not see it change.
    """
    owners: dict[int, Tensor] = {}
    for tensor in (t for vae in vaes for t in (*vae.parameters(), *vae.buffers())):
        place = tensor.untyped_storage().data_ptr()
        if tensor.numel() and owners.setdefault(place, tensor) is not tensor:
            raise NotCapturedError("two tensors share memory")
    scalars = [tensor for objective in objectives for tensor in tensors_of(objective)]
    if len({tensor.data_ptr() for tensor in scalars}) != len(scalars):
        raise NotCapturedError("two objectives share a tensor")
    for tensor in _met(vaes, objectives):
        if tensor.numel() and tensor.untyped_storage().data_ptr() in owners:
            raise NotCapturedError("two tensors share memory")
        if tensor.requires_grad:
            raise NotCapturedError("a module holds a tensor with gradient that is no parameter")


def _met(vaes: Sequence[VAE], objectives: Sequence[Any]) -> Iterator[Tensor]:
    """Yields the tensors that can be reached from VAEs but are not their own."""
    for vae, objective in zip(vaes, objectives, strict=True):
        yield from (t for t in look_at(vae, objective).things if isinstance(t, Tensor))


def look_at(vae: VAE, objective: Any) -> Look:
    """Returns a look at all that can be reached from a VAE and an objective."""
    look = Look(names_of(vae, objective))
    for module in vae.modules():
        look.told(vars(module))
    look.told(held_by(objective))
    # Less its caches, which may lead to other VAEs, but with which attributes it has.
    look.things.append(vars(objective))
    return look


def names_of(vae: VAE, objective: Any) -> Mapping[int, str]:
    """Returns the names, by identity, of modules and tensors."""
    named = [*vae.named_modules(remove_duplicate=False), *vae.named_parameters()]
    named += [*vae.named_buffers(), ("objective", objective)]
    named += [
        (f"objective.{name}", value)
        for name, value in vars(objective).items()
        if isinstance(value, Tensor)
    ]
    return {id(value): name for name, value in named}


def tensors_of(objective: Any) -> list[Tensor]:
    """Returns the tensors of an objective, by name."""
    return [value for _, value in sorted(vars(objective).items()) if isinstance(value, Tensor)]


def facts_of(vae: VAE, objective: Any, optimizer: torch.optim.Optimizer) -> Facts:
    """Returns what a graph holds of a VAE, its objective and its optimizer for good."""
    look = Look(names_of(vae, objective))
    return _of_vae(vae, look) | of_objective(objective, look) | of_optimizer(optimizer, look)


def _of_vae(vae: VAE, look: Look) -> Facts:
    """Returns classes, modes, settings and hooks, and the form of each tensor."""
    facts: Facts = {}
    for path, module in vae.named_modules():
        prefix = f"{path}." if path else ""
        kind = type_before_parametrizations(module)
        facts[f"{prefix}class"] = kind, kind
        for key, value in vars(module).items():
            if key == "recipe":
                continue
            # Hooks are kept by numbers that are counted through the whole process.
            seen = list(value.values()) if key.endswith("_hooks") else value
            facts[f"{prefix}{key}"] = look.told(seen), value
    # In their order, in which they are stacked.
    for i, (name, tensor) in enumerate((*vae.named_parameters(), *vae.named_buffers())):
        form = (name, tensor.shape, tensor.dtype, tensor.requires_grad)
        hooks = look.told(list((tensor._backward_hooks or {}).values()))
        facts[f"tensor {i}"] = (form, hooks), form
    return facts


def of_objective(objective: Any, look: Look) -> Facts:
    """Returns class and settings, and the form of each tensor."""
    kind: Any = type(objective)
    facts: Facts = {"class of the objective": (kind, kind)}
    for key, value in held_by(objective).items():
        told = (value.shape, value.dtype) if isinstance(value, Tensor) else look.told(value)
        facts[f"{key} of the objective"] = told, value
    return facts


def of_optimizer(optimizer: torch.optim.Optimizer, look: Look) -> Facts:
    """Returns class and settings of each group of parameters."""
    kind: Any = type(optimizer)
    facts: Facts = {"class of the optimizer": (kind, kind)}
    for i, group in enumerate(optimizer.param_groups):
        held = {name: group.get(name) for name in _OF_OPTIMIZERS}
        held |= {"parameters": len(group["params"]), "any momentum": bool(group.get("momentum"))}
        facts |= {f"{name} of group {i}": (look.told(v), v) for name, v in held.items()}
    return facts
