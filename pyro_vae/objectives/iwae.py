"""The importance-weighted bound."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.objectives.base import Objective, Values
from pyro_vae.objectives.traces import PARTICLES, Pair, keep_dims, plates

__all__ = ["IWAE"]


class Weights(NamedTuple):
    """Log weights of shape ``(particles, *plates)``, and the scale of the data plates."""

    log_weights: Tensor
    log_likelihood: dict[str, Tensor]
    rate: dict[str, Tensor]
    scale: float


class IWAE(Objective):
    r"""The importance-weighted bound of each datum.

    .. math::
        \mathcal{L}_K = \sum_n s_n\, \mathbb{E} \log \frac1K \sum_{k=1}^K
        \frac{p(x_n, z_{nk})}{q(z_{nk} \mid x_n)}

    The weights of a datum are its own: everything within its plates is multiplied, nothing from
    another datum enters. The scale :math:`s_n = N / B` of a subsampled plate stands outside of the
    logarithm. :class:`pyro.infer.RenyiELBO` has it inside, which raises the weights to that power
    and exceeds the evidence.

    References:
        | Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2015),
          https://arxiv.org/abs/1509.00519

    Arguments:
        num_particles: The number of samples K for each datum.
        max_plate_nesting: As of :class:`~pyro_vae.objectives.Objective`.
        vectorize_particles: As of :class:`~pyro_vae.objectives.Objective`.
        retain_graph: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``num_particles`` is not a positive integer; when called, if a latent site
            of the guide is not reparameterized, if a latent or observed site lies outside of the
            data plates, or if sites are scaled differently.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae = VAE((1, 8, 8), 2)
        >>> IWAE(7).values(vae.model, vae.guide, torch.ones(5, 1, 8, 8)).log_weights.shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        num_particles: int = 5,
        *,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        super().__init__(
            num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the bound, summed over the data, as a scalar tensor."""
        weights = self._weights(model, guide, args, kwargs)
        return -weights.scale * log_mean_exp(weights.log_weights).sum()

    def values(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Values:
        """Returns the bound, its weights and its terms for each datum."""
        weights = self._weights(model, guide, args, kwargs)
        bound = log_mean_exp(weights.log_weights)
        return Values(bound, weights.log_likelihood, weights.rate, weights.log_weights)

    def _weights(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Weights:
        """Returns the log weights of each datum and particle."""
        pairs, dim = self._run(model, guide, args, kwargs)
        data, scale = check_local(pairs[0])
        gained = stack([densities(pair, data, dim)[0] for pair in pairs], dim)
        paid = stack([densities(pair, data, dim)[1] for pair in pairs], dim)
        zero = torch.zeros(())
        log_weights = sum(gained.values(), zero) - sum(paid.values(), zero)
        log_likelihood = {name: value.mean(0) for name, value in gained.items()}
        rate = {name: value.mean(0) for name, value in paid.items()}
        return Weights(log_weights, log_likelihood, rate, scale)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Returns the logarithm of the mean weight over the first dimension."""
    return log_weights.logsumexp(0) - math.log(log_weights.shape[0])


def check_local(pair: Pair) -> tuple[frozenset[int], float]:
    """Returns the data plates and their scale.

    Raises:
        ValueError: If the weights of a datum would not be its own.
    """
    latent = pair.latent() + pair.auxiliary()
    places = {name: plates(pair.guide.nodes[name]) for name in latent}
    if not places:
        raise ValueError("Expected a latent site for an importance-weighted bound, got none")
    data = frozenset.union(*places.values())
    outer = [name for name, dims in places.items() if dims != data]
    if outer:
        raise ValueError(
            f"Expected all latent sites in the same plates, got {outer} outside of the plates of "
            f"{[name for name in latent if name not in outer]}: given such a site the data are not "
            f"independent, and the bound would be that of the whole batch at once. Use ELBO, or "
            f"make it a parameter"
        )
    for name in pair.observed() + pair.guide_factors():
        site = (pair.model if name in pair.model.nodes else pair.guide).nodes[name]
        if not data <= plates(site):
            raise ValueError(
                f"Expected all observed sites within the plates of the latent sites, got {name!r} "
                f"outside: its density would be shared by all weights. Move it into the plate, or "
                f"use ELBO"
            )
    return data, common_scale(pair)


def common_scale(pair: Pair) -> float:
    """Returns the one scale of all sites.

    Raises:
        ValueError: If there is more than one, or a plate is run sequentially.
    """
    members = [(pair.guide, n) for n in pair.latent() + pair.auxiliary() + pair.guide_factors()]
    members += [(pair.model, n) for n in pair.latent() + pair.observed()]
    scales: dict[str, Any] = {}
    for trace, name in members:
        site = trace.nodes[name]
        scales[name] = site["scale"]
        loops = [f.name for f in site["cond_indep_stack"] if not f.vectorized]
        if loops and PARTICLES not in loops:
            raise ValueError(
                f"Expected vectorized plates for an importance-weighted bound, got {name!r} in "
                f"the loop over {loops[0]!r}: open it by `with pyro.plate(...)`"
            )
        first = next(iter(scales.values()))
        if not isinstance(first, (int, float)) or scales[name] != first:
            raise ValueError(
                f"Expected one scale, a number, at all sites of an importance-weighted bound, got "
                f"{scales}: within the logarithm a scale raises the weights to a power. Scale the "
                f"loss instead, or use ELBO, whose beta weights the KL"
            )
    return float(next(iter(scales.values())))


def densities(
    pair: Pair, data: frozenset[int], dim: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns log p of the observed sites, and log q - log p of the latent ones, by datum."""

    def log_density(trace: Any, name: str) -> Tensor:
        site = trace.nodes[name]
        value = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
        return keep_dims(value, data, dim)

    gained = {name: log_density(pair.model, name) for name in pair.observed()}
    gained |= {name: -log_density(pair.guide, name) for name in pair.guide_factors()}
    paid = {name: log_density(pair.guide, name) for name in pair.auxiliary()}
    for name in pair.latent():
        paid[name] = log_density(pair.guide, name) - log_density(pair.model, name)
    return gained, paid


def stack(runs: list[dict[str, Tensor]], dim: int | None) -> dict[str, Tensor]:
    """Returns the values with particles leftmost, from one vectorized run or from several."""
    if dim is not None:
        return runs[0]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
