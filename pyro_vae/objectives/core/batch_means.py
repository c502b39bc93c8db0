"""Means over a batch, for objectives that are functions of them."""

import math
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.objectives.core.sites import Pair, check_vectorized
from pyro_vae.objectives.core.terms import Terms, common_plates, is_known_equal, sum_terms

__all__ = ["compute_batch_means", "count_data", "divide_by_size"]


class _Batch(NamedTuple):
    """The means per datum of a batch, zero if nothing is observed.

    Attributes:
        distortion: -E log p(x given z), in nats per datum.
        rate: The KL, in nats per datum.
        size: The number of data that the batch represents, with scale and mask.
    """

    distortion: Tensor
    rate: Tensor
    size: Tensor


def compute_batch_means(runs: list[Terms], pairs: list[Pair], num_particles: int) -> _Batch:
    """Returns the means per datum over several runs.

    Raises:
        ValueError: If a site is outside of the data plates, a plate is sequential, or the latent
            sites have different scales.
    """
    all_terms = [term for terms in runs for term in (*terms.log_likelihood, *terms.rate)]
    data = common_plates(all_terms)
    outer = sorted({term.name for term in all_terms if not data <= term.frames})
    if not data and any(term.frames for term in all_terms):
        outer = sorted({term.name for term in all_terms})
    if outer:
        raise ValueError(
            f"Expected all sites within the same data plates for an objective of means per datum, "
            f"got {outer} outside of some of them: a share per datum is not defined. Use ELBO "
            f"or FreeBits"
        )
    latent = pairs[0].latent_sites + pairs[0].auxiliary_sites
    if not latent:
        raise ValueError("Expected a latent site for an objective of its rate, got none")
    for name in latent + pairs[0].observed_sites + pairs[0].guide_factors:
        check_vectorized(name, pairs[0].site(name), "an objective of means per datum")
    size = count_data([pairs[0].guide.nodes[name] for name in latent], data)
    log_likelihood = sum(sum_terms(terms.log_likelihood) for terms in runs)
    rate = sum(sum_terms(terms.rate) for terms in runs)
    return _Batch(
        -divide_by_size(log_likelihood / num_particles, size),
        divide_by_size(rate / num_particles, size),
        size,
    )


def divide_by_size(sums: Tensor | float, size: Tensor) -> Tensor:
    """Returns sums over a batch divided by its size, zero for a batch of size zero."""
    return sums / torch.where(size > 0, size, 1.0)


def count_data(sites: list[Any], data: frozenset[tuple[int, str]]) -> Tensor:
    """Returns the number of data in a batch, with scale and mask.

    A datum counts if any of the sites is unmasked there.

    Arguments:
        sites: The latent sites of a datum.
        data: The dimension and name of each data plate.

    Raises:
        ValueError: If the sites have different scales.
    """
    first, value = sites[0], sites[0]["value"]
    if not all(is_known_equal(site["scale"], first["scale"]) for site in sites):
        scales = {site["name"]: site["scale"] for site in sites}
        raise ValueError(
            f"Expected one scale at all latent sites for an objective of means per datum, got "
            f"{scales}: the number of data is not defined. Use ELBO"
        )
    dims = frozenset(dim for dim, _ in data)
    present = reduce(torch.logical_or, (_get_mask(site, dims) for site in sites))
    sizes = [frame.size for frame in first["cond_indep_stack"] if (frame.dim, frame.name) in data]
    weight = present.to(device=value.device, dtype=value.dtype) * first["scale"]
    return math.prod(sizes) * weight.mean()


def _get_mask(site: Any, dims: frozenset[int]) -> Tensor:
    """Returns the mask of a site over the data plates, of size 1 in all other dimensions."""
    mask = True if site["mask"] is None else site["mask"]
    present = torch.as_tensor(mask, device=site["value"].device)
    within = [dim for dim in range(-present.dim(), 0) if dim not in dims]
    return present.any(within, keepdim=True) if within else present
