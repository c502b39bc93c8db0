"""Decoding of data under other covariates."""

import torch
from torch import Tensor

from pyro_vae.evaluate.chunks import check_vae, encode_chunks
from pyro_vae.finite import check_finite
from pyro_vae.guard import guard_process_state
from pyro_vae.networks import eval_mode
from pyro_vae.vae.input_checks import check_rows_of_covariates
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_size, check_tensor

__all__ = ["transfer"]


@guard_process_state
@torch.no_grad()
def transfer(
    vae: VAE,
    x: Tensor,
    covariates: Tensor,
    *,
    to: Tensor,
    mask: Tensor | None = None,
    num_particles: int | None = None,
) -> Tensor:
    r"""Decodes data under other covariates, for batch correction and counterfactual questions.

    .. math:: \mathbb{E}_{q(z \mid x, c)} \, \mathbb{E}[x' \mid z, c']

    The result is the counterfactual row, with covariates :math:`c'` in place of :math:`c`, only if
    z and the covariates are independent in the population, z holds all that the change leaves
    alone, and each covariate occurs with all kinds of rows. If a batch has rows of one type only,
    model and data cannot tell the effect of the batch from that of the type. Likelihoods given the
    row sum are decoded at their reference size, the same for all rows.

    Arguments:
        vae: A VAE with covariates.
        x: Data of shape ``(N, *event_shape)``.
        covariates: Their covariates :math:`c`, ``(N, covariate_dim)``.
        to: The covariates :math:`c'`, ``(N, covariate_dim)``, or ``(covariate_dim,)`` for all rows.
            :meth:`pyro_vae.data.Covariates.replace` sets one of several.
        mask: True where a value of ``x`` is observed, as in :func:`elbo`.
        num_particles: The number of samples of z for each row; ``None`` for the mean of
            q(z given x) instead.

    Returns:
        Means, ``(N, *event_shape)``.

    Raises:
        ValueError: If the VAE has no covariates, or an argument does not fit.

    Example:
        >>> vae = VAE((1, 8, 8), latent_dim=2, covariate_dim=10)
        >>> digit = torch.eye(10)
        >>> transfer(vae, torch.ones(3, 1, 8, 8), digit[[1, 1, 2]], to=digit[7]).shape
        torch.Size([3, 1, 8, 8])
    """
    check_vae(vae)
    if not vae.covariate_dim:
        raise ValueError("Expected vae to have covariates, got covariate_dim=0")
    if num_particles is not None:
        num_particles = check_size("num_particles", num_particles, least=1)
    check_tensor("to", to)
    if to.shape not in ((vae.covariate_dim,), (len(x), vae.covariate_dim)):
        raise ValueError(
            f"Expected to of shape ({vae.covariate_dim},) or ({len(x)}, {vae.covariate_dim}), got "
            f"{tuple(to.shape)}"
        )
    to = to.expand(len(x), vae.covariate_dim)
    vae.model.check_covariates(to)
    check_rows_of_covariates(to, len(x), has_size_factor=vae.model.uses_size_factor)
    parts, start = [], 0
    for chunk in encode_chunks(vae, x, covariates, mask, 1000):
        target = to[start : start + len(chunk.x)]
        start += len(chunk.x)
        with eval_mode(vae):
            if num_particles is None:
                mean = vae.decode(chunk.q.mean, target).mean
            else:
                draws = (vae.decode(chunk.q.sample(), target).mean for _ in range(num_particles))
                mean = sum(draws, torch.zeros(())) / num_particles
        parts.append(mean)
    result = torch.cat(parts)
    check_finite("decoded mean", result.flatten(1).sum(-1), {})
    return result
