"""Makes a VAE by its recipe, and compares a VAE with the one that its recipe makes."""

import functools
import inspect
import json
import math
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from itertools import chain
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_vae.vae.vae import PARTS, VAE

__all__ = ["advice", "check_allow", "check_classes", "check_recipe", "differences", "make_vae"]

_PACKAGES = ("priors", "posteriors", "likelihoods", "networks")
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
_DEEPEST = 4


def check_allow(allow: Sequence[str]) -> frozenset[str]:
    """Returns the names that a user allows, or raises a ``ValueError`` for other values."""
    plain = isinstance(allow, Collection) and not isinstance(allow, (str, bytes))
    names = list(allow) if plain else [None]
    if not all(isinstance(n, str) and all(map(str.isidentifier, n.split("."))) for n in names):
        raise ValueError(
            f"Expected allow to be a list of dotted names, as in ['my_package.MyPrior'], got "
            f"{allow!r}"
        )
    return frozenset(map(str, names))


def check_recipe(recipe: Any) -> dict[str, Any]:
    """Returns a recipe from a file, or raises a ``ValueError`` if it has another form."""
    keys = set(recipe) if isinstance(recipe, dict) else set()
    if not _NEEDED <= keys <= _NEEDED | _OPTIONAL:
        raise ValueError(f"Expected a recipe with {sorted(_NEEDED)}, got {sorted(keys)}")
    parts = recipe["parts"]
    if not isinstance(parts, dict) or set(parts) != set(PARTS):
        raise ValueError(f"Expected a recipe of the parts {PARTS}, got {parts!r:.100}")
    for role, part in parts.items():
        whole = isinstance(part, dict) and set(part) == {"class", "arguments"}
        if part is not None and not (
            whole and isinstance(part["class"], str) and isinstance(part["arguments"], dict)
        ):
            raise ValueError(f"Expected {role} as class and arguments, got {part!r:.100}")
    return recipe


def check_classes(
    recipe: Mapping[str, Any], allow: Collection[str], file: Path | str = "a file"
) -> None:
    """Raises a ``ValueError`` unless all classes are of this package or allowed by name.

    Arguments:
        recipe: A recipe as :func:`check_recipe` returns it, with all parts.
        allow: Dotted names of classes of other packages.
        file: Where the recipe comes from, named in the error.
    """
    allowed = _own_classes() | set(allow)
    for role, part in recipe["parts"].items():
        name = part["class"]
        if name not in allowed:
            raise ValueError(
                f"Expected {role} to be a class of pyro_vae, got {name!r} in {file}: if you trust "
                f"the file, load(path, allow=[{name!r}])"
            )


def make_vae(
    recipe: Mapping[str, Any], weights: Mapping[str, Tensor], allow: Collection[str] = ()
) -> VAE:
    """Returns a VAE made by a recipe, with the given weights.

    Arguments:
        recipe: A recipe as :func:`check_recipe` returns it, with all parts.
        weights: The weights by their names.
        allow: Dotted names of classes of other packages that may be made.

    Raises:
        ValueError: If a class is not allowed, a part cannot be made, or weights do not fit.
    """
    check_classes(recipe, allow)
    own = _own_classes()
    known = all(part["class"] in own for part in recipe["parts"].values())
    budget = _Budget(sum(value.numel() for value in weights.values()))
    with torch.device("cpu"), budget if known else nullcontext():
        vae = _construct(recipe)
    _check_weights(vae, weights)
    _set_precision(vae, weights)
    # Assigned, not copied, so that a double precision VAE comes back as one. A part may supply an
    # entry that files of earlier versions do not have.
    missing = vae.load_state_dict(dict(weights), strict=False, assign=True).missing_keys
    if missing:
        raise ValueError(f"Expected the weights of its parts, got none for {missing[:3]}")
    return vae


def differences(vae: VAE) -> dict[str, str]:
    """Returns how a VAE differs from the one that its recipe makes.

    The values of weights do not count, nor do the mode, the device, and which weights are frozen.

    Returns:
        The differences, by dotted path; empty if a file can restore the VAE.
    """
    recipe = json.loads(json.dumps({**vae.recipe, "name": vae.name}))
    try:
        with torch.random.fork_rng([]), torch.device("cpu"):
            made = _construct(recipe)
    except Exception as error:
        return {"the VAE": f"a recipe that fails, {type(error).__name__}: {error}"}
    _set_precision(made, vae.state_dict())
    return dict(chain(_module_differences(vae, made), _shared(vae)))


def advice(place: str) -> str:
    """Returns a remedy for a place that :func:`differences` found."""
    role = place.partition(".")[0]
    cure = f"Make the VAE with that part, VAE(..., {role}=...)" if role in PARTS else "Undo this"
    return f"{cure}, or save vae.state_dict() instead"


def _own_classes() -> set[str]:
    return {
        f"pyro_vae.{package}.{member}"
        for package in _PACKAGES
        for member in import_module(f"pyro_vae.{package}").__all__
    }


_FACTORIES = {
    torch.arange, torch.empty, torch.eye, torch.full, torch.ones, torch.rand, torch.randn,
    torch.tril_indices, torch.zeros,
}  # fmt: skip


class _Budget(TorchFunctionMode):
    """Refuses to make more numbers than a VAE of that many weights can need.

    A recipe of a few bytes could otherwise take all memory, or make layers for hours.
    """

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.left = 16 * numel + 2**24

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FACTORIES:
            sizes = args[0] if args and isinstance(args[0], (list, tuple)) else args
            self.left -= max(4096, math.prod(abs(n) for n in sizes if isinstance(n, int)))
            if self.left < 0:
                raise ValueError("Expected parts of the size of the weights, got larger ones")
        return func(*args, **(kwargs or {}))


def _construct(recipe: Mapping[str, Any]) -> VAE:
    settings: dict[str, Any] = {key: value for key, value in recipe.items() if key != "parts"}
    for role, part in recipe["parts"].items():
        settings[role] = functools.partial(_class(part["class"], role), **part["arguments"])
    return VAE(**settings)


def _class(name: str, role: str) -> type[nn.Module]:
    module, _, member = name.rpartition(".")
    kind = getattr(import_module(module), member, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"Expected {role} to be a class of modules, got {name!r}")
    return kind


def _check_weights(vae: VAE, weights: Mapping[str, Tensor]) -> None:
    """Raises a ``ValueError`` for a weight that a VAE has not, or has in another form."""
    own = vae.state_dict()
    odd = sorted(weights.keys() - own.keys())
    if odd:
        raise ValueError(f"Expected the weights of its parts, got others, {odd[:3]}")
    for name, value in weights.items():
        if not _fits(own[name], value):
            raise ValueError(
                f"Expected {name} to be {_form(own[name])}, as its part makes it, got "
                f"{_form(value)}"
            )


def _fits(one: Any, other: Any) -> bool:
    """Whether a tensor can take the place of another, in any precision."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other
    same = one.dtype == other.dtype or {one.dtype, other.dtype} <= set(_PRECISIONS)
    return same and one.shape == other.shape


def _form(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:100]
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def _set_precision(vae: VAE, weights: Mapping[str, Tensor]) -> None:
    """Sets the precision of buffers outside of a file to that of all weights, if it is one."""
    used = {w.dtype for w in weights.values() if isinstance(w, Tensor) and w.is_floating_point()}
    if len(used) == 1:
        vae.to(used.pop())


def _shared(vae: VAE) -> Iterator[tuple[str, str]]:
    """Yields the weights that are one tensor under two names, which a file holds twice."""
    first: dict[int, str] = {}
    for name, value in vae.named_parameters(remove_duplicate=False):
        if first.setdefault(id(value), name) != name:
            yield name, f"the weight of {first[id(value)]}, where a file holds two"


def _module_differences(vae: VAE, made: VAE) -> Iterator[tuple[str, str]]:
    one = {**dict(vae.named_modules(remove_duplicate=False)), "model": vae.model}
    other = {**dict(made.named_modules(remove_duplicate=False)), "model": made.model}
    for path in [*one, *(path for path in other if path not in one)]:
        if path not in other:
            yield path, f"{_name(one[path])}, where it makes none"
        elif path not in one:
            yield path, f"no module, where it makes {_name(other[path])}"
        elif not _same_class(type(one[path]), type(other[path])):
            yield path or "the VAE", f"{_name(one[path])}, where it makes {_name(other[path])}"
        else:
            prefix = f"{path}." if path else ""
            for name, text in _own_differences(one[path], other[path]):
                yield f"{prefix}{name}", text


def _name(module: nn.Module) -> str:
    return type(module).__name__


def _same_class(one: type, other: type) -> bool:
    return [(k.__module__, k.__qualname__) for k in one.__mro__] == [
        (k.__module__, k.__qualname__) for k in other.__mro__
    ]


def _own_differences(one: nn.Module, other: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields the differences of two modules of one class, but for their submodules."""
    names, expected = list(one._modules), list(other._modules)
    if names != expected and sorted(names) == sorted(expected):
        yield "children", f"the order {names}, where it makes {expected}"
    for key in _HOOKS:
        mine, theirs = (list(getattr(module, key).values()) for module in (one, other))
        if not _alike(mine, theirs):
            yield key.strip("_"), f"{len(mine)}, where it makes {len(theirs)} or others"
    for kind in ("_parameters", "_buffers"):
        held, made = getattr(one, kind), getattr(other, kind)
        for name in [*held, *(name for name in made if name not in held)]:
            a, b = held.get(name), made.get(name)
            if name not in made or name not in held or not _fits(a, b):
                yield name, f"{_form(a)}, where it makes {_form(b)}"
    if one._non_persistent_buffers_set != other._non_persistent_buffers_set:
        yield "buffers", "others that a file does not hold than it makes"
    for name in sorted(one._non_persistent_buffers_set & other._non_persistent_buffers_set):
        if not _alike(one._buffers.get(name), other._buffers.get(name)):
            yield name, "other values than it makes, which a file does not hold"
    yield from _setting_differences(one, other)


def _setting_differences(one: nn.Module, other: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields the public attributes that differ."""
    mine, theirs = _settings(one), _settings(other)
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        if name not in theirs:
            # What a user notes on the VAE itself is read by nobody here.
            if not isinstance(one, VAE) or callable(mine[name]):
                yield name, f"{mine[name]!r:.50}, where it makes none"
        elif name not in mine:
            yield name, f"none, where it makes {theirs[name]!r:.50}"
        elif not _alike(mine[name], theirs[name]):
            yield name, f"{mine[name]!r:.50}, where it makes {theirs[name]!r:.50}"


def _settings(module: nn.Module) -> dict[str, Any]:
    hidden = _INTERNAL | ({"recipe", "model", "guide"} if isinstance(module, VAE) else set())
    return {name: value for name, value in _public(module).items() if name not in hidden}


def _alike(one: Any, other: Any, depth: int = 0) -> bool:
    """Whether two settings are equal, as far as they can be compared; lists equal tuples."""
    if one is other or depth > _DEEPEST:
        return True
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(
            _alike(a, b, depth + 1) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, (Number, str, bytes)):
        return bool(one == other or (one != one and other != other))
    if type(one) is not type(other):
        return False
    return _same_objects(one, other, depth)


def _same_objects(one: Any, other: Any, depth: int) -> bool:
    """Whether two objects of one class hold the same."""
    if isinstance(one, Tensor):
        return _form(one) == _form(other) and bool(
            ((one == other.to(one.device)) | ((one != one) & (other != other).to(one.device))).all()
        )
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _alike(one[key], other[key], depth + 1) for key in one
        )
    if isinstance(one, (set, frozenset, torch.dtype, type)):
        return bool(one == other)
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__
    if isinstance(one, types.FunctionType):
        return one.__code__ == other.__code__ and _alike(_held(one), _held(other), depth + 1)
    if isinstance(one, types.BuiltinFunctionType):
        return bool(one == other)
    if isinstance(one, functools.partial):
        a, b = ((p.func, p.args, p.keywords) for p in (one, other))
        return _alike(a, b, depth + 1)
    if isinstance(one, (nn.Module, torch.device)):
        return True
    return _alike(_public(one), _public(other), depth + 1)


def _public(value: Any) -> dict[str, Any]:
    return {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}


def _held(function: types.FunctionType) -> list[Any]:
    """Returns the defaults of a function, and the variables that it takes from around it."""
    cells = inspect.getclosurevars(function).nonlocals
    return [function.__defaults__, function.__kwdefaults__, dict(cells)]
