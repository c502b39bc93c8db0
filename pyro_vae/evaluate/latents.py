"""Use of the latent dimensions: posterior means, active units, and the KL per dimension."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.collapse import ACTIVE_VARIANCE
from pyro_vae.data.sparse_rows import ROWS_AT_ONCE, is_sparse
from pyro_vae.distributions.blocks import is_real_vector
from pyro_vae.distributions.marginals import find_marginals
from pyro_vae.evaluate.chunks import check_vae, encode_chunks
from pyro_vae.finite import check_finite
from pyro_vae.guard import guard_process_state
from pyro_vae.kl import closed_form
from pyro_vae.networks import eval_mode
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import (
    check_number,
    check_size,
)

__all__ = ["active_units", "kl_per_dimension", "posterior_means"]


@guard_process_state
@torch.no_grad()
def posterior_means(
    vae: VAE, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Returns the means of q(z given x), ``(N, latent_dim)``; arguments as in :func:`elbo`."""
    check_vae(vae)
    size = ROWS_AT_ONCE if is_sparse(x) else 10_000
    means = torch.cat([chunk.q.mean for chunk in encode_chunks(vae, x, covariates, mask, size)])
    check_finite("posterior mean", means.sum(-1), {})
    return means


@guard_process_state
def active_units(
    vae: VAE,
    x: Tensor,
    *,
    threshold: float = ACTIVE_VARIANCE,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Returns the latent dimensions that depend on the data, as a mask.

    .. math:: \mathrm{Var}_x\, \mathbb{E}_{q(z \mid x)}[z_d] > \mathrm{threshold}

    On simplices, spheres and one-hot vectors the threshold is in units of the prior's variance.

    References:
        | Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2015),
          https://arxiv.org/abs/1509.00519

    Arguments:
        vae: The VAE.
        x: Data of shape ``(N, *event_shape)``, with at least two rows.
        threshold: The variance above which a dimension is active.
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: As in :func:`log_evidence`.

    Returns:
        A boolean tensor of shape ``(latent_dim,)``.

    Raises:
        ValueError: If there are fewer than two rows.
    """
    threshold = check_number("threshold", threshold, least=0.0, infinite=True)
    means = posterior_means(vae, x, covariates=covariates, mask=mask)
    if mask is not None and mask.dim() == 1:
        means = means[mask]
    if len(means) < 2:
        raise ValueError(
            f"Expected x to have two rows or more that the mask leaves in, got {len(means)}: a "
            f"unit is active if its posterior mean varies over rows"
        )
    return means.var(0) > threshold * _get_unit(vae, covariates)


def _get_unit(vae: VAE, covariates: Tensor | None) -> Tensor | float:
    """Returns the unit of variances of z: one, or the prior's variance where z is bounded."""
    if is_real_vector(getattr(vae.posterior, "support", None)):
        return 1.0
    with torch.no_grad(), eval_mode(vae):
        variance = vae.prior_distribution(covariates).variance
    return variance.flatten(0, -2).mean(0) if variance.dim() > 1 else variance


@guard_process_state
@torch.no_grad()
def kl_per_dimension(
    vae: VAE,
    x: Tensor,
    num_particles: int = 10,
    *,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Returns the KL of each latent dimension's marginals, averaged over the data, in nats.

    .. math:: \mathbb{E}_x \mathrm{KL}(q(z_d \mid x) \,\|\, p(z_d))

    The dimensions sum to the rate if both posterior and prior factorize.

    Arguments:
        vae: The VAE.
        x: Data of shape ``(N, *event_shape)``.
        num_particles: The number of samples per row if there is no closed form.
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: As in :func:`log_evidence`.

    Returns:
        A tensor of shape ``(latent_dim,)``.

    Raises:
        ValueError: If the marginals of a distribution are unknown, or the mask excludes every row.
        FloatingPointError: If the KL of a row is not finite.
    """
    num_particles = check_size("num_particles", num_particles, least=1)
    check_vae(vae)
    kls = []
    for chunk in encode_chunks(vae, x, covariates, mask, 1000):
        q, p = _get_marginals(chunk.q), _get_marginals(chunk.prior)
        kl, _ = closed_form(q, p)
        if kl is None:
            z = q.sample(torch.Size((num_particles,)))
            kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
        kls.append(kl if chunk.rows is None else kl[chunk.rows])
    kl = torch.cat(kls)
    if not len(kl):
        raise ValueError(f"Expected mask to leave a row in, got none of {len(x)}")
    check_finite("KL by dimension", kl.sum(-1), {})
    return kl.double().mean(0).to(x.dtype)


def _get_marginals(d: dist.TorchDistribution) -> dist.TorchDistribution:
    marginals = find_marginals(d)
    if marginals is None:
        raise ValueError(f"Expected a distribution whose marginals are known, got {d}")
    return marginals
