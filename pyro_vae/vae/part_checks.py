"""Checks of the parts of a VAE."""

import inspect
from types import ModuleType
from typing import Any

from torch import nn

from pyro_vae import posteriors, priors, transforms
from pyro_vae.conditional import Likelihood, Posterior, Prior
from pyro_vae.distributions.blocks import are_equal_supports, describe_support, repeat_support
from pyro_vae.networks import Embedding
from pyro_vae.validation import list_names

__all__ = ["check_parts", "check_supports", "count_network_covariates"]

_KINDS: dict[type, str] = {Prior: "prior", Posterior: "posterior", Likelihood: "likelihood"}


def count_network_covariates(covariate_dim: int, likelihood: nn.Module) -> int:
    """Returns the number of covariates that networks see."""
    uses_size_factor = bool(getattr(likelihood, "uses_size_factor", False))
    if uses_size_factor and not covariate_dim:
        raise ValueError(
            "Expected covariate_dim to be at least 1 for a likelihood with "
            "size_factor='covariate', which is the last covariate, got 0"
        )
    return covariate_dim - uses_size_factor


def check_parts(vae: Any) -> None:
    """Raises a ``ValueError`` if the parts that a VAE has so far do not fit each other."""
    for role in ("prior", "posterior"):
        _check_part(role, getattr(vae, role), latent_dim=vae.latent_dim)
    check_supports(vae.prior, vae.posterior)
    _check_part("likelihood", vae.likelihood, event_shape=vae.event_shape)
    if "input_transform" in vae._modules:
        _check_part("input_transform", vae.input_transform, event_shape=vae.event_shape)
        _check_levels(vae.likelihood, vae.input_transform)
    for role in ("encoder", "decoder"):
        if role in vae._modules:
            _check_kind(role, vae._modules[role])
    if {"encoder", "input_transform"} <= set(vae._modules):
        _check_masked(vae.encoder, vae.input_transform)
        _check_embedding(vae.encoder, vae.likelihood, vae.input_transform)


def _check_part(role: str, part: nn.Module, **sizes: object) -> None:
    """Raises a ``ValueError`` if a part has another role or another size."""
    _check_kind(role, part)
    for name, size in sizes.items():
        actual = getattr(part, name, size)
        if actual != size:
            raise ValueError(f"Expected {role} to have {name}={size}, got {actual} in {part}")
    if role in ("posterior", "likelihood") and not hasattr(part, "feature_shape"):
        raise ValueError(
            f"Expected {role} to have a feature_shape, the output shape of its network, got "
            f"{type(part).__name__} without one"
        )


def check_supports(prior: nn.Module, posterior: nn.Module) -> None:
    """Raises a ``ValueError`` unless prior and posterior are distributions on the same set."""
    supports = [_get_support(part) for part in (prior, posterior)]
    if None in supports or are_equal_supports(*supports):
        return
    names = [type(part).__name__ for part in (prior, posterior)]
    spaces = [describe_support(support) for support in supports]
    raise ValueError(
        f"Expected prior and posterior on the same set, got the prior {names[0]} on {spaces[0]} "
        f"and the posterior {names[1]} on {spaces[1]}: posteriors on {spaces[0]} are "
        f"{_list_members(posteriors, prior)}; priors on {spaces[1]} are "
        f"{_list_members(priors, posterior)}"
    )


def _get_support(part: Any) -> Any:
    """Returns the support of z; that of parts of other classes is not known."""
    support = getattr(part, "support", None)
    return None if support is None else repeat_support(support, getattr(part, "variables", 1))


def _list_members(package: ModuleType, part: Any) -> str:
    """Lists the classes of a package on the support of a part, with the same number of blocks."""
    variables = getattr(part, "variables", 1)
    members = [
        name
        for name, kind in ((name, getattr(package, name)) for name in package.__all__)
        if kind.support is None
        or (
            are_equal_supports(kind.support, part.support)
            and (variables == 1 or "variables" in inspect.signature(kind).parameters)
        )
    ]
    with_variables = f" with variables={variables}" if variables > 1 else ""
    return (list_names(members) or "none of this package") + with_variables


def _check_levels(likelihood: nn.Module, transform: nn.Module) -> None:
    """Raises a ``ValueError`` if likelihood and input transform differ in levels or columns."""
    columns, others = (getattr(part, "columns", None) for part in (likelihood, transform))
    if None not in (columns, others) and columns != others:
        raise ValueError(
            "Expected input_transform to have the columns of the likelihood, got others"
        )
    own, other = (getattr(part, "levels", None) for part in (likelihood, transform))
    if None not in (own, other) and own != other:
        raise ValueError(
            f"Expected input_transform to have the levels of the likelihood, {own}, got {other}"
        )


def _check_masked(encoder: nn.Module, transform: nn.Module) -> None:
    """Raises a ``ValueError`` unless an encoder of series and its input agree on the mask."""
    masked, appended = getattr(encoder, "masked", None), getattr(transform, "append_mask", False)
    if masked is None or masked == appended:
        return
    raise ValueError(
        f"Expected masked of the encoder and append_mask of the input transform to be the same, "
        f"got masked={masked} in {type(encoder).__name__} and append_mask={appended}"
    )


def _check_embedding(encoder: nn.Module, likelihood: nn.Module, transform: nn.Module) -> None:
    """Raises a ``ValueError`` if an embedding does not see the levels of the likelihood."""
    if not isinstance(encoder, Embedding):
        return
    levels = getattr(likelihood, "levels", encoder.levels)
    if levels != encoder.levels:
        raise ValueError(
            f"Expected levels={levels} of the Embedding in the encoder, as the likelihood "
            f"{type(likelihood).__name__} has, got levels={encoder.levels}"
        )
    if isinstance(transform, (transforms.Standardize, transforms.OneHot)):
        raise ValueError(
            f"Expected input_transform to keep the levels that the Embedding in the encoder looks "
            f"up, as Identity does, got {type(transform).__name__}"
        )


def _check_kind(role: str, part: nn.Module | None) -> None:
    """Raises a ``ValueError`` if a part is made for another role."""
    roles = [other for kind, other in _KINDS.items() if isinstance(part, kind)]
    for other in roles:
        if role not in roles:
            raise ValueError(
                f"Expected {role} to be made for that role, got {type(part).__name__}, a {other}"
            )
