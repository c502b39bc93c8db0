r"""Closed-form Kullback-Leibler divergences.

PyTorch dispatches :math:`\mathrm{KL}(q \,\|\, p)` by ``isinstance``: a user's subclass of a normal
that changes its density silently inherits the normal's divergence. :func:`closed_form` trusts a
formula only for the very classes it was written for, and says why it has none. Some formulas of
PyTorch's registry are wrong or not finite for legal parameters, or lose gradients: those are
refused, each for a reason, or replaced.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence, register_kl
from torch.nn.functional import softplus

from pyro_vae.distributions import FullNormal
from pyro_vae.validation import describe_value

__all__ = ["closed_form"]

_TRUSTED = ("torch.distributions.", "pyro.distributions.", "pyro_vae.distributions.")

_D = torch.distributions

INVERSE = type(_D.ExpTransform().inv)
"""The private class of inverse transforms, whose name other libraries change."""

_ENDS = "PyTorch's formula is infinite where both supports end at the same point"
_EDGES = "PyTorch's formula is not finite for probabilities of zero and one"
_SLOPE = "the gradient of PyTorch's formula is NaN where both supports end at the same point"
_ZERO = "PyTorch's formula is not the divergence for a rate of zero"

_REFUSED: dict[tuple[type[Distribution], type[Distribution]], str] = {
    (_D.Uniform, _D.ContinuousBernoulli): _ENDS,
    (_D.ContinuousBernoulli, _D.Uniform): _ENDS,
    (_D.Uniform, _D.Beta): _SLOPE,
    (_D.Uniform, _D.Gamma): _SLOPE,
    (_D.Geometric, _D.Geometric): _EDGES,
    (_D.Binomial, _D.Binomial): _EDGES,
    (_D.Bernoulli, _D.Poisson): _ZERO,
    (_D.Poisson, _D.Bernoulli): _ZERO,
    (_D.Poisson, _D.Binomial): _ZERO,
    (_D.Wishart, _D.Wishart): "PyTorch's formula has no gradient by the first distribution",
    (dist.Delta, Distribution): "a point mass has no divergence from a density",
}
"""Pairs of the registry that are not used, and why."""

_GAUSSIAN = (_D.Normal, _D.MultivariateNormal, _D.LowRankMultivariateNormal)
"""Classes whose formulas broadcast batch shapes."""

_WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)


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
    for name, value in (("q", q), ("p", p)):
        if not isinstance(value, Distribution):
            raise ValueError(f"Expected {name} to be a distribution, got {describe_value(value)}")
    if q.event_shape != p.event_shape:
        return None, f"event shapes differ, {tuple(q.event_shape)} and {tuple(p.event_shape)}"
    doubts = [
        _doubt_of_batches(q, p),
        _doubt(q),
        _doubt(p),
        _doubt_of_pair(q, p),
        _doubt_of_masks(q, p),
        _doubt_of_transforms(q, p),
    ]
    for reason in filter(None, doubts):
        return None, reason
    pair = f"{_core_name(q)} and {_core_name(p)}"
    formula = _full_to_independent if _is_full_to_independent(q, p) else _divergence
    kl = _attempt(formula, q, p)
    if kl is None:
        return None, f"no closed form is known for {pair}"
    return kl, f"closed form for {pair}"


def _attempt(formula: Callable[..., Tensor], q: Distribution, p: Distribution) -> Tensor | None:
    """Returns the divergence, or ``None`` where the registry has no formula for this pair."""
    try:
        return formula(*_same_batch(q, p))
    except NotImplementedError:
        return None


def layers(d: Distribution) -> list[Distribution]:
    """Returns a distribution and what it wraps, outermost first."""
    found = [d]
    while isinstance(found[-1], _WRAPPERS):
        found.append(found[-1].base_dist)
    return found


def _core_name(d: Distribution) -> str:
    """Returns the name of the class inside all wrappers."""
    return type(layers(d)[-1]).__name__


def _trusted(part: object) -> bool:
    """Tells whether a formula was written for this very class."""
    return f"{type(part).__module__}.".startswith(_TRUSTED)


def _doubt(d: Distribution) -> str | None:
    """Returns why the registry's formulas may not hold for a distribution, if they may not."""
    found = layers(d)
    for layer in found:
        if not _trusted(layer):
            name = type(layer).__name__
            return f"{name} is a class of its own, whose density may not be its parent's"
    core = found[-1]
    if not isinstance(core, torch.distributions.TransformedDistribution):
        return None
    for transform in core.transforms:
        if not transform.bijective:
            name = type(transform).__name__
            return f"{name} is not bijective, so that the KL of what it maps is only a bound"
    return _doubt(core.base_dist)


def _doubt_of_pair(q: Distribution, p: Distribution) -> str | None:
    """Returns why the registry's formula for two classes is refused, if it is."""
    for a, b in _levels(q, p):
        for (first, second), reason in _REFUSED.items():
            if isinstance(a, first) and isinstance(b, second):
                return reason
    return None


def _doubt_of_masks(q: Distribution, p: Distribution) -> str | None:
    """Returns that the two are masked differently, where the registry would join the masks."""
    masks = [
        [layer._mask for layer in layers(d) if isinstance(layer, dist.MaskedDistribution)]
        for d in (q, p)
    ]
    same = len(masks[0]) == len(masks[1]) and all(
        a is b and a is not False for a, b in zip(*masks, strict=True)
    )
    return None if same else "the two are masked differently"


def _doubt_of_transforms(q: Distribution, p: Distribution) -> str | None:
    """Returns that a user's transform may only look like the other's, if it may.

    The registry takes transforms of equal values for one map, whose gradient is then zero. That of
    the divergence is not, unless both are the same object or neither is trained.
    """
    for a, b in _levels(q, p):
        chains = [getattr(d, "transforms", []) for d in (a, b)]
        for first, second in zip(*chains, strict=False):
            for transform in (first, second) if first is not second else ():
                name = type(transform).__name__
                if not _trusted(transform):
                    return f"{name} is a class of its own, whose map may not be its parent's"
                if any(value.requires_grad for value in _tensors(transform)):
                    return f"{name} is trained, and not the same object for both"
    return None


def _levels(q: Distribution, p: Distribution) -> Iterator[tuple[Any, Any]]:
    """Yields the pair inside all wrappers, then those that transforms are applied to."""
    a, b = layers(q)[-1], layers(p)[-1]
    yield a, b
    if isinstance(a, _D.TransformedDistribution) and isinstance(b, _D.TransformedDistribution):
        yield from _levels(a.base_dist, b.base_dist)


def _tensors(part: object) -> Iterator[Tensor]:
    """Yields the tensors that a transform is made of."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, torch.nn.Module):
        yield from part.parameters()
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _tensors(item)
    elif isinstance(part, (_D.Transform, Distribution)):
        for name, value in vars(part).items():
            # The cache holds arguments, and the inverse refers back.
            if name != "_cached_x_y" and not (name == "_inv" and not isinstance(part, INVERSE)):
                yield from _tensors(value)


def _doubt_of_batches(q: Distribution, p: Distribution) -> str | None:
    a, b = tuple(q.batch_shape), tuple(p.batch_shape)
    fits = all(x == y or 1 in (x, y) for x, y in zip(a[::-1], b[::-1], strict=False))
    return None if fits else f"batch shapes do not broadcast, {a} and {b}"


def _same_batch(q: Distribution, p: Distribution) -> tuple[Distribution, Distribution]:
    """Returns both with one batch shape, as formulas need that assign by index."""
    gaussian = all(isinstance(layers(d)[-1], _GAUSSIAN) for d in (q, p))
    if q.batch_shape == p.batch_shape or gaussian:
        return q, p
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    return q.expand(shape), p.expand(shape)


def _divergence(q: Any, p: Any) -> Tensor:
    """Returns the registry's divergence, with formulas of discrete classes replaced."""
    if not isinstance(layers(q)[-1], (*_OWN, _D.OneHotCategorical)):
        return kl_divergence(q, p)
    if isinstance(q, _D.Independent) and isinstance(p, _D.Independent):
        ndims = q.reinterpreted_batch_ndims
        if ndims == p.reinterpreted_batch_ndims:
            return sum_rightmost(_divergence(q.base_dist, p.base_dist), ndims)
    if isinstance(q, dist.MaskedDistribution) and isinstance(p, dist.MaskedDistribution):
        return scale_and_mask(_divergence(q.base_dist, p.base_dist), mask=q._mask)
    if isinstance(q, _D.OneHotCategorical) and isinstance(p, _D.OneHotCategorical):
        return _categorical(q._categorical, p._categorical)
    for kind, formula in _OWN.items():
        if isinstance(q, kind) and isinstance(p, kind):
            return formula(q, p)
    return kl_divergence(q, p)


def _bernoulli(q: _D.Bernoulli, p: _D.Bernoulli) -> Tensor:
    """Returns the divergence by logits, as probabilities round to zero or one."""
    if _is_given_by_probs(p):
        return kl_divergence(q, p)
    log_odds = softplus(-p.logits) - softplus(-q.logits), softplus(p.logits) - softplus(q.logits)
    return q.probs * log_odds[0] + (1 - q.probs) * log_odds[1]


def _categorical(q: _D.Categorical, p: _D.Categorical) -> Tensor:
    """Returns the divergence by logits, as probabilities round to zero."""
    if _is_given_by_probs(p):
        return kl_divergence(q, p)
    possible = q.probs > 0
    terms = q.probs * torch.where(possible, q.logits - p.logits, 0.0)
    return torch.where(possible, terms, 0.0).sum(-1)


def _poisson(q: _D.Poisson, p: _D.Poisson) -> Tensor:
    """Returns the divergence, which is also defined for a rate of zero."""
    positive = q.rate > 0
    # Safe values, as torch.where passes NaN to the gradient of the branch that it drops.
    rates = [torch.where(positive, d.rate, torch.ones_like(d.rate)) for d in (q, p)]
    terms = q.rate * (rates[0].log() - rates[1].log())
    return terms - q.rate + p.rate


def _is_given_by_probs(d: Any) -> bool:
    return d._param is vars(d).get("probs")


_OWN: dict[type[Distribution], Callable[[Any, Any], Tensor]] = {
    _D.Bernoulli: _bernoulli,
    _D.Categorical: _categorical,
    _D.Poisson: _poisson,
}


def _is_full_to_independent(q: Distribution, p: Distribution) -> bool:
    """Tells whether this is a multivariate normal against independent normals."""
    return (
        isinstance(q, torch.distributions.MultivariateNormal)
        and isinstance(p, torch.distributions.Independent)
        and p.reinterpreted_batch_ndims == 1
        and isinstance(p.base_dist, torch.distributions.Normal)
    )


@register_kl(FullNormal, torch.distributions.Independent)
def _full_to_independent(
    q: torch.distributions.MultivariateNormal, p: torch.distributions.Independent
) -> Tensor:
    r"""Returns the divergence of a multivariate normal from independent normals.

    .. math::
        \mathrm{KL} = \tfrac12 \sum_d \left[ \frac{\Sigma_{dd} + (\mu_d - m_d)^2}{s_d^2} - 1
        + \log s_d^2 \right] - \sum_d \log L_{dd}, \qquad \Sigma = L L^\top
    """
    if not _is_full_to_independent(q, p) or _doubt(q) or _doubt(p):
        raise NotImplementedError
    m, s = p.base_dist.loc, p.base_dist.scale
    tril = q.scale_tril
    variance = tril.pow(2).sum(-1)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * ((variance + (q.loc - m) ** 2) / s**2 - 1 + 2 * s.log()).sum(-1) - log_det
