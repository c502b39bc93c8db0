"""Data in chunks, each encoded once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from pyro_vae.compiled.support import check_parameters
from pyro_vae.data.sparse_rows import take_rows
from pyro_vae.finite import check_weights, explain_invalid_parameters
from pyro_vae.masking import fill_missing, mask_elements, split_mask
from pyro_vae.networks import eval_mode
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import (
    check_tensor,
    describe_value,
)

__all__ = [
    "MAX_ELEMENTS", "Chunk", "RowResults", "check_vae", "choose_size", "count_rows",
    "encode_chunks", "most_rows", "split_evenly",
]  # fmt: skip

MAX_ELEMENTS = 2**22
"""The most decoder outputs in memory at once: 16 MiB in single precision."""

_ROWS_ON_CPU = 4096
"""The most rows that a processor decodes at once: activations of more do not fit its cache."""

_ELEMENTS_ON_CPU = 2**19
"""The most outputs of convolutions at once, which have activations of many channels."""


class Chunk(NamedTuple):
    """Rows of the data with their q(z given x) and p(z)."""

    x: Tensor
    covariates: Tensor | None
    rows: Tensor | None
    elements: Tensor | None
    q: dist.TorchDistribution
    prior: dist.TorchDistribution

    def log_likelihood(self, vae: VAE, z: Tensor, *, check: bool = False) -> Tensor:
        """Returns log p(x given z), ``(particles, rows)``.

        Arguments:
            vae: The VAE.
            z: The latent variables.
            check: Whether to return NaN, instead of an arbitrary number, for invalid parameters.
        """
        with explain_invalid_parameters("p(x given z)"):
            p = vae.decode(z, self.covariates)
        valid = check_parameters(p, masked=self.elements is not None) if check else None
        if self.elements is not None:
            p = mask_elements(p, self.rows, self.elements)
        result = self.zero_masked(p.log_prob(self.x))
        return result if valid is None else torch.where(valid, result, torch.nan)

    def zero_masked(self, value: Tensor) -> Tensor:
        """Returns the values with zero for rows that the mask excludes."""
        return value if self.rows is None else torch.where(self.rows, value, 0.0)


def most_rows(vae: VAE, max_elements: int) -> int:
    """Returns the most rows to decode at once, for the most decoder outputs in memory."""
    rows = max(1, max_elements // vae.likelihood.feature_shape.numel())
    if any(parameter.device.type != "cpu" for parameter in vae.parameters()):
        return rows
    if any(isinstance(module, _ConvNd) for module in vae.decoder.modules()):
        rows = min(rows, max(1, _ELEMENTS_ON_CPU // vae.likelihood.feature_shape.numel()))
    return min(rows, _ROWS_ON_CPU)


def choose_size(total: int, most: int) -> int:
    """Returns a size of equal chunks between half of ``most`` and ``most``, or ``most``.

    Chunks of equal size use one graph.

    Example:
        >>> choose_size(5000, 53), choose_size(97, 53), choose_size(7, 53)
        (50, 53, 7)
    """
    most = max(1, min(most, total))
    return next((size for size in range(most, most // 2, -1) if total % size == 0), most)


def split_evenly(total: int, most: int) -> int:
    """Returns the size of chunks of at most ``most`` rows, of which only the last can be smaller.

    It is smaller by less than a row for each chunk.

    Example:
        >>> split_evenly(359, 100), split_evenly(1000, 100), split_evenly(7, 53)
        (90, 100, 7)
    """
    chunks = -(-total // max(1, most))
    return -(-total // max(1, chunks)) or 1


def count_rows(x: Tensor) -> int:
    """Returns the number of rows; the type of x is checked later, when it is encoded."""
    return len(x) if isinstance(x, Tensor) and x.dim() else 0


class RowResults:
    """The results of all rows, copied from those of chunks, of which the last may repeat a row.

    Arguments:
        total: The number of rows.
    """

    def __init__(self, total: int) -> None:
        self.total, self.start = total, 0
        self.tensors: list[Tensor] = []

    def add(self, results: Sequence[Tensor]) -> None:
        """Copies the results of the next rows.

        If they were kept instead, these small tensors would lie between the large ones of each
        call, whose memory could then not be used again.
        """
        if not results:
            return
        if not self.tensors:
            self.tensors = [result.new_empty(self.total) for result in results]
        stop = min(self.total, self.start + len(results[0]))
        for tensor, result in zip(self.tensors, results, strict=True):
            tensor[self.start : stop] = result[: stop - self.start]
        self.start = stop


def check_vae(vae: Any) -> None:
    """Raises an error unless the argument is a VAE with finite weights."""
    if not isinstance(vae, VAE):
        raise ValueError(f"Expected vae to be a VAE, got {describe_value(vae)}")
    check_weights(vae)


def encode_chunks(
    vae: VAE,
    x: Tensor,
    covariates: Tensor | None,
    mask: Tensor | None,
    size: int,
    *,
    equal: bool = False,
) -> Iterator[Chunk]:
    """Checks the data, then yields them in chunks, each encoded once.

    With ``equal`` all chunks have the same size, because the last one repeats the last row. A
    compiled graph is for one size.
    """
    check_tensor("x", x)
    if x.dim() != len(vae.event_shape) + 1:
        raise ValueError(
            f"Expected x of shape (N, {', '.join(map(str, vae.event_shape))}), got {tuple(x.shape)}"
        )
    vae.check(x, mask, covariates)
    rows, elements = split_mask(mask, x, vae.event_shape)
    with eval_mode(vae):
        shared = vae.prior_distribution() if covariates is None else None
    for start in range(0, len(x), size):
        index: slice | Tensor = slice(start, start + size)
        if equal and start + size > len(x):
            index = torch.arange(start, start + size, device=x.device).clamp(max=len(x) - 1)
        context = None if covariates is None else covariates[index]
        observed = None if elements is None else elements[index]
        filled = fill_missing(take_rows(x, index), observed, vae.guide.fill_value)
        with eval_mode(vae), explain_invalid_parameters("q(z given x) or p(z)"):
            q = vae.encode(filled, context, observed)
            prior = vae.prior_distribution(context) if shared is None else shared
        yield Chunk(filled, context, None if rows is None else rows[index], observed, q, prior)
