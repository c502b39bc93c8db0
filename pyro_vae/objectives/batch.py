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
    outer = sorted({term.name for term in every if not data <= term.frames})
    if not data and any(term.frames for term in every):
        outer = sorted({term.name for term in every})
    if outer:
        raise ValueError(
            f"Expected all sites within the same data plates for an objective of means per datum, "
            f"got {outer} outside of plates of others: its share of a datum cannot be told. Use "
            f"ELBO or FreeBits"
        )
    latent = pairs[0].latent() + pairs[0].auxiliary()
    if not latent:
        raise ValueError("Expected a latent site for an objective of its rate, got none")
    size = data_size(pairs[0].guide.nodes[latent[0]], data)
    gained = sum(total(terms.log_likelihood) for terms in runs)
    paid = sum(total(terms.rate) for terms in runs)
    return Batch(-gained / num_particles / size, paid / num_particles / size, size)


def data_size(site: Any, data: frozenset[tuple[int, str]]) -> Tensor:
    """Returns how many data a site's batch stands for, scale and mask counted."""
    sizes = [f.size for f in site["cond_indep_stack"] if (f.dim, f.name) in data]
    value, scale, mask = site["value"], site["scale"], site["mask"]
    weight = value.new_ones(()) if mask is None or mask is True else torch.as_tensor(mask)
    weight = weight.to(device=value.device, dtype=value.dtype) * scale
    return math.prod(sizes) * weight.mean()
