r"""Closed-form Kullback-Leibler divergences.

PyTorch dispatches :math:`\mathrm{KL}(q \,\|\, p)` by ``isinstance``: a user's subclass of a normal
that changes its density silently inherits the normal's divergence. :func:`closed_form` trusts a
formula only for the very classes it was written for, and says why it has none.
"""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence, register_kl

from pyro_vae.distributions import FullNormal

__all__ = ["closed_form"]

TRUSTED = ("torch.distributions.", "pyro.distributions.", "pyro_vae.distributions.")

WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)


def closed_form(q: Distribution, p: Distribution) -> tuple[Tensor | None, str]:
    r"""Returns :math:`\mathrm{KL}(q \,\|\, p)` in nats, or ``None``, and the reason.

    Arguments:
        q: The first distribution, of shape ``(*batch, *event)``.
        p: The second, of the same event shape.

    Returns:
        The divergence of shape ``batch``, or ``None`` where no closed form is known; and one line
        that says which formula was used or why there is none.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> q = dist.Normal(torch.ones(3), torch.ones(3)).to_event(1)
        >>> p = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
        >>> closed_form(q, p)
        (tensor(1.5000), 'closed form for Normal and Normal')
        >>> closed_form(q, dist.StudentT(4.0, torch.zeros(3), 1.0).to_event(1))
        (None, 'no closed form is known for Normal and StudentT')
    """
    if q.event_shape != p.event_shape:
        return None, f"event shapes differ, {tuple(q.event_shape)} and {tuple(p.event_shape)}"
    doubts = [doubt(q), doubt(p), doubt_of_masks(q, p), doubt_of_transforms(q, p)]
    for reason in filter(None, doubts):
        return None, reason
    pair = f"{core_name(q)} and {core_name(p)}"
    formula = full_to_independent if is_full_to_independent(q, p) else kl_divergence
    kl = attempt(formula, q, p)
    if kl is None:
        return None, f"no closed form is known for {pair}"
    return kl, f"closed form for {pair}"


def attempt(formula: Callable[..., Tensor], q: Distribution, p: Distribution) -> Tensor | None:
    """Returns the divergence, or ``None`` where the registry has no formula for this pair."""
    try:
        return formula(q, p)
    except NotImplementedError:
        return None


def layers(d: Distribution) -> list[Distribution]:
    """Returns a distribution and what it wraps, outermost first."""
    found = [d]
    while isinstance(found[-1], WRAPPERS):
        found.append(found[-1].base_dist)
    return found


def core_name(d: Distribution) -> str:
    """Returns the name of the class inside all wrappers."""
    return type(layers(d)[-1]).__name__


def trusted(part: object) -> bool:
    """Tells whether a formula was written for this very class."""
    return f"{type(part).__module__}.".startswith(TRUSTED)


def doubt(d: Distribution) -> str | None:
    """Returns why the registry's formulas may not hold for a distribution, if they may not."""
    found = layers(d)
    for layer in found:
        if not trusted(layer):
            name = type(layer).__name__
            return f"{name} is a class of its own, whose density may not be its parent's"
    core = found[-1]
    if not isinstance(core, torch.distributions.TransformedDistribution):
        return None
    for transform in core.transforms:
        if not transform.bijective:
            name = type(transform).__name__
            return f"{name} is not bijective, so that the KL of what it maps is only a bound"
    return doubt(core.base_dist)


def doubt_of_masks(q: Distribution, p: Distribution) -> str | None:
    """Returns that the two are masked differently, where the registry would join the masks."""
    masks = [
        [layer._mask for layer in layers(d) if isinstance(layer, dist.MaskedDistribution)]
        for d in (q, p)
    ]
    same = len(masks[0]) == len(masks[1]) and all(
        a is b and a is not False for a, b in zip(*masks, strict=True)
    )
    return None if same else "the two are masked differently"


def doubt_of_transforms(q: Distribution, p: Distribution) -> str | None:
    """Returns that a user's transform may only look like the other's, if it may."""
    chains = [getattr(layers(d)[-1], "transforms", []) for d in (q, p)]
    for a, b in zip(*chains, strict=False):
        for transform in (a, b):
            if a is not b and not trusted(transform):
                name = type(transform).__name__
                return f"{name} is a class of its own, whose map may not be its parent's"
    return None


def is_full_to_independent(q: Distribution, p: Distribution) -> bool:
    """Tells whether this is a multivariate normal against independent normals."""
    return (
        isinstance(q, torch.distributions.MultivariateNormal)
        and isinstance(p, torch.distributions.Independent)
        and p.reinterpreted_batch_ndims == 1
        and isinstance(p.base_dist, torch.distributions.Normal)
    )


@register_kl(FullNormal, torch.distributions.Independent)
def full_to_independent(
    q: torch.distributions.MultivariateNormal, p: torch.distributions.Independent
) -> Tensor:
    r"""Returns the divergence of a multivariate normal from independent normals.

    .. math::
        \mathrm{KL} = \tfrac12 \sum_d \left[ \frac{\Sigma_{dd} + (\mu_d - m_d)^2}{s_d^2} - 1
        + \log s_d^2 \right] - \sum_d \log L_{dd}, \qquad \Sigma = L L^\top
    """
    if not is_full_to_independent(q, p) or doubt(q) or doubt(p):
        raise NotImplementedError
    m, s = p.base_dist.loc, p.base_dist.scale
    tril = q.scale_tril
    variance = tril.pow(2).sum(-1)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * ((variance + (q.loc - m) ** 2) / s**2 - 1 + 2 * s.log()).sum(-1) - log_det
