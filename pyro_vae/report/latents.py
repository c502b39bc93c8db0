"""Embeddings of held-out rows, their labels, and their projection to a plane."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pyro_vae import evaluate, plots
from pyro_vae.data import Data
from pyro_vae.data.table_files import MISSING
from pyro_vae.report.drawing import shorten_text, to_numpy
from pyro_vae.report.trained_run import TrainedRun

__all__ = ["Latents", "Projection", "get_labels"]

_TSNE_ROWS = 1000


class Projection(NamedTuple):
    """Embeddings in a plane.

    Attributes:
        points: The first rows, ``(N, 2)``.
        x_label: The name of the first axis.
        y_label: The name of the second axis; empty if it only spreads the points.
    """

    points: Any
    x_label: str
    y_label: str


class Latents:
    """The embeddings of held-out rows. The projections are computed once, when they are needed.

    Attributes:
        means: The means of q(z given x), ``(N, latent_dim)``.
        labels: The labels, ``(N,)``, or ``None``.
    """

    def __init__(self, run: TrainedRun) -> None:
        x, mask, _, covariates = run.data.test
        self.means = evaluate.posterior_means(run.vae, x, covariates=covariates, mask=mask)
        self.labels = get_labels(run.data)

    @property
    def has_tsne(self) -> bool:
        """Whether t-SNE shows more than the embeddings themselves."""
        # t-SNE crashes on identical embeddings, such as those of a collapsed encoder.
        means = self.means[:_TSNE_ROWS]
        return means.shape[1] > 2 and len(means) > 3 and bool((means.var(0) > 1e-6).any())

    @cached_property
    def tsne(self) -> Any:
        """The first embeddings projected by t-SNE, which preserves neighbourhoods."""
        from sklearn.manifold import TSNE

        embeddings = to_numpy(self.means[:_TSNE_ROWS])
        perplexity = min(30.0, (len(embeddings) - 1) / 3)
        with threadpool_limits(torch.get_num_threads()):
            # After 500 iterations neighbourhoods no longer change, at half the time of the default.
            tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=500)
            return tsne.fit_transform(embeddings)

    def project(self) -> Projection:
        """Returns the embeddings themselves, or their projection by t-SNE or to two components."""
        if self.has_tsne:
            return Projection(self.tsne, "t-SNE 1", "t-SNE 2")
        points, x_label, y_label = plots.project_to_plane(to_numpy(self.means.double()))
        names = {"$z_1$": "z₁", "$z_2$": "z₂"}
        return Projection(points, names.get(x_label, x_label), names.get(y_label, y_label))


def get_labels(data: Data) -> Any:
    """Returns the labels of held-out data by which points are coloured.

    These are names if a legend has room for all of them, else numbers, with NaN for missing ones.
    More names are not shown by colours, which would suggest an order.
    """
    if data.labels is None:
        return None
    labels, names = to_numpy(data.labels.test), data.label_names
    if names is None:
        return labels
    if len(names) <= plots.MAX_KINDS:
        return np.array(_shorten_names(names))[labels]
    numbers = _read_numbers(names)
    return None if numbers is None or np.isnan(numbers[labels]).all() else numbers[labels]


def _shorten_names(names: Sequence[str]) -> list[str]:
    """Returns the names as a legend has room for; different names stay different."""
    short = [shorten_text(name) for name in names]
    if len(set(short)) < len(short):
        short = [f"{name} ({number})" for number, name in enumerate(short, 1)]
    return short


def _read_numbers(names: Sequence[str]) -> Any:
    """Returns the numbers of names, NaN for a missing one; ``None`` if there are other names."""
    try:
        return np.array([np.nan if name == MISSING else float(name) for name in names])
    except ValueError:
        return None
