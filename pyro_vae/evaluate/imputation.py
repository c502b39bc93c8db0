"""Imputation of missing values by importance sampling."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.display.text import describe_fields, describe_range
from pyro_vae.distributions import Mixed
from pyro_vae.evaluate.chunks import (
    MAX_ELEMENTS,
    Chunk,
    check_vae,
    choose_size,
    count_rows,
    encode_chunks,
    most_rows,
    split_evenly,
)
from pyro_vae.finite import check_finite
from pyro_vae.guard import guard_process_state
from pyro_vae.masking import expand_mask
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_choice, check_size

__all__ = ["Imputation", "impute"]


class Imputation(NamedTuple):
    """Data with imputed values.

    Attributes:
        x: The data with one value for each missing one, ``(N, *event_shape)``.
        draws: Complete data sets, ``(draws, N, *event_shape)``, for multiple imputation.
        effective_sample_size: Of the weights of each row, ``(N,)``, between 1 and the number of
            samples.
    """

    x: Tensor
    draws: Tensor
    effective_sample_size: Tensor

    def __repr__(self) -> str:
        sizes = describe_range(self.effective_sample_size)
        return describe_fields(self, effective_sample_size=sizes)


@guard_process_state
@torch.no_grad()
def impute(
    vae: VAE,
    x: Tensor,
    mask: Tensor,
    num_particles: int = 1000,
    draws: int = 0,
    *,
    proposal: str = "posterior",
    covariates: Tensor | None = None,
    max_elements: int = MAX_ELEMENTS,
    progress: bool | None = None,
) -> Imputation:
    r"""Imputes missing values given the observed values of the same row.

    .. math::
        \mathbb{E}[x_m \mid x_o] \approx \sum_{k=1}^K w_k\, \mathbb{E}[x_m \mid z_k], \qquad
        w_k \propto \frac{p(x_o \mid z_k)\, p(z_k)}{q(z_k \mid x_o)}

    A single imputation is this mean; of a coded column of :class:`pyro_vae.likelihoods.Columns` it
    is the most probable code, by the same weights. The mean of a count is not an integer.

    A multiple imputation draws :math:`z` among the samples by their weights, and the missing values
    from :math:`p(x_m \mid z)`. Analyse each of the ``draws`` data sets, and combine the results by
    Rubin's rules. This treats the parameters of the VAE as known.

    This is the imputation of Mattei and Frellsen, whose model MIWAE is trained by
    :class:`pyro_vae.objectives.IWAE` on masked data. The objective
    :class:`pyro_vae.objectives.MIWAE`, of Rainforth et al., is unrelated to missing values.

    References:
        | MIWAE: deep generative modelling and imputation of incomplete data sets (Mattei and
          Frellsen, 2019), https://arxiv.org/abs/1812.02633

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        x: Data of shape ``(N, *event_shape)``; missing values are arbitrary.
        mask: True where a value is observed, of the shape of ``x`` or ``(N,)``.
        num_particles: K, the number of samples of z for each row.
        draws: The number of complete data sets of a multiple imputation.
        proposal: ``"posterior"``, or ``"prior"`` for z from p(z) with weights p(x given z).
        covariates: Covariates, ``(N, covariate_dim)``.
        max_elements: The most decoder outputs in memory at once.
        progress: As of :func:`log_evidence`.

    Returns:
        An :class:`Imputation`. Observed values are unchanged.

    Raises:
        ValueError: If an argument does not fit, or the likelihood's elements are dependent.
        FloatingPointError: If an imputed value is not finite.

    Example:
        >>> from pyro_vae import likelihoods
        >>> vae = VAE((3,), 1, likelihood=likelihoods.Normal)
        >>> x = torch.tensor([[0.5, torch.nan, -0.5]])
        >>> result = impute(vae, x, ~x.isnan(), num_particles=50, draws=5)
        >>> result.x.shape, result.draws.shape, bool(result.x.isfinite().all())
        (torch.Size([1, 3]), torch.Size([5, 1, 3]), True)
    """
    num_particles = check_size("num_particles", num_particles, least=1)
    draws = check_size("draws", draws, least=0)
    check_choice("proposal", proposal, ("posterior", "prior"))
    max_elements = check_size("max_elements", max_elements, least=1)
    check_vae(vae)
    total, most = count_rows(x), most_rows(vae, max_elements)
    rows = split_evenly(total, min(100, most))
    at_once = choose_size(num_particles, max(1, most // max(rows, 1)))
    parts: list[Imputation] = []
    with Progress("imputation", total, "rows", show=progress) as bar, eval_mode(vae):
        for chunk in encode_chunks(vae, x, covariates, _expand(mask, x, vae), rows):
            sizes = [min(at_once, num_particles - k) for k in range(0, num_particles, at_once)]
            parts.append(_impute_chunk(vae, chunk, sizes, draws, proposal))
            bar.advance(len(chunk.x))
    result = Imputation(
        torch.cat([part.x for part in parts]),
        torch.cat([part.draws for part in parts], 1),
        torch.cat([part.effective_sample_size for part in parts]),
    )
    check_finite("imputed value", result.x.flatten(1).sum(-1), {})
    return result


def _expand(mask: Any, x: Any, vae: VAE) -> Any:
    if mask is None:
        raise ValueError("Expected mask, which is True where a value is observed, got None")
    # A mask of rows means that all values of a row are missing, not that the row is left out.
    is_known = isinstance(x, Tensor) and isinstance(mask, Tensor) and mask.dtype == torch.bool
    return expand_mask(mask, x, vae.event_shape) if is_known else mask


def _impute_chunk(
    vae: VAE, chunk: Chunk, sizes: list[int], draws: int, proposal: str
) -> Imputation:
    """Imputes the rows of a chunk, some samples at a time."""
    log_sum = log_square_sum = torch.full((), -torch.inf, dtype=torch.float64)
    mean: Tensor | None = None
    z_drawn = chunk.q.sample(torch.Size((draws,)))
    for size in sizes:
        z, log_w = _weigh(vae, chunk, size, proposal)
        new_sum = log_w.logsumexp(0)
        share = (new_sum - torch.logaddexp(log_sum, new_sum)).exp()
        p = vae.decode(z, chunk.covariates)
        weights = (log_w - new_sum).exp().to(z.dtype)
        batch_mean = torch.einsum("kn,kn...->n...", weights, _get_expectations(p))
        if mean is None:
            mean = batch_mean
        else:
            mean = torch.lerp(mean, batch_mean, _align(share.to(z.dtype), mean))
        log_sum = torch.logaddexp(log_sum, new_sum)
        log_square_sum = torch.logaddexp(log_square_sum, (2 * log_w).logsumexp(0))
        z_drawn = _redraw(z_drawn, z, weights, share)
    assert mean is not None
    x = _keep_observed(chunk, _summarize(p, mean))
    drawn = chunk.x.new_zeros((0, *chunk.x.shape))
    if draws:
        drawn = _keep_observed(chunk, vae.decode(z_drawn, chunk.covariates).sample())
    effective = torch.exp(2 * log_sum - log_square_sum).clamp(1, sum(sizes))
    return Imputation(x, drawn, effective.to(x.dtype))


def _weigh(vae: VAE, chunk: Chunk, size: int, proposal: str) -> tuple[Tensor, Tensor]:
    """Returns samples of z, and the logarithms of their weights in double precision."""
    shape = torch.Size((size,))
    if proposal == "prior":
        z = chunk.prior.expand(torch.Size((len(chunk.x),))).sample(shape)
        return z, chunk.log_likelihood(vae, z).double()
    z = chunk.q.sample(shape)
    log_w = chunk.log_likelihood(vae, z).double() + chunk.prior.log_prob(z).double()
    log_w = log_w - chunk.q.log_prob(z).double()
    check_finite("weight of a row", log_w.amax(0), {})
    return z, log_w


def _redraw(drawn: Tensor, z: Tensor, weights: Tensor, share: Tensor) -> Tensor:
    """Returns draws among all samples so far: each moves to a new one by the share of these."""
    if not len(drawn):
        return drawn
    index = torch.multinomial(weights.T, len(drawn), replacement=True).T
    new = z.gather(0, index.unsqueeze(-1).expand(*index.shape, z.shape[-1]))
    moves = torch.rand(index.shape, device=z.device) < share
    return torch.where(moves.unsqueeze(-1), new, drawn)


def _align(weight: Tensor, value: Tensor) -> Tensor:
    return weight.reshape(-1, *(1 for _ in value.shape[1:]))


def _get_elements(p: Any) -> Any:
    return getattr(p, "base_dist", p)


def _get_expectations(p: Any) -> Tensor:
    """Returns quantities that average over samples: means, and probabilities of categories."""
    elements = _get_elements(p)
    return elements.expectations if isinstance(elements, Mixed) else p.mean


def _summarize(p: Any, expectations: Tensor) -> Tensor:
    """Returns one value for each element from averaged expectations."""
    elements = _get_elements(p)
    return elements.summarize(expectations) if isinstance(elements, Mixed) else expectations


def _keep_observed(chunk: Chunk, values: Tensor) -> Tensor:
    assert chunk.elements is not None
    return torch.where(chunk.elements, chunk.x, values)
