"""A VAE as a scikit-learn detector of outliers."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pyro_vae import evaluate
from pyro_vae.sklearn.imputer import build_vae, get_input_tags
from pyro_vae.sklearn.rows import TableRows, has_columns
from pyro_vae.sklearn.transformer import VAETransformer
from pyro_vae.validation import check_number

__all__ = ["VAEDetector"]


class VAEDetector(OutlierMixin, BaseEstimator):
    """Detects outliers by their log evidence under a VAE.

    A share of the rows of ``fit`` is held out of the training, as the reference of
    :meth:`p_values`. ``predict`` returns -1 for rows that are less likely than ``contamination`` of
    the rows of ``fit``, and 1 for others, as scikit-learn's detectors do.

    Arguments:
        vae: The VAE and its training, which each ``fit`` clones; ``None`` for the defaults of
            :class:`VAETransformer`. Its arguments have nested names, as ``vae__latent_dim``.
        contamination: The share of outliers among the rows of ``fit``, in (0, 0.5].
        holdout: The share of rows that are held out, in (0, 1).
        random_state: An integer, a ``numpy.random.RandomState`` or ``None``; also for the VAE,
            unless that has its own.

    Attributes:
        vae_: The fitted :class:`VAETransformer`.
        reference_: The log evidence of the held-out rows.
        offset_: The log evidence below which rows are outliers.
        n_features_in_: The number of columns.

    Raises:
        ValueError: If an argument does not fit, or the data do not.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x = load_iris().data
        >>> detector = VAEDetector(VAETransformer(1, epochs=50), random_state=0).fit(x)
        >>> detector.predict(x[:3] * 10), detector.p_values(x[:1] * 10).round(2)
        (array([-1, -1, -1]), array([0.03]))
    """

    def __init__(
        self,
        vae: VAETransformer | None = None,
        *,
        contamination: float = 0.1,
        holdout: float = 0.2,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.vae = vae
        self.contamination = contamination
        self.holdout = holdout
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> "VAEDetector":
        """Trains the VAE, and computes the log evidence of all rows.

        Arguments:
            X: Data of shape ``(N, columns)``; NaN is a missing value.
            y: Not used.
        """
        contamination = check_number("contamination", self.contamination, above=0.0, most=0.5)
        holdout = check_number("holdout", self.holdout, above=0.0, most=1.0)
        # The transformer checks the values, and names the number of columns.
        random = check_random_state(self.random_state)
        vae = build_vae(self.vae, random)
        values = vae._validate(X, reset=True)
        validate_data(self, X, reset=True, skip_check_array=True)
        # A table keeps its names.
        rows = X if hasattr(X, "iloc") else values
        if has_columns(vae.likelihood):
            # Words of held-out rows are levels too.
            vae._shared_rows = TableRows.fit(values, vae.kinds)
        order = random.permutation(len(rows))
        count = max(1, round(holdout * len(order)))
        if count >= len(order):
            raise ValueError(
                f"Expected holdout to leave rows for the training, got {holdout} of n_samples="
                f"{len(order)}"
            )
        self.vae_ = vae.fit(_select(rows, order[count:]))
        scores = self.vae_.score_samples(rows)
        self.reference_ = np.sort(scores[order[:count]])
        self.offset_ = float(np.percentile(scores, 100 * contamination))
        return self

    def score_samples(self, X: Any) -> Any:
        """Returns the log evidence of rows in nats, of shape ``(N,)``."""
        check_is_fitted(self)
        scores = self.vae_.score_samples(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        return scores

    def score(self, X: Any, y: object = None) -> float:
        """Returns the mean log evidence, the criterion of a grid search.

        Arguments:
            X: Data of shape ``(N, columns)``.
            y: Not used.
        """
        return float(self.score_samples(X).mean())

    def decision_function(self, X: Any) -> Any:
        """Returns the log evidence above the threshold; negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """Returns -1 for outliers and 1 for others, of shape ``(N,)``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> Any:
        """Returns the p-value of each row, as :func:`pyro_vae.evaluate.compute_p_values` does.

        They are valid for rows that ``fit`` did not get.
        """
        scores = torch.as_tensor(self.score_samples(X))
        return evaluate.compute_p_values(scores, torch.as_tensor(self.reference_)).numpy()

    def __sklearn_tags__(self) -> Any:
        """Declares that NaN is allowed, and the kinds of data of the VAE."""
        tags = super().__sklearn_tags__()
        tags.input_tags = get_input_tags(self.vae)
        return tags


def _select(X: Any, index: Any) -> Any:
    return X.iloc[index] if hasattr(X, "iloc") else np.asarray(X)[index]
