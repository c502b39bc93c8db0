"""The means over a batch, for objectives that are functions of them."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.objectives.elbo import Terms, shared_plates
from pyro_vae.objectives.terms import total
from pyro_vae.objectives.traces import Pair

__all__ = ["Batch", "data_size", "mean_terms"]


class Batch(NamedTuple):
    """A batch in means per datum.

    Attributes:
        distortion: -E log p(x given z), in nats per datum.
        rate: The KL, in nats per datum.
        size: The number of data that the batch stands for, scale and mask counted.
    """

    distortion: Tensor
    rate: Tensor
    size: Tensor


def mean_terms(runs: list[Terms], pairs: list[Pair], num_particles: int) -> Batch:
    """Returns the means per datum of some runs.

    Raises:
        ValueError: If a site lies outside of the data plates.
    """
    every = [term for terms in runs for term in (*terms.log_likelihood, *terms.rate)]
    data = shared_plates(every)
    outer = sorted({term.name for term in every if not data <= term.plates})
    if outer:
        raise ValueError(
            f"Expected all sites within the data plates for an objective of means per datum, got "
            f"{outer} outside: its share of a datum cannot be told. Use ELBO or FreeBits"
        )
    latent = pairs[0].guide.nodes[(pairs[0].latent() + pairs[0].auxiliary())[0]]
    size = data_size(latent, data)
    gained = sum(total(terms.log_likelihood) for terms in runs)
    paid = sum(total(terms.rate) for terms in runs)
    return Batch(-gained / num_particles / size, paid / num_particles / size, size)


def data_size(site: Any, data: frozenset[int]) -> Tensor:
    """Returns how many data a site's batch stands for: the plates' full sizes, rows masked out."""
    full = [
        frame.size if frame.full_size is None else frame.full_size
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.dim in data
    ]
    value, mask = site["value"], site["mask"]
    size = torch.full((), float(math.prod(full)), dtype=value.dtype, device=value.device)
    if not isinstance(mask, Tensor):
        return size
    return size * mask.to(value.dtype).mean()
