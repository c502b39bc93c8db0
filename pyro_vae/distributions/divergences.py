"""Closed-form KLs of pairs that the registries of PyTorch and Pyro lack.

Each formula is registered for a class of this package only, and for the exact classes that it was
derived for, so that no other pair changes.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.kl import kl_divergence, register_kl

from pyro_vae.distributions.full_normal import FullNormal
from pyro_vae.distributions.low_rank_normal import LowRankNormal
from pyro_vae.distributions.one_hot import OneHot, StraightThroughOneHot
from pyro_vae.distributions.power_spherical import PowerSpherical, UniformSphere
from pyro_vae.distributions.process import GaussianProcess
from pyro_vae.distributions.student_t import StudentT

__all__ = ["find_formula"]

_D = torch.distributions

_NORMALS = (_D.Normal, dist.Normal)
_LAPLACES = (_D.Laplace, dist.Laplace)
_JOINT = (
    _D.MultivariateNormal, dist.MultivariateNormal, FullNormal, GaussianProcess,
    _D.LowRankMultivariateNormal, dist.LowRankMultivariateNormal, LowRankNormal,
)  # fmt: skip
_DENSE = (_D.MultivariateNormal, dist.MultivariateNormal, GaussianProcess)


def find_formula(q: Distribution, p: Distribution) -> Callable[[Any, Any], Tensor] | None:
    """Returns the formula of this module for two distributions, or ``None``."""
    if type(q) in _JOINT and _is_product(p, (*_NORMALS, *_LAPLACES)):
        return _joint_to_product_kl
    if type(p) in _DENSE and _is_product(q, (*_NORMALS, *_LAPLACES, StudentT)):
        return _product_to_joint_kl
    return None


def _is_product(d: Any, classes: tuple[type, ...]) -> bool:
    """Whether a distribution over vectors has independent elements of one of the classes."""
    return (
        isinstance(d, _D.Independent)
        and d.reinterpreted_batch_ndims == 1
        and type(d.base_dist) in classes
    )


def _check_events(q: Distribution, p: Distribution) -> None:
    """Raises a ``ValueError`` for vectors of different length, which would be broadcast."""
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"Expected distributions of one event shape, got {tuple(q.event_shape)} and "
            f"{tuple(p.event_shape)}"
        )


@register_kl(FullNormal, _D.Independent)
@register_kl(LowRankNormal, _D.Independent)
def _joint_to_product_kl(q: Any, p: Any) -> Tensor:
    r"""Returns the divergence of a multivariate normal from independent normals or Laplaces.

    .. math::
        \mathrm{KL} = \sum_d \mathrm{KL}(q_d \,\|\, p_d) + \sum_d H(q_d) - H(q)
    """
    if find_formula(q, p) is not _joint_to_product_kl:
        raise NotImplementedError
    _check_events(q, p)
    variance = q.variance
    log_det = _half_log_det(q)
    if type(p.base_dist) in _NORMALS:
        m, s = p.base_dist.loc, p.base_dist.scale
        return 0.5 * ((variance + (q.loc - m) ** 2) / s**2 - 1 + 2 * s.log()).sum(-1) - log_det
    scale = variance.sqrt()
    marginal = kl_divergence(dist.Normal(q.loc, scale, validate_args=False), p.base_dist).sum(-1)
    return marginal + scale.log().sum(-1) - log_det


def _half_log_det(q: Any) -> Tensor:
    """Returns half of the log determinant of a covariance."""
    if isinstance(q, _D.MultivariateNormal):
        return q._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    # det(D + W W^T) = det(D) det(I + W^T D^-1 W).
    capacitance = q._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * q._unbroadcasted_cov_diag.log().sum(-1) + capacitance


@register_kl(_D.Independent, GaussianProcess)
def _product_to_joint_kl(q: Any, p: Any) -> Tensor:
    r"""Returns the divergence of independent elements from a multivariate normal.

    .. math::
        \mathrm{KL} = \tfrac12 \left[ \sum_d v_d\, (\Sigma^{-1})_{dd}
        + (m - \mu)^\top \Sigma^{-1} (m - \mu) + \log \det 2 \pi \Sigma \right] - \sum_d H(q_d)

    Here :math:`m` and :math:`v` are the means and variances of the elements.
    """
    if find_formula(q, p) is not _product_to_joint_kl:
        raise NotImplementedError
    _check_events(q, p)
    tril = p._unbroadcasted_scale_tril
    size = tril.shape[-1]
    eye = torch.eye(size, dtype=tril.dtype, device=tril.device)
    inverse = torch.linalg.solve_triangular(tril, eye.expand_as(tril), upper=False)
    whitened = (inverse @ (q.mean - p.loc).unsqueeze(-1)).squeeze(-1)
    square = whitened.square().sum(-1) + (inverse.square().sum(-2) * q.variance).sum(-1)
    return 0.5 * (square + size * math.log(2 * math.pi)) + _half_log_det(p) - q.entropy()


@register_kl(StudentT, _D.Normal)
def _student_t_to_normal_kl(q: Any, p: Any) -> Tensor:
    r"""Returns the divergence of a Student-t distribution from a normal; infinite for df <= 2.

    .. math::
        \mathrm{KL} = \tfrac12 \log 2 \pi s^2
        + \frac{\sigma^2 \nu / (\nu - 2) + (\mu - m)^2}{2 s^2} - H(q)
    """
    if type(q) is not StudentT or type(p) not in _NORMALS:
        raise NotImplementedError
    has_variance = q.df > 2
    # The branch that torch.where drops gets a harmless argument, so that its gradient is finite.
    df = torch.where(has_variance, q.df, 3.0)
    variance = q.scale**2 * df / (df - 2)
    square = (variance + (q.loc - p.loc) ** 2) / p.scale**2
    kl = 0.5 * (square + math.log(2 * math.pi)) + p.scale.log() - q.entropy()
    return torch.where(has_variance, kl, torch.inf)


@register_kl(PowerSpherical, UniformSphere)
def _power_spherical_to_uniform_kl(q: Any, p: Any) -> Tensor:
    r"""Returns the log area of the sphere minus the entropy."""
    if type(q) is not PowerSpherical or type(p) is not UniformSphere:
        raise NotImplementedError
    _check_events(q, p)
    return p.entropy() - q.entropy()


@register_kl(OneHot, OneHot)
def _one_hot_kl(q: Any, p: Any) -> Tensor:
    r"""Returns the divergence of independent one-hot variables, the sum over variables."""
    if not {type(q), type(p)} <= {OneHot, StraightThroughOneHot}:
        raise NotImplementedError
    _check_events(q, p)
    if q.logits.shape[-2:] != p.logits.shape[-2:]:
        raise NotImplementedError
    return sum_rightmost(q.probs * (q.logits - p.logits), 2)
