"""A VAE as a scikit-learn imputer."""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pyro_vae import evaluate
from pyro_vae.guard import guard_process_state
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.sklearn.rows import name_columns
from pyro_vae.sklearn.transformer import VAETransformer
from pyro_vae.validation import check_flag, check_size

__all__ = ["VAEImputer", "build_vae", "get_input_tags"]


class VAEImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Imputes missing values by a VAE, as :func:`pyro_vae.evaluate.impute` describes.

    ``fit`` trains the VAE on the observed values. ``transform`` returns the data with one value for
    each missing one: the mean given the observed values of the row, or a draw. Observed values are
    unchanged. Words, counts and other kinds of columns need
    ``VAETransformer(likelihood=likelihoods.Columns)``; the result is then a pandas table.

    References:
        | MIWAE: deep generative modelling and imputation of incomplete data sets (Mattei and
          Frellsen, 2019), https://arxiv.org/abs/1812.02633

    Arguments:
        vae: The VAE and its training, which each ``fit`` clones; ``None`` for the defaults of
            :class:`VAETransformer`. Its arguments have nested names, as ``vae__latent_dim``.
        num_particles: The number of samples for each row.
        sample_posterior: Whether to draw missing values, for a multiple imputation, as of
            scikit-learn's ``IterativeImputer``.
        random_state: An integer, a ``numpy.random.RandomState`` or ``None``; also for the VAE,
            unless that has its own.

    Attributes:
        vae_: The fitted :class:`VAETransformer`.
        n_features_in_: The number of columns.

    Raises:
        ValueError: If an argument does not fit, or the data do not.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x = load_iris().data
        >>> x[::3, 1] = np.nan
        >>> imputer = VAEImputer(VAETransformer(1, epochs=5), random_state=0)
        >>> bool(np.isnan(imputer.fit_transform(x)).any())
        False
    """

    def __init__(
        self,
        vae: VAETransformer | None = None,
        *,
        num_particles: int = 1000,
        sample_posterior: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.vae = vae
        self.num_particles = num_particles
        self.sample_posterior = sample_posterior
        self.random_state = random_state

    def fit(self, X: Any, y: object = None, *, covariates: object = None) -> "VAEImputer":
        """Trains the VAE.

        Arguments:
            X: Data of shape ``(N, columns)``, with NaN for missing values.
            y: Not used.
            covariates: Covariates of the rows; or ``None``.
        """
        check_size("num_particles", self.num_particles, least=1)
        check_flag("sample_posterior", self.sample_posterior)
        self._random = check_random_state(self.random_state)
        # The transformer checks the values.
        self.vae_ = build_vae(self.vae, self._random).fit(X, covariates=covariates)
        validate_data(self, X, reset=True, skip_check_array=True)
        self._seed = int(self._random.randint(2**31 - 1))
        return self

    @guard_process_state
    def transform(self, X: Any, *, covariates: object = None) -> Any:
        """Returns the data with imputed values, of shape ``(N, columns)``.

        Means are the same for the same rows in the same order; draws differ in each call.
        """
        check_is_fitted(self)
        x, mask, given = self.vae_._prepare_rows(X, covariates)
        validate_data(self, X, reset=False, skip_check_array=True)
        if mask is None:
            return self._return_like(X, x)
        seed = int(self._random.randint(2**31 - 1)) if self.sample_posterior else self._seed
        with fork_and_seed_rng(x.device, seed):
            result = evaluate.impute(
                self.vae_.vae_, x, mask, self.num_particles, int(self.sample_posterior),
                covariates=given,
            )  # fmt: skip
        imputed = result.draws[0] if self.sample_posterior else result.x
        return self._return_like(X, imputed, mask)

    def _return_like(self, X: Any, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        """Returns imputed data, with observed values as they were."""
        values = self.vae_._rows.undo(x)
        if self.vae_.schema_ is not None:
            frame = name_columns(X).copy()
            for index, name in enumerate(frame.columns):
                gaps = frame[name].isna().to_numpy() if mask is None else ~mask[:, index].numpy()
                if gaps.any():
                    column = frame[name].astype(object)
                    column[gaps] = values.iloc[:, index].astype(object).to_numpy()[gaps]
                    frame[name] = column.infer_objects()
            return frame
        source = np.asarray(X, dtype=np.float64)
        values = np.where(np.isnan(source), values, source)
        return values.astype(np.float32) if getattr(X, "dtype", None) == np.float32 else values

    def __sklearn_tags__(self) -> Any:
        """Declares that NaN is allowed, and the kinds of data of the VAE."""
        tags = super().__sklearn_tags__()
        tags.input_tags = get_input_tags(self.vae)
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def get_input_tags(vae: Any) -> Any:
    """Returns the kinds of data of a transformer, those of the default for other objects."""
    own = vae if isinstance(vae, VAETransformer) else VAETransformer()
    return own.__sklearn_tags__().input_tags


def build_vae(vae: Any, random: np.random.RandomState) -> VAETransformer:
    """Returns a copy of a VAE to fit, with a seed if it has none."""
    if vae is not None and not isinstance(vae, VAETransformer):
        raise ValueError(f"Expected vae to be a VAETransformer or None, got {vae!r:.100}")
    copy = VAETransformer() if vae is None else clone(vae)
    if copy.random_state is None:
        copy.set_params(random_state=int(random.randint(2**31 - 1)))
    return copy
