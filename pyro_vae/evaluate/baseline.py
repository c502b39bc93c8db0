"""A baseline that a VAE should beat: a mixture of its likelihood, fitted by EM."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from pyro_vae import distributions, likelihoods
from pyro_vae.conditional import Likelihood
from pyro_vae.progress import Progress
from pyro_vae.validation import check_seed, check_size, check_tensor, describe_value

__all__ = ["MixtureFit", "mixture"]

SMOOTHING = (0.03, 0.1, 0.3, 1.0)
"""Candidate pseudo-counts; the best on the validation rows is selected."""

_PATIENCE = 10
"""The number of EM steps without a better validation density that ends a fit."""


class MixtureFit(NamedTuple):
    """A fitted mixture with its scores on test rows.

    Attributes:
        log_evidence: Exact log densities of the test rows, ``(N,)`` in nats.
        components: The number of components.
        iterations: The number of EM steps that were best on the validation rows.
        smoothing: The pseudo-count that was best on the validation rows.
    """

    log_evidence: Tensor
    components: int
    iterations: int
    smoothing: float


_MStep = Callable[[Tensor, Tensor, float], dist.TorchDistribution]
"""From responsibilities ``(N, K)``, rows ``(N, D)`` and a pseudo-count to K densities over D."""


@torch.no_grad()
def mixture(
    likelihood: Likelihood,
    train: Tensor,
    valid: Tensor,
    test: Tensor,
    *,
    components: int = 50,
    iterations: int = 100,
    seed: int = 0,
) -> MixtureFit | None:
    r"""Fits a mixture of a likelihood by expectation maximization, and scores test rows exactly.

    .. math:: p(x) = \sum_k \pi_k\, p(x \mid \theta_k)

    The pseudo-count keeps components off the edge of their range. The pseudo-count and the number
    of steps are selected on the validation rows.

    References:
        | Maximum likelihood from incomplete data via the EM algorithm (Dempster, Laird and Rubin,
          1977), https://doi.org/10.1111/j.2517-6161.1977.tb01600.x

    Arguments:
        likelihood: The distribution of each component.
        train: Rows of shape ``(N, *event_shape)``.
        valid: Rows to select the pseudo-count and for early stopping.
        test: Rows to score.
        components: The number of components.
        iterations: The number of EM steps, at most.
        seed: The seed of the k-means clustering that initializes EM.

    Returns:
        The fit, or ``None`` for a likelihood without an EM step in this module.
    """
    if not isinstance(likelihood, Likelihood):
        raise ValueError(
            f"Expected likelihood to be a likelihood, got {describe_value(likelihood)}"
        )
    components = check_size("components", components, least=1)
    iterations = check_size("iterations", iterations, least=1)
    seed = check_seed(seed)
    for name, x in (("train", train), ("valid", valid), ("test", test)):
        if check_tensor(name, x).shape[1:] != likelihood.event_shape or not len(x):
            raise ValueError(
                f"Expected {name} of shape (N, {', '.join(map(str, likelihood.event_shape))}), got "
                f"{tuple(x.shape)}"
            )
    m_step = _select_m_step(likelihood)
    if m_step is None:
        return None
    rows = [x.flatten(1).double() for x in (train, valid, test)]
    distinct = len(torch.unique(rows[0], dim=0))
    clusters = KMeans(min(components, distinct), n_init=4, random_state=seed)
    with threadpool_limits(torch.get_num_threads()):
        labels = torch.as_tensor(clusters.fit_predict(rows[0].cpu().numpy()), device=train.device)
    start = torch.nn.functional.one_hot(labels.long(), clusters.n_clusters).double()
    with Progress("mixture baseline", len(SMOOTHING), "fits") as progress:
        fits = []
        for number, smoothing in enumerate(SMOOTHING):
            fits.append(_run_em(m_step, rows, start, smoothing, iterations, progress))
            progress.reach(number + 1)
    return max(fits, key=lambda fit: fit[0])[1]


def _run_em(
    m_step: _MStep,
    rows: list[Tensor],
    start: Tensor,
    smoothing: float,
    iterations: int,
    progress: Progress,
) -> tuple[float, MixtureFit]:
    """Returns the best mean log density of the validation rows, and the fit with that density."""
    train, valid, test = rows
    best, best_step, best_fit = -math.inf, 0, None
    responsibilities = start
    for step in range(1, iterations + 1):
        counts = responsibilities.sum(0) + smoothing
        log_weights = (counts / counts.sum()).log()
        densities = m_step(responsibilities, train, smoothing)
        score = _log_joint(densities, log_weights, valid).logsumexp(1).mean().item()
        if score > best:
            best_step = step
            evidence = _log_joint(densities, log_weights, test).logsumexp(1)
            best, best_fit = score, MixtureFit(evidence, start.shape[1], step, smoothing)
        progress.advance(1 / iterations)
        if step - best_step >= _PATIENCE:
            break
        responsibilities = _log_joint(densities, log_weights, train).softmax(1)
    assert best_fit is not None, "EM gave no finite density"
    return best, best_fit


def _log_joint(densities: dist.TorchDistribution, log_weights: Tensor, x: Tensor) -> Tensor:
    """Returns log pi_k p(x given k), ``(N, K)``."""
    chunk = max(1, 2**22 // (densities.batch_shape.numel()))
    log_probs = [densities.log_prob(rows.unsqueeze(1)).sum(-1) for rows in x.split(chunk)]
    return torch.cat(log_probs) + log_weights


def _select_m_step(likelihood: Likelihood) -> _MStep | None:
    """Returns the M step of a likelihood, or ``None`` if it has none."""
    if isinstance(likelihood, likelihoods.Bernoulli) and not likelihood.grey_scale:
        return _fit_bernoulli
    if isinstance(likelihood, likelihoods.ContinuousBernoulli):
        return lambda r, x, s: fit_continuous_bernoulli(r, x, s, likelihood.max_logit)
    if isinstance(likelihood, likelihoods.Normal):
        return lambda r, x, s: _fit_normal(r, x, s, likelihood)
    if isinstance(likelihood, likelihoods.Categorical):
        return lambda r, x, s: _fit_categorical(r, x, s, likelihood.levels)
    return None


def _smooth_means(r: Tensor, x: Tensor, smoothing: float) -> Tensor:
    """Returns the means of components, ``(K, D)``, shrunk towards the mean of all rows."""
    return (r.T @ x + smoothing * x.mean(0)) / (r.sum(0) + smoothing).unsqueeze(1)


def _fit_bernoulli(r: Tensor, x: Tensor, smoothing: float) -> dist.TorchDistribution:
    """Computes the M step of a Bernoulli, with one pseudo-count for zero and one for one."""
    means = (r.T @ x + smoothing) / (r.sum(0) + 2 * smoothing).unsqueeze(1)
    return dist.Bernoulli(means, validate_args=False)


def fit_continuous_bernoulli(
    r: Tensor, x: Tensor, smoothing: float, max_logit: float
) -> dist.TorchDistribution:
    """Computes the M step of a continuous Bernoulli: finds logits that match the rows' means."""
    mean = (r.T @ x + smoothing / 2) / (r.sum(0) + smoothing).unsqueeze(1)
    low, high = torch.full_like(mean, -max_logit), torch.full_like(mean, max_logit)
    for _ in range(50):
        middle = (low + high) / 2
        above = distributions.ContinuousBernoulli(middle).mean > mean
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return distributions.ContinuousBernoulli((low + high) / 2, validate_args=False)


def _fit_normal(
    r: Tensor, x: Tensor, smoothing: float, likelihood: likelihoods.Normal
) -> dist.TorchDistribution:
    """Computes the M step of a normal with a fixed scale, a shared one, or one per element."""
    means = _smooth_means(r, x, smoothing)
    if isinstance(likelihood.scale, float):
        return dist.Normal(means, likelihood.scale, validate_args=False)
    error = (r.T @ x**2 - 2 * means * (r.T @ x) + r.sum(0).unsqueeze(1) * means**2).clamp(min=0)
    if likelihood.scale in ("shared", "optimal"):
        variance = error.sum() / x.numel()
    elif likelihood.scale == "element":
        variance = error.sum(0) / len(x)
    else:
        variance = (error + smoothing * x.var(0)) / (r.sum(0) + smoothing).unsqueeze(1)
    scale = variance.sqrt().clamp(min=likelihood.min_scale)
    return dist.Normal(means, scale, validate_args=False)


def _fit_categorical(r: Tensor, x: Tensor, smoothing: float, levels: int) -> dist.TorchDistribution:
    """Computes the M step of a categorical, shrunk towards the level frequencies of all rows."""
    index = (x * (levels - 1)).round().long()
    # All levels at once would need rows x elements x levels numbers in memory.
    counts = torch.stack([r.T @ (index == level).double() for level in range(levels)], -1)
    frequencies = torch.stack([(index == level).double().sum(0) for level in range(levels)], -1)
    overall = (frequencies + 1) / (len(x) + levels)
    return distributions.Levels((counts + smoothing * overall).log(), validate_args=False)
