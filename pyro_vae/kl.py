r"""Closed-form Kullback-Leibler divergences.

PyTorch dispatches :math:`\mathrm{KL}(q \,\|\, p)` by ``isinstance``: a user's subclass of a normal
that changes its density silently inherits the normal's divergence. :func:`closed_form` uses a
formula only for the exact classes it was written for, and otherwise returns a reason. Some formulas
of PyTorch's registry are wrong or not finite for legal parameters, or lose gradients. These are
refused with a reason, or replaced.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence
from torch.nn.functional import softplus

from pyro_vae.distributions.divergences import find_formula
from pyro_vae.distributions.flatten import iterate_members
from pyro_vae.validation import describe_value

__all__ = ["closed_form"]

_TRUSTED = ("torch.distributions.", "pyro.distributions.", "pyro_vae.distributions.")

_D = torch.distributions

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
"""Pairs of the registry that are refused, with the reasons."""

_GAUSSIAN = (_D.Normal, _D.MultivariateNormal, _D.LowRankMultivariateNormal)
"""Classes whose formulas broadcast batch shapes."""

_WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)


def closed_form(q: Distribution, p: Distribution) -> tuple[Tensor | None, str]:
    r"""Returns :math:`\mathrm{KL}(q \,\|\, p)` in nats, or ``None``, and an explanation.

    Arguments:
        q: The first distribution, of shape ``(*batch, *event)``.
        p: The second, of the same event shape.

    Returns:
        The divergence of shape ``batch``, or ``None`` if no closed form is known; and one line with
        the formula or the reason for its absence.

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
        _find_batch_doubt(q, p),
        _find_doubt(q),
        _find_doubt(p),
        _find_pair_doubt(q, p),
        _find_mask_doubt(q, p),
        _find_transform_doubt(q, p),
    ]
    for reason in filter(None, doubts):
        return None, reason
    pair = f"{_core_name(q)} and {_core_name(p)}"
    kl = _try_formula(find_formula(q, p) or _compute_kl, q, p)
    if kl is None:
        return None, f"no closed form is known for {pair}"
    return kl, f"closed form for {pair}"


def _try_formula(formula: Callable[..., Tensor], q: Distribution, p: Distribution) -> Tensor | None:
    """Returns the divergence, or ``None`` if the registry has no formula for this pair."""
    try:
        return formula(*_expand_to_same_batch(q, p))
    except NotImplementedError:
        return None


def unwrap_layers(d: Distribution) -> list[Distribution]:
    """Returns a distribution and the distributions that it wraps, outermost first."""
    layers = [d]
    while isinstance(layers[-1], _WRAPPERS):
        layers.append(layers[-1].base_dist)
    return layers


def _core_name(d: Distribution) -> str:
    """Returns the name of the class inside all wrappers."""
    return type(unwrap_layers(d)[-1]).__name__


def _is_trusted(part: object) -> bool:
    """Whether the registry's formulas were written for exactly this class."""
    return f"{type(part).__module__}.".startswith(_TRUSTED)


def _find_doubt(d: Distribution) -> str | None:
    """Returns a reason why the registry's formulas may not hold for a distribution, if any."""
    layers = unwrap_layers(d)
    for layer in layers:
        if not _is_trusted(layer):
            name = type(layer).__name__
            return f"{name} is a custom class, whose density may differ from its parent's"
    core = layers[-1]
    if not isinstance(core, torch.distributions.TransformedDistribution):
        return None
    for transform in core.transforms:
        if not transform.bijective:
            name = type(transform).__name__
            return f"{name} is not bijective, so that the KL before the map is only a bound"
    return _find_doubt(core.base_dist)


def _find_pair_doubt(q: Distribution, p: Distribution) -> str | None:
    """Returns the reason why the registry's formula for two classes is refused, if it is."""
    for a, b in _core_pairs(q, p):
        for (first, second), reason in _REFUSED.items():
            if isinstance(a, first) and isinstance(b, second):
                return reason
    return None


def _find_mask_doubt(q: Distribution, p: Distribution) -> str | None:
    """Returns a reason if the masks differ; the registry would combine them."""
    masks = [
        [layer._mask for layer in unwrap_layers(d) if isinstance(layer, dist.MaskedDistribution)]
        for d in (q, p)
    ]
    same = len(masks[0]) == len(masks[1]) and all(
        a is b and a is not False for a, b in zip(*masks, strict=True)
    )
    return None if same else "the two are masked differently"


def _find_transform_doubt(q: Distribution, p: Distribution) -> str | None:
    """Returns a reason if two transforms that compare equal may be different maps.

    The registry treats transforms of equal values as one map, which gives a zero gradient. The
    divergence has that gradient only if both are the same object or neither is trained.
    """
    for a, b in _core_pairs(q, p):
        chains = [getattr(d, "transforms", []) for d in (a, b)]
        for first, second in zip(*chains, strict=False):
            for transform in (first, second) if first is not second else ():
                name = type(transform).__name__
                if not _is_trusted(transform):
                    return f"{name} is a custom class, whose map may differ from its parent's"
                if any(value.requires_grad for value in _iterate_tensors(transform)):
                    return f"{name} is trained, and not the same object for both"
    return None


def _core_pairs(q: Distribution, p: Distribution) -> Iterator[tuple[Any, Any]]:
    """Yields the pair inside all wrappers, then the pairs of base distributions of transforms."""
    a, b = unwrap_layers(q)[-1], unwrap_layers(p)[-1]
    yield a, b
    if isinstance(a, _D.TransformedDistribution) and isinstance(b, _D.TransformedDistribution):
        yield from _core_pairs(a.base_dist, b.base_dist)


def _iterate_tensors(part: object) -> Iterator[Tensor]:
    """Yields the tensors on which a transform depends."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, torch.nn.Module):
        yield from part.parameters()
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _iterate_tensors(item)
    elif isinstance(part, (_D.Transform, Distribution)):
        for _, value in iterate_members(part):
            yield from _iterate_tensors(value)


def _find_batch_doubt(q: Distribution, p: Distribution) -> str | None:
    a, b = tuple(q.batch_shape), tuple(p.batch_shape)
    fits = all(x == y or 1 in (x, y) for x, y in zip(a[::-1], b[::-1], strict=False))
    return None if fits else f"batch shapes do not broadcast, {a} and {b}"


def _expand_to_same_batch(q: Distribution, p: Distribution) -> tuple[Distribution, Distribution]:
    """Expands both to one batch shape; formulas that assign by index need it."""
    gaussian = all(isinstance(unwrap_layers(d)[-1], _GAUSSIAN) for d in (q, p))
    if q.batch_shape == p.batch_shape or gaussian:
        return q, p
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    return q.expand(shape), p.expand(shape)


def _compute_kl(q: Any, p: Any) -> Tensor:
    """Returns the registry's divergence, or a replacement for some discrete classes."""
    if not isinstance(unwrap_layers(q)[-1], (*_REPLACED, _D.OneHotCategorical)):
        return kl_divergence(q, p)
    if isinstance(q, _D.Independent) and isinstance(p, _D.Independent):
        ndims = q.reinterpreted_batch_ndims
        if ndims == p.reinterpreted_batch_ndims:
            return sum_rightmost(_compute_kl(q.base_dist, p.base_dist), ndims)
    if isinstance(q, dist.MaskedDistribution) and isinstance(p, dist.MaskedDistribution):
        return scale_and_mask(_compute_kl(q.base_dist, p.base_dist), mask=q._mask)
    if isinstance(q, _D.OneHotCategorical) and isinstance(p, _D.OneHotCategorical):
        return _categorical_kl(q._categorical, p._categorical)
    for kind, formula in _REPLACED.items():
        if isinstance(q, kind) and isinstance(p, kind):
            return formula(q, p)
    return kl_divergence(q, p)


def _bernoulli_kl(q: _D.Bernoulli, p: _D.Bernoulli) -> Tensor:
    """Returns the divergence from logits, because probabilities round to zero or one."""
    if _is_given_by_probs(p):
        return kl_divergence(q, p)
    log_odds = softplus(-p.logits) - softplus(-q.logits), softplus(p.logits) - softplus(q.logits)
    return q.probs * log_odds[0] + (1 - q.probs) * log_odds[1]


def _categorical_kl(q: _D.Categorical, p: _D.Categorical) -> Tensor:
    """Returns the divergence from logits, because probabilities round to zero."""
    if _is_given_by_probs(p):
        return kl_divergence(q, p)
    possible = q.probs > 0
    terms = q.probs * torch.where(possible, q.logits - p.logits, 0.0)
    return torch.where(possible, terms, 0.0).sum(-1)


def _poisson_kl(q: _D.Poisson, p: _D.Poisson) -> Tensor:
    """Returns the divergence, including the case of a zero rate."""
    is_positive = q.rate > 0
    # Dummy rates of one, because the gradient of torch.where is NaN if its unused branch is.
    rates = [torch.where(is_positive, d.rate, torch.ones_like(d.rate)) for d in (q, p)]
    terms = q.rate * (rates[0].log() - rates[1].log())
    return terms - q.rate + p.rate


def _is_given_by_probs(d: Any) -> bool:
    return d._param is vars(d).get("probs")


_REPLACED: dict[type[Distribution], Callable[[Any, Any], Tensor]] = {
    _D.Bernoulli: _bernoulli_kl,
    _D.Categorical: _categorical_kl,
    _D.Poisson: _poisson_kl,
}
