"""A baseline that a VAE should beat: a mixture of its likelihood, fitted by EM."""

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from pyro_vae import transforms
from pyro_vae.conditional import Likelihood
from pyro_vae.display.text import describe_fields, describe_mean
from pyro_vae.distributions import ContinuousBernoulli, Levels
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

    def __repr__(self) -> str:
        return describe_fields(self, log_evidence=describe_mean(self.log_evidence))


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
) -> MixtureFit | Any:
    r"""Fits a mixture of a likelihood by expectation maximization, and scores test rows exactly.

    .. math:: p(x) = \sum_k \pi_k\, p(x \mid \theta_k)

    The pseudo-count keeps components off the edge of their range. The pseudo-count and the number
    of steps are selected on the validation rows.

    References:
        | Maximum likelihood from incomplete data via the EM algorithm (Dempster, Laird and Rubin,
          1977), https://doi.org/10.1111/j.2517-6161.1977.tb01600.x

    Arguments:
        likelihood: The distribution of each component.
        train: Rows of shape ``(N, *event_shape)``; NaN is a missing value.
        valid: Rows to select the pseudo-count and for early stopping.
        test: Rows to score.
        components: The number of components.
        iterations: The number of EM steps, at most.
        seed: The seed of the k-means clustering that initializes EM.

    Returns:
        The fit, or ``None`` for a likelihood without an ``em_step``.
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
    rows = [x.flatten(1).double() for x in (train, valid, test)]
    if likelihood.em_step(torch.ones_like(rows[0][:, :1]), rows[0], 1.0) is None:
        return None
    start = _cluster(_prepare_clustering(likelihood, rows[0]), components, seed)
    with Progress("mixture baseline", len(SMOOTHING), "fits") as progress:
        fits = []
        for number, smoothing in enumerate(SMOOTHING):
            fits.append(_run_em(likelihood, rows, start, smoothing, iterations, progress))
            progress.reach(number + 1)
    return max(fits, key=lambda fit: fit[0])[1]


def _prepare_clustering(likelihood: Likelihood, x: Tensor) -> Tensor:
    """Returns rows of comparable columns, without missing values."""
    if hasattr(likelihood, "columns"):
        transform = transforms.Columns(likelihood.event_shape, columns=likelihood.columns).to(x)
        transform.initialize(x)
        return transform.encode(x, ~x.isnan())
    return x.where(~x.isnan(), x.nanmean(0).nan_to_num())


def _cluster(x: Tensor, components: int, seed: int) -> Tensor:
    """Returns the membership of rows in clusters by k-means, ``(N, K)``."""
    # Imported late, because it takes longer than to import the rest of the package.
    from sklearn.cluster import KMeans

    clusters = KMeans(min(components, len(torch.unique(x, dim=0))), n_init=4, random_state=seed)
    with threadpool_limits(torch.get_num_threads()):
        labels = torch.as_tensor(clusters.fit_predict(x.cpu().numpy()), device=x.device)
    return torch.nn.functional.one_hot(labels.long(), clusters.n_clusters).double()


def _run_em(
    likelihood: Likelihood,
    rows: list[Tensor],
    start: Tensor,
    smoothing: float,
    iterations: int,
    progress: Progress,
) -> tuple[float, MixtureFit]:
    """Returns the best mean log density of the validation rows, and the fit with that density."""
    train, valid, test = rows
    best, best_step, best_parts = -math.inf, 0, None
    responsibilities = start
    for step in range(1, iterations + 1):
        counts = responsibilities.sum(0) + smoothing
        log_weights = (counts / counts.sum()).log()
        densities = likelihood.em_step(responsibilities, train, smoothing)
        assert densities is not None
        score = _log_joint(densities, log_weights, valid).logsumexp(1).mean().item()
        if score > best:
            best, best_step, best_parts = score, step, (densities, log_weights)
        progress.advance(1 / iterations)
        if step - best_step >= _PATIENCE:
            break
        responsibilities = _log_joint(densities, log_weights, train).softmax(1)
    assert best_parts is not None, "EM gave no finite density"
    evidence = _log_joint(*best_parts, test).logsumexp(1)
    return best, MixtureFit(evidence, start.shape[1], best_step, smoothing)


def _log_joint(densities: dist.TorchDistribution, log_weights: Tensor, x: Tensor) -> Tensor:
    """Returns log pi_k p(x given k), ``(N, K)``."""
    chunk = max(1, 2**22 // (densities.batch_shape.numel()))
    return torch.cat([_score(densities, rows) for rows in x.split(chunk)]) + log_weights


def _score(densities: dist.TorchDistribution, x: Tensor) -> Tensor:
    """Returns log p(x given k), ``(N, K)``, without a tensor of all pairs where possible."""
    missing = x.isnan()
    if bool(missing.any()):
        # One is a value of each kind of data.
        scores = densities.log_prob(x.where(~missing, 1.0).unsqueeze(1))
        return torch.where(missing.unsqueeze(1), 0.0, scores).sum(-1)
    if isinstance(densities, dist.Bernoulli):
        logits = densities.logits
        return x @ logits.T - torch.nn.functional.softplus(logits).sum(-1)
    if isinstance(densities, ContinuousBernoulli):
        return x @ densities.logits.T - densities.log_normalizer().sum(-1)
    if isinstance(densities, dist.Normal):
        centre, scale = densities.mean.mean(0), densities.stddev
        values, means = x - centre, densities.mean - centre
        # The squares cancel: at 1e4 scales from the centre, an error of 1e-8 nats remains.
        if bool(max(values.abs().max(), means.abs().max()) < 1e4 * scale.min()):
            precision = scale**-2
            squares = values**2 @ precision.T - 2 * values @ (precision * means).T
            constant = precision * means**2 + 2 * scale.log() + math.log(2 * math.pi)
            return -(squares + constant.sum(-1)) / 2
    if isinstance(densities, Levels):
        step = densities.levels - 1
        offsets = densities.levels * torch.arange(x.shape[1], device=x.device)
        table = densities.logits.flatten(1).T.contiguous()
        index = (x * step).round().long() + offsets
        return torch.nn.functional.embedding_bag(index, table, mode="sum")
    return densities.log_prob(x.unsqueeze(1)).sum(-1)
