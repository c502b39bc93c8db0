"""Scores of a chunk of rows by samples of z, eager or compiled."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyro_vae.compiled.heuristic import check_compile, worth_compiling_evaluation
from pyro_vae.compiled.inference import CompiledFunction
from pyro_vae.compiled.step import PRECISIONS
from pyro_vae.compiled.support import check_density
from pyro_vae.evaluate.chunks import Chunk
from pyro_vae.finite import find_nonfinite_rows
from pyro_vae.kl import closed_form
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_choice

__all__ = [
    "KL", "LOG_LIKELIHOOD", "LOG_POSTERIOR", "LOG_PRIOR", "Engine", "Precision", "Scorer",
    "bound_rows", "check_engine", "weigh_rows",
]  # fmt: skip

Engine = bool | Literal["auto", "strict"]
Precision = Literal["float32", "bfloat16"]

_CHECKED_PACKAGES = ("pyro_vae.", "torch.nn.")
"""The packages whose modules are known to compute the same in a graph."""

LOG_LIKELIHOOD = "log p(x given z)"
LOG_PRIOR = "log p(z)"
LOG_POSTERIOR = "log q(z given x)"
KL = "KL(q(z given x), p(z))"


class Scorer:
    """A function of a VAE and a chunk, which is compiled where that saves time.

    Arguments:
        function: :func:`weigh_rows` or :func:`bound_rows`.
        vae: The VAE.
        full_size: The numbers of rows and samples of most calls. Others, for the rows and samples
            that are left over, are not worth a graph of their own.
        samples: The number of samples of z in all calls together.
        compile: As of :func:`log_evidence`.
        precision: As of :func:`log_evidence`.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        vae: VAE,
        full_size: tuple[int, int],
        samples: int,
        compile: Engine,
        precision: Precision,
    ) -> None:
        self.full_size = full_size
        self.eager = partial(function, vae)
        self.compiled: CompiledFunction | None = None
        if _choose_compiled(vae, samples, compile, precision):
            # Pyro's validation is off within a graph.
            on_cpu = all(p.device.type == "cpu" for p in vae.parameters())
            self._checks = on_cpu and bool(is_validation_enabled())
            checked = partial(function, vae, check=bool(is_validation_enabled()))
            self.compiled = CompiledFunction(
                checked, vae, precision=precision, strict=compile == "strict"
            )

    def __call__(self, chunk: Chunk, num_particles: int, *args: str) -> Sequence[Tensor]:
        """Returns the results of the function, for a VAE in evaluation mode."""
        is_full = (len(chunk.x), num_particles) == self.full_size
        if self.compiled is None or not is_full:
            return self.eager(chunk, num_particles, *args)
        noise = torch.get_rng_state()
        results = self.compiled(chunk, num_particles, *args)
        flags = [result for result in results if result.dtype == torch.bool]
        if self._checks and bool(torch.stack(flags).any()):
            # The eager call raises the error of the distribution, if it is one.
            torch.set_rng_state(noise)
            return self.eager(chunk, num_particles, *args)
        return results


def check_engine(compile: Any, precision: Any, prefix: str = "") -> None:
    """Raises a ``ValueError`` unless ``compile`` and ``precision`` are valid and fit.

    Arguments:
        compile: As of :func:`log_evidence`.
        precision: As of :func:`log_evidence`.
        prefix: The group of the two settings, for the message.
    """
    check_choice(f"{prefix}precision", precision, PRECISIONS)
    check_compile(compile, f"{prefix}compile")
    if precision != "float32" and not compile:
        raise ValueError(f"Expected compile=true, which {precision=} needs, got {compile=}")


def _choose_compiled(vae: VAE, samples: int, compile: Engine, precision: Precision) -> bool:
    check_engine(compile, precision)
    if compile != "auto" or precision != "float32":
        return bool(compile)
    if not all(type(m).__module__.startswith(_CHECKED_PACKAGES) for m in vae.modules()):
        return False
    weights = sum(p.numel() for p in vae.decoder.parameters())
    return worth_compiling_evaluation(samples, vae.likelihood.feature_shape.numel(), weights)


def weigh_rows(
    vae: VAE, chunk: Chunk, num_particles: int, proposal: str, *, check: bool = False
) -> tuple[Tensor, ...]:
    """Draws z, and returns the logarithms of the sums of weights and of their squares, per row.

    The other results mark the rows in which a term is not finite for some sample: log p(z) and
    log q(z given x) with the posterior as proposal, then log p(x given z). With ``check`` a term
    is not finite if a parameter or a value of its distribution is invalid.
    """
    shape = torch.Size((num_particles,))
    if proposal == "posterior":
        z = chunk.q.sample(shape)
        terms = _compute_rate_terms(chunk, z, check)
    else:
        z, terms = chunk.prior.expand(torch.Size((len(chunk.x),))).sample(shape), {}
    terms[LOG_LIKELIHOOD] = chunk.log_likelihood(vae, z, check=check)
    # The effective sample size subtracts large logarithms, which needs double precision.
    log_w = torch.stack(list(terms.values())).double().sum(0)
    return log_w.logsumexp(0), (2 * log_w).logsumexp(0), *find_nonfinite_rows(terms).values()


def bound_rows(
    vae: VAE, chunk: Chunk, num_particles: int, *, check: bool = False
) -> tuple[Tensor, ...]:
    """Draws z, and returns rate and distortion per row.

    The other results are those of :func:`weigh_rows`, with one for the KL if it has a closed form.
    """
    z = chunk.q.sample(torch.Size((num_particles,)))
    kl, _ = closed_form(chunk.q, chunk.prior)
    terms = (
        _compute_rate_terms(chunk, z, check) if kl is None else {KL: -chunk.zero_masked(kl)[None]}
    )
    rate = -torch.stack(list(terms.values())).sum(0).mean(0)
    terms[LOG_LIKELIHOOD] = chunk.log_likelihood(vae, z, check=check)
    distortion = -terms[LOG_LIKELIHOOD].mean(0)
    return rate, distortion, *find_nonfinite_rows(terms).values()


def _compute_rate_terms(chunk: Chunk, z: Tensor, check: bool) -> dict[str, Tensor]:
    """Returns the two terms of the negative sampled rate, ``(particles, rows)``."""
    log_p, log_q = (_score(d, z, check) for d in (chunk.prior, chunk.q))
    return {LOG_PRIOR: chunk.zero_masked(log_p), LOG_POSTERIOR: -chunk.zero_masked(log_q)}


def _score(d: TorchDistribution, z: Tensor, check: bool) -> Tensor:
    """Returns log densities; with ``check`` they are NaN if a parameter or value is invalid."""
    valid = check_density(d, z) if check else None
    return d.log_prob(z) if valid is None else torch.where(valid, d.log_prob(z), torch.nan)
