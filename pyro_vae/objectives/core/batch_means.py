"""The means over a batch, for objectives that are functions of them."""

import math
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.objectives.core.additive import Terms, shared_plates
from pyro_vae.objectives.core.closed_form_kl import alike
from pyro_vae.objectives.core.sites import Pair, check_vectorized
from pyro_vae.objectives.core.terms import total

__all__ = ["data_size", "mean_terms", "per_datum"]


class _Batch(NamedTuple):
    """A batch in means per datum, zero where nothing is observed.

    Attributes:
        distortion: -E log p(x given z), in nats per datum.
        rate: The KL, in nats per datum.
        size: The number of data that the batch stands for, scale and mask counted.
    """

    distortion: Tensor
    rate: Tensor
    size: Tensor


def mean_terms(runs: list[Terms], pairs: list[Pair], num_particles: int) -> _Batch:
    """Returns the means per datum of some runs.

    Raises:
        ValueError: If a site lies outside of the data plates, a plate is sequential, or the latent
            sites are scaled differently.
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
    for name in latent + pairs[0].observed() + pairs[0].guide_factors():
        check_vectorized(name, pairs[0].site(name), "an objective of means per datum")
    size = data_size([pairs[0].guide.nodes[name] for name in latent], data)
    gained = sum(total(terms.log_likelihood) for terms in runs)
    paid = sum(total(terms.rate) for terms in runs)
    return _Batch(
        -per_datum(gained / num_particles, size), per_datum(paid / num_particles, size), size
    )


def per_datum(sums: Tensor | float, size: Tensor) -> Tensor:
    """Returns sums over a batch divided by its size, zero for a batch of size zero."""
    return sums / torch.where(size > 0, size, 1.0)


def data_size(sites: list[Any], data: frozenset[tuple[int, str]]) -> Tensor:
    """Returns the number of data in the batch of some sites, with scale and mask.

    A datum counts if any of the sites is observed there.

    Arguments:
        sites: The latent sites of a datum.
        data: Dimension and name of each data plate.

    Raises:
        ValueError: If the sites have different scales.
    """
    first, value = sites[0], sites[0]["value"]
    if not all(alike(site["scale"], first["scale"]) for site in sites):
        scales = {site["name"]: site["scale"] for site in sites}
        raise ValueError(
            f"Expected one scale at all latent sites for an objective of means per datum, got "
            f"{scales}: the number of data is not defined. Use ELBO"
        )
    dims = frozenset(dim for dim, _ in data)
    present = reduce(torch.logical_or, (_present(site, dims) for site in sites))
    sizes = [frame.size for frame in first["cond_indep_stack"] if (frame.dim, frame.name) in data]
    weight = present.to(device=value.device, dtype=value.dtype) * first["scale"]
    return math.prod(sizes) * weight.mean()


def _present(site: Any, dims: frozenset[int]) -> Tensor:
    """Returns where in the data plates a site is not masked, 1 in all other dimensions."""
    mask = True if site["mask"] is None else site["mask"]
    present = torch.as_tensor(mask, device=site["value"].device)
    within = [dim for dim in range(-present.dim(), 0) if dim not in dims]
    return present.any(within, keepdim=True) if within else present
