"""Parts: made from classes, and described for a file."""

import copy
import functools
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from pyro_vae.validation import describe_value, plain

__all__ = ["Part", "build", "describe"]


Part = nn.Module | Callable[..., nn.Module]
"""A ready-made module, or a callable (a class, a ``functools.partial``) that makes one."""


def build(part: Part, role: str, **sizes: Any) -> Any:
    """Makes a part, handing it those sizes that its signature names.

    Arguments:
        part: A module, returned as it is, or a callable that makes one.
        role: What the part is for; named in errors.
        sizes: What can be handed over, such as ``latent_dim`` or ``event_shape``.

    Raises:
        ValueError: If ``part`` is neither, or needs an argument that is not offered.
    """
    if isinstance(part, nn.Module):
        return part
    if not callable(part):
        raise ValueError(
            f"Expected {role} to be a module or a callable that makes one, got "
            f"{describe_value(part)}"
        )
    if isinstance(part, type) and not issubclass(part, nn.Module):
        raise ValueError(f"Expected {role} to make a torch.nn.Module, got {describe_value(part)}")
    try:
        parameters = inspect.signature(part).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {role} to be a callable whose signature names its sizes, got {part!r}"
        ) from error
    chosen = getattr(part, "keywords", {})
    named = {k: size for k, size in sizes.items() if k in parameters and k not in chosen}
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in named
        and parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if missing:
        raise ValueError(
            f"Expected {role} to need nothing but {sorted(sizes)}, got {part!r}, which also needs "
            f"{missing}: give those with functools.partial"
        )
    module = part(**named)
    if not isinstance(module, nn.Module):
        raise ValueError(f"Expected {role} to make a torch.nn.Module, got {type(module).__name__}")
    return module


def describe(part: Part) -> dict[str, Any] | None:
    """Returns the class and the arguments that make a part, in terms of JSON.

    Returns:
        ``{"class": dotted name, "arguments": {...}}``, or ``None`` for a part that is ready-made or
        made by anything but a class, or a ``functools.partial`` of one, with plain arguments.

    Example:
        >>> from pyro_vae import priors
        >>> describe(functools.partial(priors.Mixture, components=3))
        {'class': 'pyro_vae.priors.Mixture', 'arguments': {'components': 3}}
    """
    arguments: dict[str, Any] = {}
    made_by: Any = part
    while isinstance(made_by, functools.partial) and not made_by.args:
        arguments = {**made_by.keywords, **arguments}
        made_by = made_by.func
    # A class within a class or a function is not found by its name.
    if not isinstance(made_by, type) or "." in made_by.__qualname__:
        return None
    arguments = plain(arguments)
    try:
        json.dumps(arguments)
    except TypeError:
        return None
    # The package's own name for a class outlives the file in which it stands.
    package = made_by.__module__.rpartition(".")[0]
    home = package if getattr(sys.modules.get(package), made_by.__name__, None) is made_by else None
    name = f"{home or made_by.__module__}.{made_by.__qualname__}"
    return {"class": name, "arguments": copy.deepcopy(arguments)}
