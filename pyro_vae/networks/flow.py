"""The autoregressive transforms of normalizing flows, from zuko."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pyro_vae.guard import import_zuko
from pyro_vae.networks.mlp import build_activation
from pyro_vae.validation import check_choice, check_size, check_sizes

__all__ = ["FAMILIES", "build_flow"]

FAMILIES = ("affine", "spline")
"""The maps of one dimension given the earlier ones."""

_SHARE = 0.1
"""The factor of the last weights, so that a flow starts near the identity."""


def build_flow(
    dim: int,
    context: int = 0,
    *,
    family: str = "spline",
    transforms: int = 2,
    hidden: Sequence[int] = (64, 64),
    activation: str = "relu",
    passes: int | None = None,
    bins: int = 8,
) -> nn.Module:
    """Builds autoregressive transforms of alternating order, near the identity.

    Arguments:
        dim: The number of dimensions.
        context: The number of features of the context.
        family: ``"affine"`` (MAF and IAF) or ``"spline"`` (NSF), which is the identity beyond 5.
        transforms: The number of transforms.
        hidden: The widths of the hidden layers of their networks.
        activation: As in :class:`~pyro_vae.networks.MLP`.
        passes: The number of passes of an inverse; 2 for coupling transforms. ``None``: one for
            each dimension.
        bins: The number of bins of a spline.

    Raises:
        ValueError: If a size is not positive, or a name is unknown.
    """
    zuko = import_zuko()
    family = check_choice("family", family, FAMILIES)
    options: dict[str, Any] = {"hidden_features": check_sizes("hidden", hidden)}
    options["activation"] = partial(build_activation, activation)
    build_activation(activation)
    bins = check_size("bins", bins, least=2)
    if family == "spline":
        options["univariate"] = zuko.transforms.MonotonicRQSTransform
        options["shapes"] = [(bins,), (bins,), (bins - 1,)]
    if passes is not None:
        options["passes"] = check_size("passes", passes, least=2)
    layers = []
    for index in range(check_size("transforms", transforms, least=1)):
        order = torch.arange(dim) if index % 2 == 0 else torch.arange(dim).flip(0)
        layer = zuko.flows.MaskedAutoregressiveTransform(dim, context, order=order, **options)
        _start_near_identity(layer)
        layers.append(layer)
    return zuko.lazy.LazyComposedTransform(*layers)


@torch.no_grad()
def _start_near_identity(layer: Any) -> None:
    """Shrinks the parameters that a transform starts from; zeros are the identity."""
    # One dimension without context has no network.
    last = layer.phi if not hasattr(layer, "hyper") else layer.hyper[-1]
    for parameter in last.parameters():
        parameter.mul_(_SHARE)
