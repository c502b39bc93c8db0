"""Data in chunks, each encoded once."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.finite import check_weights, valid_parameters
from pyro_vae.masking import factorizes, fill, mask_elements, split_mask
from pyro_vae.networks import eval_mode
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import (
    check_tensor,
    describe_value,
)

__all__ = ["MAX_ELEMENTS", "Chunk", "check_vae", "chunks"]


MAX_ELEMENTS = 2**22
"""How many numbers of decoder output are held at once: 16 MiB in single precision."""


class Chunk(NamedTuple):
    """Some rows of the data, and the distributions that do not depend on a sample."""

    x: Tensor
    covariates: Tensor | None
    rows: Tensor | None
    elements: Tensor | None
    q: dist.TorchDistribution
    prior: dist.TorchDistribution

    def log_likelihood(self, vae: VAE, z: Tensor) -> Tensor:
        """Returns log p(x given z), ``(particles, rows)``."""
        with valid_parameters("p(x given z)"):
            p = vae.decode(z, self.covariates)
        if self.elements is not None and (self.rows is None or factorizes(p)):
            p = mask_elements(p, self.elements)
        return self.present(p.log_prob(self.x))

    def present(self, value: Tensor) -> Tensor:
        """Returns values by row, zero for the rows that a mask takes out."""
        return value if self.rows is None else torch.where(self.rows, value, 0.0)


def check_vae(vae: Any) -> None:
    """Raises an error unless a VAE with finite weights is given."""
    if not isinstance(vae, VAE):
        raise ValueError(f"Expected vae to be a VAE, got {describe_value(vae)}")
    check_weights(vae)


def chunks(
    vae: VAE, x: Tensor, covariates: Tensor | None, mask: Tensor | None, size: int
) -> Iterator[Chunk]:
    """Checks the data, then yields them in parts, each encoded once."""
    check_tensor("x", x)
    if x.dim() != len(vae.event_shape) + 1:
        raise ValueError(
            f"Expected x of shape (N, {', '.join(map(str, vae.event_shape))}), got {tuple(x.shape)}"
        )
    vae.check(x, mask)
    if covariates is not None:
        _check_covariates(covariates, x)
    rows, elements = split_mask(mask, x, vae.event_shape)
    with eval_mode(vae):
        shared = vae.prior_distribution() if covariates is None else None
    for start in range(0, len(x), size):
        some = slice(start, start + size)
        given = None if covariates is None else covariates[some]
        seen = None if elements is None else elements[some]
        present = fill(x[some], seen)
        with eval_mode(vae), valid_parameters("q(z given x) or p(z)"):
            q = vae.encode(present, given)
            prior = vae.prior_distribution(given) if shared is None else shared
        yield Chunk(present, given, None if rows is None else rows[some], seen, q, prior)


def _check_covariates(covariates: Tensor, x: Tensor) -> None:
    check_tensor("covariates", covariates)
    if covariates.dim() != 2 or covariates.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"Expected covariates of shape ({len(x)}, covariate_dim), got {tuple(covariates.shape)}"
        )
    if not bool(torch.isfinite(covariates).all()):
        raise ValueError("Expected covariates to be finite, got NaN or infinite values")
