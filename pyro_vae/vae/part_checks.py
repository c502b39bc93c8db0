"""Checks of the parts of a VAE."""

from torch import nn

from pyro_vae.conditional import Likelihood, Posterior, Prior

__all__ = ["check_kind", "check_levels", "check_part", "count_network_covariates"]

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


def check_part(role: str, part: nn.Module, **sizes: object) -> None:
    """Raises a ``ValueError`` if a part has another role or another size."""
    check_kind(role, part)
    for name, size in sizes.items():
        actual = getattr(part, name, size)
        if actual != size:
            raise ValueError(f"Expected {role} to have {name}={size}, got {actual} in {part}")
    if role in ("posterior", "likelihood") and not hasattr(part, "feature_shape"):
        raise ValueError(
            f"Expected {role} to have a feature_shape, the output shape of its network, got "
            f"{type(part).__name__} without one"
        )


def check_levels(likelihood: nn.Module, transform: nn.Module) -> None:
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


def check_kind(role: str, part: nn.Module | None) -> None:
    """Raises a ``ValueError`` if a part is made for another role."""
    roles = [other for kind, other in _KINDS.items() if isinstance(part, kind)]
    for other in roles:
        if role not in roles:
            raise ValueError(
                f"Expected {role} to be made for that role, got {type(part).__name__}, a {other}"
            )
