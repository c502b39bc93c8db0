"""Initialization of the parts of a VAE from training rows."""

from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.data.sparse_rows import is_sparse, spread_rows, take_rows
from pyro_vae.masking import expand_mask, fill_missing
from pyro_vae.vae.input_checks import check_sparse_rows
from pyro_vae.vae.model_guide import transform_input
from pyro_vae.validation import check_tensor

__all__ = ["initialize_parts"]


def initialize_parts(vae: Any, x: Tensor, mask: Tensor | None) -> None:
    """Initializes data-dependent parts, as :meth:`pyro_vae.VAE.initialize` describes."""
    check_tensor("x", x)
    if x.dim() != len(vae.event_shape) + 1:
        raise ValueError(
            f"Expected x of shape (N, {', '.join(map(str, vae.event_shape))}), got {tuple(x.shape)}"
        )
    if is_sparse(x):
        check_sparse_rows(x, mask, vae.model.check)
        x = take_rows(x, spread_rows(x))
    if mask is None and bool(x.isnan().any()):
        mask = ~x.isnan()
    vae.model.check(x, mask)
    if mask is not None and not bool(mask.any()):
        raise ValueError("Expected mask to leave values in, got none")
    observed = None if mask is None else expand_mask(mask, x, vae.event_shape)
    data = fill_missing(x, observed, torch.nan)
    _initialize_part(vae.input_transform, data)
    _initialize_part(vae.likelihood, data)
    filled = fill_missing(x, observed, vae.guide.fill_value)
    inputs = transform_input(vae.input_transform, filled, observed)
    for role in ("prior", "posterior", "encoder", "decoder"):
        _initialize_part(getattr(vae, role), inputs)


def _initialize_part(part: nn.Module, x: Tensor) -> None:
    initialize = getattr(part, "initialize", None)
    if initialize is not None:
        initialize(x)
