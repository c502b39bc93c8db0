"""Builds parts from classes, and describes them for files."""

import copy
import functools
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from pyro_vae.tables.schema import Schema
from pyro_vae.validation import describe_value, to_plain_python

__all__ = ["Part", "build_part", "describe_part"]


Part = nn.Module | Callable[..., nn.Module]
"""A module, or a callable (a class, a ``functools.partial``) that builds one."""


def build_part(part: Part, role: str, **sizes: Any) -> Any:
    """Builds a part with the sizes that its signature names.

    Arguments:
        part: A module, returned unchanged, or a callable that builds one.
        role: The role of the part, named in errors.
        sizes: The available sizes, such as ``latent_dim`` or ``event_shape``.

    Raises:
        ValueError: If ``part`` is neither, or requires an argument that is not available.
    """
    if isinstance(part, nn.Module):
        return part
    if not callable(part):
        raise ValueError(
            f"Expected {role} to be a module or a callable that builds one, got "
            f"{describe_value(part)}"
        )
    if isinstance(part, type) and not issubclass(part, nn.Module):
        raise ValueError(f"Expected {role} to build a torch.nn.Module, got {describe_value(part)}")
    try:
        parameters = inspect.signature(part).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {role} to be a callable whose signature names its sizes, got {part!r}"
        ) from error
    fixed = getattr(part, "keywords", {})
    arguments = {k: size for k, size in sizes.items() if k in parameters and k not in fixed}
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in arguments
        and parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if missing:
        raise ValueError(
            f"Expected {role} to require only {sorted(sizes)}, got {part!r}, which also requires "
            f"{missing}: set those with functools.partial"
        )
    module = part(**arguments)
    if not isinstance(module, nn.Module):
        raise ValueError(f"Expected {role} to build a torch.nn.Module, got {type(module).__name__}")
    return module


def describe_part(part: Part) -> dict[str, Any] | None:
    """Returns the class and the arguments that build a part, as values that JSON can encode.

    Returns:
        ``{"class": dotted name, "arguments": {...}}``, or ``None`` unless the part is a class, or a
        ``functools.partial`` of one with plain arguments.

    Example:
        >>> from pyro_vae import priors
        >>> describe_part(functools.partial(priors.Mixture, components=3))
        {'class': 'pyro_vae.priors.Mixture', 'arguments': {'components': 3}}
    """
    arguments: dict[str, Any] = {}
    factory: Any = part
    while isinstance(factory, functools.partial) and not factory.args:
        arguments = {**factory.keywords, **arguments}
        factory = factory.func
    # A nested class cannot be imported by its name.
    if not isinstance(factory, type) or "." in factory.__qualname__:
        return None
    arguments = to_plain_python({
        name: value.to_list() if isinstance(value, Schema) else value
        for name, value in arguments.items()
    })  # fmt: skip
    try:
        json.dumps(arguments)
    except TypeError:
        return None
    # The name that a package exports stays valid when the class moves to another file.
    package = factory.__module__.rpartition(".")[0]
    is_exported = getattr(sys.modules.get(package), factory.__name__, None) is factory
    name = f"{package if is_exported else factory.__module__}.{factory.__qualname__}"
    return {"class": name, "arguments": copy.deepcopy(arguments)}
