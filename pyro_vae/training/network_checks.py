"""Trial passes through a VAE's networks, before a training starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from pyro_vae.data import Rows
from pyro_vae.masking import expand_mask, fill_missing
from pyro_vae.networks import apply_network, eval_mode
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.vae.vae import VAE

__all__ = ["check_networks", "check_single_rows"]


@torch.no_grad()
def check_networks(vae: VAE, rows: Rows) -> None:
    """Raises a ``ValueError`` unless encoder and decoder accept two rows.

    Without this check Pyro would add the shapes of its trace to the error message.

    Arguments:
        vae: The VAE; its state does not change.
        rows: Valid rows.
    """
    lazy = [name for name, value in vae.named_parameters() if is_lazy(value)]
    if lazy:
        raise ValueError(
            f"Expected parameters that have a shape, got the lazy {lazy[0]}: call vae.encode(x) "
            f"and vae.decode(z) once before"
        )
    x = _first_rows(vae, rows, 2)
    unchecked = pyro.validation_enabled(False)
    with _restore_attributes(vae), fork_and_seed_rng(x.device, 0), unchecked, eval_mode(vae):
        covariates = None if rows.covariates is None else rows.covariates[:2]
        vae.guide.encode(x, covariates)
        vae.model.decode(x.new_zeros(len(x), vae.latent_dim), covariates)


@torch.no_grad()
def check_single_rows(vae: VAE, rows: Rows, batch_size: int, objective: Any) -> None:
    """Raises a ``ValueError`` for batch norm over batches of one row, which have no variance.

    Arguments:
        vae: The VAE; its state does not change.
        rows: Valid rows.
        batch_size: The number of rows per batch.
        objective: The objective, whose particles are rows of the decoder's input.
    """
    if min(batch_size, len(rows.x)) > 1 or not any(
        isinstance(m, _BatchNorm) for m in vae.modules()
    ):
        return
    x = _first_rows(vae, rows, 1)
    at_once = getattr(objective, "vectorize_particles", False)
    z = x.new_zeros(objective.num_particles if at_once else 1, 1, vae.latent_dim)
    first = None if rows.covariates is None else rows.covariates[:1]
    covariates = vae.guide.select_network_covariates(first)
    inputs = vae.input_transform(x)
    input_dim = inputs.dim() - x.dim() + len(vae.event_shape)
    arguments = {"encoder": (inputs, input_dim), "decoder": (z, 1)}
    with _restore_attributes(vae), fork_and_seed_rng(x.device, 0), eval_mode(vae):
        vae.train()
        for role, (value, event_dim) in arguments.items():
            _try_one_row(role, getattr(vae, role), value, event_dim, covariates, len(rows.x))


@contextmanager
def _restore_attributes(vae: VAE) -> Iterator[None]:
    """Restores attributes and buffers of modules, such as call counters and lazily built layers.

    A layer that a trial pass built is removed. Training then builds it with the training's seed.
    """
    dictionaries = [
        attributes
        for m in vae.modules()
        for attributes in (vars(m), m._modules, m._parameters, m._buffers)
    ]
    saved = [(attributes, dict(attributes)) for attributes in dictionaries]
    values = [(buffer, buffer.clone()) for buffer in vae.buffers()]
    try:
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)
        for buffer, value in values:
            buffer.copy_(value)


def _try_one_row(
    role: str,
    network: nn.Module,
    x: Tensor,
    event_dim: int,
    covariates: Tensor | None,
    size: int,
) -> None:
    try:
        apply_network(network, x, event_dim, covariates)
    except ValueError as error:
        # PyTorch raises no specific class for this error, so its text identifies it.
        if "more than 1 value per channel" not in str(error):
            raise
        name = "train to have" if size == 1 else "batch_size to be"
        raise ValueError(
            f"Expected {name} at least 2 rows for the batch norm of the {role}, got 1: one row "
            f"has no variance"
        ) from error


def _first_rows(vae: VAE, rows: Rows, count: int) -> Tensor:
    """Returns the first rows, without missing values."""
    x, mask, _ = rows._replace(dynamic=False).batch(slice(count))
    observed = None if mask is None else expand_mask(mask, x, vae.event_shape)
    return fill_missing(x, observed, vae.guide.fill_value)
