"""Arguments of parts by nested names, as scikit-learn's searches set them."""

import inspect
from functools import partial
from typing import Any

from pyro_vae.validation import describe_value

__all__ = ["set_argument"]


def set_argument(role: str, part: Any, name: str, value: Any) -> Any:
    """Returns a factory with another argument.

    Arguments:
        role: The name of the factory, for errors.
        part: A class or a partial.
        name: The name of the argument.
        value: Its value.

    Raises:
        ValueError: If this is not a factory, or it has no such argument.

    Example:
        >>> from pyro_vae import priors
        >>> set_argument("prior", priors.Mixture, "components", 3).keywords
        {'components': 3}
    """
    if not isinstance(part, (type, partial)):
        raise ValueError(
            f"Expected {role} of VAETransformer to be a class or a functools.partial for "
            f"'{role}__{name}', got {describe_value(part)}"
        )
    factory: Any = part
    while isinstance(factory, partial):
        factory = factory.func
    names = [
        parameter
        for parameter in inspect.signature(factory).parameters
        if parameter not in ("self", "event_shape", "latent_dim", "in_shape", "out_shape")
    ]
    if name not in names:
        raise ValueError(
            f"Expected an argument of {factory.__name__} in {role}__{name}, one of {names}, got "
            f"{name!r}"
        )
    return partial(part, **{name: value})
