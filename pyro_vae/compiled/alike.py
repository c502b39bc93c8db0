"""What one graph holds of several models for good, and whether it is the same for all."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.compiled.graph import NotCapturedError
from pyro_vae.compiled.stand_in import stand_in
from pyro_vae.compiled.state import OF_ALL, described
from pyro_vae.compiled.update import Update
from pyro_vae.vae import VAE

__all__ = ["Facts", "check_alike", "different", "facts_of", "tensors_of"]

Facts = dict[str, Any]
"""What a graph holds for good, by name."""

MISSING = object()

OF_EACH_STEP = frozenset({"params", "lr", "initial_lr", "betas", "momentum"})
"""What the optimizers' groups may differ in: numbers that the graph reads anew."""


def check_alike(
    vaes: Sequence[VAE], objectives: Sequence[Any], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Raises a ``NotCapturedError`` for what differs in more than a graph reads anew."""
    for objective in objectives:
        check_objective(objective)
    for vae, optimizer in zip(vaes, optimizers, strict=True):
        check_optimizer(vae, optimizer)
    check_memory(vaes, objectives)
    told = [list(map(facts_of, each)) for each in (vaes, objectives, optimizers)]
    for what, (first, *others) in zip(("", "objective of ", "optimizer of "), told, strict=True):
        for i, other in enumerate(others, 1):
            check_facts(f"the {what}VAE {i}", first, other)


def check_facts(what: str, first: Facts, other: Facts) -> None:
    """Raises a ``NotCapturedError`` if one differs from the first, saying in what."""
    if name := different(first, other):
        theirs, own = (shown(facts.get(name, "missing")) for facts in (first, other))
        raise NotCapturedError(f"{what} has {name} {own}, the first has {theirs}")


def different(first: Facts, other: Facts) -> str | None:
    """Returns the name of the first fact that differs, if any does."""
    names = {**first, **other}
    return next((n for n in names if first.get(n, MISSING) != other.get(n, MISSING)), None)


def shown(value: Any) -> str:
    """Returns a value as it is told."""
    return value.__name__ if isinstance(value, type) else str(value)


def check_objective(objective: Any) -> None:
    """Raises a ``NotCapturedError`` for an objective with more state than scalar tensors."""
    if stand_in(objective) is not objective and objective.vectorize_particles:
        raise NotCapturedError("Pyro's vectorized particles draw noise to find the plates")
    if isinstance(objective, nn.Module):
        raise NotCapturedError(f"the objective {type(objective).__name__} is a module")


def check_optimizer(vae: VAE, optimizer: torch.optim.Optimizer) -> None:
    """Raises a ``NotCapturedError`` for an update that cannot be mapped."""
    if not Update(optimizer, None).captured:
        raise NotCapturedError(
            f"the update of {type(optimizer).__name__} cannot be part of a graph here"
        )
    theirs = [id(p) for group in optimizer.param_groups for p in group["params"]]
    if theirs != [id(p) for p in vae.parameters() if p.requires_grad]:
        raise NotCapturedError("an optimizer has other parameters than its VAE, or another order")


def check_memory(vaes: Sequence[VAE], objectives: Sequence[Any]) -> None:
    """Raises a ``NotCapturedError`` for tensors that stacks would tear from others.

    Each tensor becomes a view of a stack; what else looks at its memory would not see it change.
    """
    owner: dict[int, int] = {}
    for vae, objective in zip(vaes, objectives, strict=True):
        plain = [value for module in vae.modules() for value in vars(module).values()]
        found = [*vae.parameters(), *vae.buffers(), *plain, *vars(objective).values()]
        for tensor in found:
            if isinstance(tensor, Tensor) and tensor.numel():
                place = tensor.untyped_storage().data_ptr()
                if owner.setdefault(place, id(tensor)) != id(tensor):
                    raise NotCapturedError("two tensors share memory")
    tensors = [tensor for objective in objectives for tensor in tensors_of(objective)]
    if len(set(map(id, tensors))) != len(tensors):
        raise NotCapturedError("two objectives share a tensor")
    for vae in vaes:
        for module in vae.modules():
            for key, value in vars(module).items():
                if key not in OF_ALL and isinstance(value, Tensor):
                    raise NotCapturedError(f"the tensor {key} of a module is no buffer")


def tensors_of(objective: Any) -> list[Tensor]:
    """Returns the tensors of an objective, by name."""
    return [value for _, value in sorted(vars(objective).items()) if isinstance(value, Tensor)]


def facts_of(owner: Any) -> Facts:
    """Returns what a graph holds of a VAE, an objective or an optimizer for good."""
    if isinstance(owner, VAE):
        return of_vae(owner)
    return of_optimizer(owner) if isinstance(owner, torch.optim.Optimizer) else of_objective(owner)


def of_vae(vae: VAE) -> Facts:
    """Returns classes, modes, settings and the form of each tensor."""
    facts: Facts = {}
    for path, module in vae.named_modules():
        prefix = f"{path}." if path else ""
        facts[f"{prefix}class"] = type(module)
        facts[f"{prefix}training"] = module.training
        for key, value in vars(module).items():
            if key not in (*OF_ALL, "recipe") and (fixed := described(value)) is not None:
                facts[f"{prefix}{key}"] = fixed
    # In their order, in which they are stacked.
    for i, (name, tensor) in enumerate((*vae.named_parameters(), *vae.named_buffers())):
        learnt = "learnt" if tensor.requires_grad else "fixed"
        facts[f"tensor {i}"] = f"{name} {tuple(tensor.shape)} {tensor.dtype} {learnt}"
    return facts


def of_objective(objective: Any) -> Facts:
    """Returns class and settings, and the form of each tensor."""
    facts: Facts = {"class": type(objective)}
    for key, value in vars(objective).items():
        if isinstance(value, Tensor):
            facts[key] = f"{tuple(value.shape)} {value.dtype}"
        elif (fixed := described(value)) is not None:
            facts[key] = fixed
    return facts


def of_optimizer(optimizer: torch.optim.Optimizer) -> Facts:
    """Returns class and settings of each group of parameters."""
    facts: Facts = {"class": type(optimizer), "groups": len(optimizer.param_groups)}
    for i, group in enumerate(optimizer.param_groups):
        facts[f"parameters of group {i}"] = len(group["params"])
        facts[f"any momentum of group {i}"] = bool(group.get("momentum"))
        facts |= {f"{k} of group {i}": v for k, v in group.items() if k not in OF_EACH_STEP}
    return facts
