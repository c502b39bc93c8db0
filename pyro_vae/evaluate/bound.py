"""The evidence lower bound of a VAE, in nats, one value per row."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.display.text import describe_fields, describe_mean
from pyro_vae.evaluate.chunks import (
    MAX_ELEMENTS,
    RowResults,
    check_vae,
    count_rows,
    encode_chunks,
    most_rows,
    split_evenly,
)
from pyro_vae.evaluate.scoring import (
    KL,
    LOG_LIKELIHOOD,
    LOG_POSTERIOR,
    LOG_PRIOR,
    Engine,
    Precision,
    Scorer,
    bound_rows,
)
from pyro_vae.finite import check_finite
from pyro_vae.guard import guard_process_state
from pyro_vae.kl import closed_form
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_size

__all__ = ["Bound", "elbo", "estimate_elbo", "make_bound_scorer"]


class Bound(NamedTuple):
    """The evidence lower bound at beta = 1 and its parts, each ``(N,)`` in nats.

    Attributes:
        elbo: Minus the distortion minus the rate.
        rate: KL(q(z given x), p(z)).
        distortion: -E_q log p(x given z).
        closed_form: Whether the rate is in closed form rather than sampled.
    """

    elbo: Tensor
    rate: Tensor
    distortion: Tensor
    closed_form: bool

    def __repr__(self) -> str:
        parts = {name: describe_mean(getattr(self, name)) for name in self._fields[:3]}
        return describe_fields(self, **parts)


@guard_process_state
@torch.no_grad()
def elbo(
    vae: VAE,
    x: Tensor,
    num_particles: int = 1,
    *,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
    max_elements: int = MAX_ELEMENTS,
    compile: Engine = "auto",
    precision: Precision = "float32",
    progress: bool | None = None,
) -> Bound:
    """Returns the evidence lower bound at beta = 1 with its rate and distortion, per row.

    Arguments:
        vae: The VAE; evaluated in evaluation mode.
        x: Data of shape ``(N, *event_shape)``.
        num_particles: The number of samples for the distortion, and for a rate without closed
            form.
        covariates: Covariates, ``(N, covariate_dim)``.
        mask: As in :func:`log_evidence`.
        max_elements: As in :func:`log_evidence`.
        compile: As in :func:`log_evidence`.
        precision: As in :func:`log_evidence`.
        progress: As in :func:`log_evidence`.

    Raises:
        ValueError: If an argument is out of range or the data cannot be scored.
        FloatingPointError: If the bound of a row is not finite; names the rows and the term.

    Example:
        >>> vae = VAE((1, 8, 8), 2)
        >>> elbo(vae, torch.ones(5, 1, 8, 8)).closed_form
        True
    """
    num_particles = check_size("num_particles", num_particles, least=1)
    max_elements = check_size("max_elements", max_elements, least=1)
    check_vae(vae)
    scorer = make_bound_scorer(vae, x, num_particles, max_elements, compile, precision)
    with Progress("ELBO", count_rows(x), "rows", show=progress) as bar:
        bound, faults = estimate_elbo(
            vae,
            x,
            num_particles=num_particles,
            covariates=covariates,
            mask=mask,
            max_elements=max_elements,
            scorer=scorer,
            progress=bar,
        )
    check_finite("ELBO", bound.elbo, faults)
    return bound


@torch.no_grad()
def estimate_elbo(
    vae: VAE,
    x: Tensor,
    *,
    num_particles: int = 1,
    covariates: Tensor | None = None,
    mask: Tensor | None = None,
    max_elements: int = MAX_ELEMENTS,
    scorer: Scorer | None = None,
    progress: Progress | None = None,
) -> tuple[Bound, dict[str, Tensor]]:
    """Returns the bound of :func:`elbo`, finite or not, and the rows with non-finite terms.

    Training restores the last good weights before it reports a bound that is not finite. The
    arguments are those of :func:`elbo`, and a scorer that is used again from call to call.
    """
    scorer = scorer or make_bound_scorer(vae, x, num_particles, max_elements, False)
    results, is_closed = RowResults(count_rows(x)), False
    with eval_mode(vae):
        rows = scorer.full_size[0]
        for chunk in encode_chunks(vae, x, covariates, mask, rows, equal=True):
            results.add(scorer(chunk, num_particles))
            is_closed = closed_form(chunk.q, chunk.prior)[0] is not None
            if progress is not None:
                progress.advance(len(chunk.x))
    rate, distortion, *faults = results.tensors
    names = (KL, LOG_LIKELIHOOD) if is_closed else (LOG_PRIOR, LOG_POSTERIOR, LOG_LIKELIHOOD)
    bound = Bound(-distortion - rate, rate, distortion, is_closed)
    return bound, dict(zip(names, faults, strict=True))


def make_bound_scorer(
    vae: VAE,
    x: Tensor,
    num_particles: int,
    max_elements: int,
    compile: Engine,
    precision: Precision = "float32",
    calls: int = 1,
) -> Scorer:
    """Returns the scorer of a number of calls of :func:`estimate_elbo` on the same rows.

    The other arguments are those of :func:`elbo`.
    """
    total = count_rows(x)
    rows = split_evenly(total, most_rows(vae, max_elements) // num_particles)
    full_size, samples = (rows, num_particles), calls * total * num_particles
    return Scorer(bound_rows, vae, full_size, samples, compile, precision)
