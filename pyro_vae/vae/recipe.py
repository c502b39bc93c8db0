"""Builds a VAE from its recipe, and compares a VAE with the one that its recipe builds."""

import functools
import inspect
import json
import math
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from importlib import import_module
from itertools import chain
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_vae import transforms
from pyro_vae.vae.allow import check_classes, find_foreign_classes
from pyro_vae.vae.build import describe_part
from pyro_vae.vae.vae import PARTS, VAE

__all__ = ["build_vae", "check_recipe", "find_differences", "suggest_remedy"]

_NEEDED = {"event_shape", "latent_dim", "name", "parts"}
_OPTIONAL = {"plate", "covariate_dim"}
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""The hooks of a module that can change its output or the weights in a file."""

_INTERNAL = frozenset(vars(nn.Module()))
_MAX_DEPTH = 4


def check_recipe(recipe: Any) -> dict[str, Any]:
    """Returns a recipe from a file, or raises a ``ValueError`` if its structure is wrong."""
    keys = set(recipe) if isinstance(recipe, dict) else set()
    if not _NEEDED <= keys <= _NEEDED | _OPTIONAL:
        raise ValueError(f"Expected a recipe with {sorted(_NEEDED)}, got {sorted(keys)}")
    parts = recipe["parts"]
    if isinstance(parts, dict):
        # Files written before input transforms existed have none.
        parts.setdefault("input_transform", describe_part(transforms.Identity))
    if not isinstance(parts, dict) or set(parts) != set(PARTS):
        raise ValueError(f"Expected a recipe of the parts {PARTS}, got {parts!r:.100}")
    for role, part in parts.items():
        complete = isinstance(part, dict) and set(part) == {"class", "arguments"}
        if part is not None and not (
            complete and isinstance(part["class"], str) and isinstance(part["arguments"], dict)
        ):
            raise ValueError(f"Expected {role} as class and arguments, got {part!r:.100}")
    return recipe


def build_vae(
    recipe: Mapping[str, Any], weights: Mapping[str, Tensor], allow: Collection[str] = ()
) -> VAE:
    """Builds a VAE from a recipe and weights.

    Arguments:
        recipe: A recipe as :func:`check_recipe` returns it, with all parts.
        weights: The weights by their names.
        allow: Dotted names of allowed classes of other packages.

    Raises:
        ValueError: If a class is not allowed, a part cannot be built, or weights do not fit.
    """
    check_classes(recipe, allow)
    trusted = not find_foreign_classes(recipe)
    budget = _Budget(sum(value.numel() for value in weights.values()))
    with torch.device("cpu"), budget if trusted else nullcontext():
        vae = _construct_vae(recipe)
    _check_weights(vae, weights)
    _set_precision(vae, weights)
    # Assignment keeps the precision of the file; a copy would not. A part may supply an entry that
    # files of earlier versions lack.
    missing = vae.load_state_dict(dict(weights), strict=False, assign=True).missing_keys
    if missing:
        raise ValueError(f"Expected the weights of all parts, got none for {missing[:3]}")
    return vae


def find_differences(vae: VAE) -> dict[str, str]:
    """Finds the differences between a VAE and the one that its recipe builds.

    Values of weights, frozen weights, the mode and the device are not compared.

    Returns:
        The differences by dotted path; empty if a file can restore the VAE.
    """
    recipe = json.loads(json.dumps({**vae.recipe, "name": vae.name}))
    try:
        with torch.random.fork_rng([]), torch.device("cpu"):
            rebuilt = _construct_vae(recipe)
    except Exception as error:
        return {"the VAE": f"its recipe fails, {type(error).__name__}: {error}"}
    _set_precision(rebuilt, vae.state_dict())
    return dict(chain(_compare_trees(vae, rebuilt), _find_shared_weights(vae)))


def suggest_remedy(path: str) -> str:
    """Returns a remedy for the difference at a dotted path of :func:`find_differences`."""
    role = path.partition(".")[0]
    remedy = f"Build the VAE with that part, VAE(..., {role}=...)" if role in PARTS else "Undo this"
    return f"{remedy}, or save vae.state_dict() instead"


_FACTORIES = {
    torch.arange, torch.empty, torch.eye, torch.full, torch.ones, torch.rand, torch.randn,
    torch.tril_indices, torch.zeros,
}  # fmt: skip


class _Budget(TorchFunctionMode):
    """Limits the number of allocated elements to a multiple of the number of weights.

    Otherwise a recipe of a few bytes could exhaust the memory, or build layers for hours.
    """

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.remaining = 16 * numel + 2**24

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FACTORIES:
            sizes = args[0] if args and isinstance(args[0], (list, tuple)) else args
            self.remaining -= max(4096, math.prod(abs(n) for n in sizes if isinstance(n, int)))
            if self.remaining < 0:
                raise ValueError("Expected parts of the size of the weights, got larger parts")
        return func(*args, **(kwargs or {}))


def _construct_vae(recipe: Mapping[str, Any]) -> VAE:
    settings: dict[str, Any] = {key: value for key, value in recipe.items() if key != "parts"}
    for role, part in recipe["parts"].items():
        settings[role] = functools.partial(_load_class(part["class"], role), **part["arguments"])
    return VAE(**settings)


def _load_class(name: str, role: str) -> type[nn.Module]:
    module, _, member = name.rpartition(".")
    kind = getattr(import_module(module), member, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"Expected {role} to be a class of modules, got {name!r}")
    return kind


def _check_weights(vae: VAE, weights: Mapping[str, Tensor]) -> None:
    """Raises a ``ValueError`` for a weight that a VAE lacks, or that has another shape or dtype."""
    state = vae.state_dict()
    unknown = sorted(weights.keys() - state.keys())
    if unknown:
        raise ValueError(f"Expected only weights of the parts, got also {unknown[:3]}")
    for name, value in weights.items():
        if not _is_compatible(state[name], value):
            raise ValueError(
                f"Expected {name} to be {_describe_form(state[name])}, as its part builds it, got "
                f"{_describe_form(value)}"
            )


def _is_compatible(one: Any, other: Any) -> bool:
    """Whether a tensor can replace another, in any precision."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    same = one.dtype == other.dtype or {one.dtype, other.dtype} <= set(_PRECISIONS)
    return same and one.shape == other.shape


def _describe_form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:100]
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def _set_precision(vae: VAE, weights: Mapping[str, Tensor]) -> None:
    """Converts buffers that files omit to the precision of the weights, if all have the same."""
    dtypes = {w.dtype for w in weights.values() if isinstance(w, Tensor) and w.is_floating_point()}
    if len(dtypes) == 1:
        vae.to(dtypes.pop())


def _find_shared_weights(vae: VAE) -> Iterator[tuple[str, str]]:
    """Yields the weights that share one tensor under two names; a file stores them twice."""
    first: dict[int, str] = {}
    for name, value in vae.named_parameters(remove_duplicate=False):
        if first.setdefault(id(value), name) != name:
            yield name, f"shared with {first[id(value)]}, but a file stores two weights"


def _compare_trees(vae: VAE, rebuilt: VAE) -> Iterator[tuple[str, str]]:
    one = {**dict(vae.named_modules(remove_duplicate=False)), "model": vae.model}
    other = {**dict(rebuilt.named_modules(remove_duplicate=False)), "model": rebuilt.model}
    for path in [*one, *(path for path in other if path not in one)]:
        if path not in other:
            yield path, f"unexpected {_class_name(one[path])}"
        elif path not in one:
            yield path, f"missing {_class_name(other[path])}"
        elif not _is_same_class(type(one[path]), type(other[path])):
            yield (
                path or "the VAE",
                f"{_class_name(one[path])} instead of {_class_name(other[path])}",
            )
        else:
            prefix = f"{path}." if path else ""
            for name, text in _compare_modules(one[path], other[path]):
                yield f"{prefix}{name}", text


def _class_name(module: nn.Module) -> str:
    return type(module).__name__


def _is_same_class(one: type, other: type) -> bool:
    return [(k.__module__, k.__qualname__) for k in one.__mro__] == [
        (k.__module__, k.__qualname__) for k in other.__mro__
    ]


def _compare_modules(one: nn.Module, other: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields the differences between two modules of one class, except in their submodules."""
    names, expected = list(one._modules), list(other._modules)
    if names != expected and sorted(names) == sorted(expected):
        yield "children", f"the order {names} instead of {expected}"
    for key in _HOOKS:
        mine, theirs = (list(getattr(module, key).values()) for module in (one, other))
        if not _are_equal(mine, theirs):
            yield key.strip("_"), f"{len(mine)} instead of {len(theirs)}, or different ones"
    for kind in ("_parameters", "_buffers"):
        actual, rebuilt = getattr(one, kind), getattr(other, kind)
        for name in [*actual, *(name for name in rebuilt if name not in actual)]:
            a, b = actual.get(name), rebuilt.get(name)
            if name not in rebuilt or name not in actual or not _is_compatible(a, b):
                yield name, f"{_describe_form(a)} instead of {_describe_form(b)}"
    if one._non_persistent_buffers_set != other._non_persistent_buffers_set:
        yield "buffers", "different non-persistent buffers"
    for name in sorted(one._non_persistent_buffers_set & other._non_persistent_buffers_set):
        if not _are_equal(one._buffers.get(name), other._buffers.get(name)):
            yield name, "different values, which a file does not store"
    yield from _compare_settings(one, other)


def _compare_settings(one: nn.Module, other: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields the differences between public attributes."""
    mine, theirs = _public_settings(one), _public_settings(other)
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        if name not in theirs:
            # This package does not read an attribute that a user adds to the VAE itself.
            if not isinstance(one, VAE) or callable(mine[name]):
                yield name, f"unexpected value {mine[name]!r:.50}"
        elif name not in mine:
            yield name, f"missing value {theirs[name]!r:.50}"
        elif not _are_equal(mine[name], theirs[name]):
            yield name, f"{mine[name]!r:.50} instead of {theirs[name]!r:.50}"


def _public_settings(module: nn.Module) -> dict[str, Any]:
    hidden = _INTERNAL | ({"recipe", "model", "guide"} if isinstance(module, VAE) else set())
    return {name: value for name, value in _public_attributes(module).items() if name not in hidden}


def _are_equal(one: Any, other: Any, depth: int = 0) -> bool:
    """Whether two settings are equal, if they can be compared; a list may equal a tuple."""
    if one is other or depth > _MAX_DEPTH:
        return True
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(
            _are_equal(a, b, depth + 1) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, (Number, str, bytes)):
        return bool(one == other or (one != one and other != other))
    if type(one) is not type(other):
        return False
    return _have_same_contents(one, other, depth)


def _have_same_contents(one: Any, other: Any, depth: int) -> bool:
    """Whether two objects of one class have equal contents."""
    if isinstance(one, Tensor):
        return _describe_form(one) == _describe_form(other) and bool(
            ((one == other.to(one.device)) | ((one != one) & (other != other).to(one.device))).all()
        )
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _are_equal(one[key], other[key], depth + 1) for key in one
        )
    if isinstance(one, (set, frozenset, torch.dtype, type)):
        return bool(one == other)
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__
    if isinstance(one, types.FunctionType):
        return one.__code__ == other.__code__ and _are_equal(
            _captured_values(one), _captured_values(other), depth + 1
        )
    if isinstance(one, types.BuiltinFunctionType):
        return bool(one == other)
    if isinstance(one, functools.partial):
        a, b = ((p.func, p.args, p.keywords) for p in (one, other))
        return _are_equal(a, b, depth + 1)
    if isinstance(one, (nn.Module, torch.device)):
        return True
    return _are_equal(_public_attributes(one), _public_attributes(other), depth + 1)


def _public_attributes(value: Any) -> dict[str, Any]:
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}


def _captured_values(function: types.FunctionType) -> list[Any]:
    """Returns the default arguments of a function and the variables that it closes over."""
    cells = inspect.getclosurevars(function).nonlocals
    return [function.__defaults__, function.__kwdefaults__, dict(cells)]
