"""Networks that other networks contain, built from their signature."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pyro_vae.validation import describe_value

__all__ = ["build_inner", "check_options"]


def check_options(name: str, options: Any) -> dict[str, Any]:
    """Returns arguments by name, none for ``None``, or raises a ``ValueError``."""
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise ValueError(
            f"Expected {name} to be arguments by name, as in {{'hidden': [64]}}, got "
            f"{describe_value(options)}"
        )
    return dict(options)


def build_inner(
    factory: Callable[..., Any],
    options: dict[str, Any],
    sizes: Mapping[str, Any],
    *,
    name: str,
    options_name: str,
) -> nn.Module:
    """Builds a network with the sizes that its signature names, unless its options set them.

    Arguments:
        factory: A class, or another callable that builds a module.
        options: Its arguments by name.
        sizes: The available sizes; ``covariate_dim`` is needed.
        name: The factory, named in errors.
        options_name: The argument that the options are from, named in errors.

    Raises:
        ValueError: If the options do not fit, no module is built, or it takes no covariates.
    """
    try:
        parameters = set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        parameters = set()
    parameters -= set(getattr(factory, "keywords", {}))
    arguments = {key: size for key, size in sizes.items() if key in parameters} | options
    try:
        module = factory(**arguments)
    except TypeError as error:
        raise ValueError(
            f"Expected {options_name} to be arguments of {name}, got {describe_value(options)}: "
            f"{error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"Expected {name} to build a torch.nn.Module, got {describe_value(module)}"
        )
    if sizes["covariate_dim"] and not _accepts_covariates(module):
        raise ValueError(
            f"Expected {name} to accept covariates as second argument of its forward, which "
            f"covariate_dim={sizes['covariate_dim']} needs, got one that does not"
        )
    return module


def _accepts_covariates(module: nn.Module) -> bool:
    try:
        inspect.signature(module.forward).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        # Some functions in C have no signature.
        return True
    return True
