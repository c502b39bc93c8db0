"""A VAE as a scikit-learn transformer."""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from pyro_vae import evaluate, likelihoods, networks, posteriors, priors
from pyro_vae.data import Covariates, Rows, Scaling
from pyro_vae.guard import guard_process_state
from pyro_vae.networks import eval_mode
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.sklearn.nested import set_argument
from pyro_vae.sklearn.rows import NumberRows, TableRows, has_columns, name_columns
from pyro_vae.training.single import fit
from pyro_vae.vae.build import Part
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_flag, check_shape, check_size, describe_value

__all__ = ["VAETransformer"]

_Array = NDArray[Any]


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A VAE as a scikit-learn transformer, for tables and images.

    ``transform`` returns the mean of q(z given x), ``inverse_transform`` the mean of p(x given z),
    and ``score_samples`` an estimate of log p(x) in nats, in the units of the data. ``score``
    returns its mean over rows, as a criterion for a grid search. Data are two-dimensional as
    everywhere in scikit-learn; an image is one row. NaN marks a missing value, which the likelihood
    ignores.

    All methods take ``covariates``, one row for each row of ``X``: a pandas table, a mapping from
    names to columns, or an array. Words, booleans and up to 10 distinct integers are categories,
    other numbers are standardized. With ``sklearn.set_config(enable_metadata_routing=True)`` a
    pipeline or a grid search passes a table or an array on to the methods that request it, as by
    ``set_fit_request(covariates=True)``, ``set_transform_request`` and ``set_score_request``.

    With ``likelihood=likelihoods.Columns`` the columns of a pandas table may be of different kinds,
    as for :func:`pyro_vae.data.table` with ``mixed``. ``inverse_transform`` then returns a table
    with words and units.

    It computes in double precision on the CPU; embeddings of data in single precision have single
    precision. All randomness comes from ``random_state``. Arguments of parts can be set by nested
    names, as in ``set_params(prior__components=20)`` for a prior that is a class or a partial.

    Arguments:
        latent_dim: The number of latent dimensions.
        event_shape: The shape of one datum, such as ``(1, 8, 8)`` for images of 64 columns.
            Default: the number of columns.
        standardize: Whether to scale each column to mean 0 and standard deviation 1 first. Pass
            ``False`` for a likelihood of bounded data.
        prior: The prior p(z); this and the next four are parts as in :class:`pyro_vae.VAE`.
        posterior: The family of q(z given x).
        likelihood: The family of p(x given z).
        encoder: The network from x.
        decoder: The network from z.
        objective: As in :func:`pyro_vae.fit`: an instance such as ``objectives.IWAE(5)``, which
            each ``fit`` copies, or a class or function that returns one. Default: the ELBO.
        optimizer: A function from parameters to a PyTorch optimizer, as in :func:`pyro_vae.fit`.
        epochs: The number of passes over the data.
        batch_size: The number of rows of a batch.
        num_particles: The number of samples for each row of ``score_samples``.
        kinds: For ``likelihoods.Columns``, the kinds of columns by name, which are inferred for
            others: ``"real"``, ``"positive"``, ``"count"``, ``"binary"``, ``"categorical"``, or the
            list of the levels of an ordinal column in order.
        random_state: An integer, a ``numpy.random.RandomState`` or ``None``.

    Attributes:
        vae_: The VAE.
        scaling_: The standardization of the columns; ``None`` for ``likelihoods.Columns``.
        schema_: The kinds of the columns for ``likelihoods.Columns``; otherwise ``None``.
        covariates_: The encoding of the covariates, or ``None``.
        result_: The result of :func:`pyro_vae.fit`.
        n_features_in_: The number of columns.

    Raises:
        ValueError: If an argument does not fit, or data have another number of columns, lie outside
            the likelihood's support, or are infinite.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x = load_iris().data
        >>> embedding = VAETransformer(2, epochs=5, random_state=0).fit_transform(x)
        >>> embedding.shape
        (150, 2)
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        event_shape: tuple[int, ...] | None = None,
        standardize: bool = True,
        prior: Part = priors.Normal,
        posterior: Part = posteriors.Normal,
        likelihood: Part = likelihoods.Normal,
        encoder: Part = networks.MLP,
        decoder: Part = networks.MLP,
        objective: Any = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        epochs: int = 100,
        batch_size: int = 100,
        num_particles: int = 100,
        kinds: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        # Scikit-learn requires that arguments are neither changed nor checked before ``fit``.
        self.latent_dim = latent_dim
        self.event_shape = event_shape
        self.standardize = standardize
        self.prior = prior
        self.posterior = posterior
        self.likelihood = likelihood
        self.encoder = encoder
        self.decoder = decoder
        self.objective = objective
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.num_particles = num_particles
        self.kinds = kinds
        self.random_state = random_state

    _shared_rows: TableRows | None = None
    """The kinds and levels of a larger table, of which ``fit`` gets some rows."""

    def set_params(self, **params: Any) -> "VAETransformer":
        """Sets arguments of the constructor, and arguments of parts by names with ``__``."""
        nested = {name: params.pop(name) for name in list(params) if "__" in name}
        super().set_params(**params)
        for name, value in nested.items():
            role, _, argument = name.partition("__")
            if role not in self.get_params(deep=False):
                raise ValueError(
                    f"Expected a part of VAETransformer before '__', got {role!r} in {name!r}"
                )
            setattr(self, role, set_argument(role, getattr(self, role), argument, value))
        return self

    @guard_process_state
    def fit(self, X: Any, y: object = None, *, covariates: object = None) -> "VAETransformer":
        """Trains a VAE.

        Arguments:
            X: Data of shape ``(N, columns)``.
            y: Not used.
            covariates: Covariates of the rows; or ``None``.
        """
        check_size("num_particles", self.num_particles, least=1)
        standardize = check_flag("standardize", self.standardize)
        self.scaling_, self.schema_ = None, None
        values = self._validate(X, reset=True)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if has_columns(self.likelihood):
            self._rows: Any = self._shared_rows or TableRows.fit(values, self.kinds)
            self.schema_ = self._rows.schema
        else:
            x = torch.tensor(values)
            self.scaling_ = _fit_scaling(x) if standardize else _identity_scaling(x)
            self._rows = NumberRows(self.scaling_, self._choose_shape(x.shape[1]))
        x, mask = self._rows.prepare(values)
        table = None if covariates is None else _to_table(covariates)
        self.covariates_ = None if table is None else Covariates.fit(table)
        encoded = self._encode(table, len(x))
        with fork_and_seed_rng(x.device, self._seed):
            self.vae_ = self._build_vae()
        self.result_ = fit(
            self.vae_,
            Rows(x, mask, covariates=encoded),
            objective=self._copy_objective(),
            optimizer=self.optimizer,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self._seed,
        )
        return self

    @guard_process_state
    def transform(self, X: _Array, *, covariates: object = None) -> _Array:
        """Returns the means of q(z given x), of shape ``(N, latent_dim)``."""
        x, mask, given = self._prepare_rows(X, covariates)
        means = evaluate.posterior_means(self.vae_, x, covariates=given, mask=mask).numpy()
        return means.astype(np.float32) if getattr(X, "dtype", None) == np.float32 else means

    def fit_transform(self, X: _Array, y: object = None, *, covariates: object = None) -> _Array:
        """Trains a VAE, and returns the means of q(z given x) of its training rows."""
        return self.fit(X, y, covariates=covariates).transform(X, covariates=covariates)

    @guard_process_state
    @torch.no_grad()
    def inverse_transform(self, X: _Array, *, covariates: object = None) -> Any:
        """Returns the means of p(x given z), of shape ``(N, columns)``.

        Of coded columns of ``likelihoods.Columns`` it returns the most probable words.

        Arguments:
            X: Embeddings of shape ``(N, latent_dim)``.
            covariates: Covariates of the rows; or ``None``.
        """
        check_is_fitted(self)
        z = torch.tensor(check_array(X, dtype=np.float64))
        given = self._encode(covariates, len(z))
        with eval_mode(self.vae_):
            mean = self.vae_.decode(z, given).mean
        return self._rows.undo(mean)

    @guard_process_state
    def score_samples(self, X: _Array, *, covariates: object = None) -> _Array:
        """Returns estimates of log p(x) by importance sampling, of shape ``(N,)``, in nats.

        They are deterministic for the same rows in the same order. With covariates they are given
        these.
        """
        x, mask, given = self._prepare_rows(X, covariates)
        with fork_and_seed_rng(x.device, self._seed):
            log_evidence = evaluate.log_evidence(
                self.vae_, x, self.num_particles, covariates=given, mask=mask
            )
        # The log determinant of the standardization converts to the units of the data.
        return (log_evidence - self._rows.sum_log_scales(mask, len(x))).numpy()

    def score(self, X: _Array, y: object = None, *, covariates: object = None) -> float:
        """Returns the mean of :meth:`score_samples`.

        Arguments:
            X: Data of shape ``(N, columns)``.
            y: Not used.
            covariates: Covariates of the rows; or ``None``.
        """
        return float(self.score_samples(X, covariates=covariates).mean())

    @property
    def _n_features_out(self) -> int:
        """The number of output columns, which scikit-learn names after the class."""
        return self.latent_dim

    def __sklearn_tags__(self) -> Any:
        """Declares that NaN is allowed, and words for columns of different kinds."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        has_words = has_columns(self.likelihood)
        tags.input_tags.categorical = tags.input_tags.string = has_words
        return tags

    def _validate(self, X: Any, *, reset: bool) -> Any:
        if has_columns(self.likelihood):
            frame = name_columns(X)
            validate_data(self, X, reset=reset, skip_check_array=True)
            return frame
        options = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
        try:
            return validate_data(self, X, reset=reset, **options)
        except ValueError as error:
            if "could not convert string" not in str(error):
                raise
            raise ValueError(
                f"Expected X to have numbers, got words (likelihood=likelihoods.Columns takes "
                f"them): {error}"
            ) from error

    def _choose_shape(self, columns: int) -> tuple[int, ...]:
        event_shape = columns if self.event_shape is None else self.event_shape
        shape = tuple(check_shape("event_shape", event_shape))
        if math.prod(shape) != columns:
            raise ValueError(
                f"Expected X to have {math.prod(shape)} columns for event_shape={shape}, got "
                f"{columns}"
            )
        return shape

    def _build_vae(self) -> VAE:
        likelihood = self.likelihood
        if self.schema_ is not None:
            likelihood = partial(likelihood, columns=self.schema_)
        return VAE(
            self._rows.event_shape,
            self.latent_dim,
            prior=self.prior,
            posterior=self.posterior,
            likelihood=likelihood,
            encoder=self.encoder,
            decoder=self.decoder,
            covariate_dim=0 if self.covariates_ is None else self.covariates_.dim,
        ).double()

    def _copy_objective(self) -> Any:
        """Returns an objective that other calls of ``fit`` do not change."""
        if hasattr(self.objective, "differentiable_loss") and not isinstance(self.objective, type):
            return copy.deepcopy(self.objective)
        return self.objective() if callable(self.objective) else self.objective

    def _prepare_rows(
        self, X: Any, covariates: object
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        check_is_fitted(self)
        x, mask = self._rows.prepare(self._validate(X, reset=False))
        return x, mask, self._encode(covariates, len(x))

    def _encode(self, covariates: object, size: int) -> Tensor | None:
        """Returns encoded covariates, or raises a ``ValueError`` if they do not fit."""
        own = self.covariates_
        if own is None:
            if covariates is not None:
                raise ValueError("Expected no covariates, because fit got none, got some")
            return None
        if covariates is None:
            raise ValueError(f"Expected the covariates {own.names} of fit, got none")
        table = _to_table(covariates)
        if table is not covariates and len(table) > len(own.names):
            raise ValueError(
                f"Expected the covariates {own.names} of fit, got an array of {len(table)} columns"
            )
        encoded = own.encode(table).double()
        if len(encoded) != size:
            raise ValueError(
                f"Expected covariates of {size} rows, got {len(encoded)} (scikit-learn selects "
                f"rows of tables and arrays, not of mappings)"
            )
        return encoded


def _to_table(covariates: Any) -> Mapping[str, Any]:
    """Returns columns of covariates by name; those of an array are numbered."""
    if hasattr(covariates, "to_pandas"):
        covariates = covariates.to_pandas()
    if isinstance(covariates, Mapping) or hasattr(covariates, "columns"):
        return covariates
    if hasattr(covariates, "to_frame"):
        return {str(covariates.name or "covariate"): covariates}
    array = np.asarray(covariates)
    if array.ndim == 1:
        return {"covariate": array}
    if array.ndim != 2:
        raise ValueError(
            f"Expected covariates to be a table, columns by name, or an array of shape (N,) or "
            f"(N, covariates), got {describe_value(covariates)}"
        )
    return {f"covariate_{i}": column for i, column in enumerate(array.T)}


def _fit_scaling(x: Tensor) -> Scaling:
    """Returns the scaling to mean 0 and standard deviation 1; constant columns become 0."""
    loc, scale = Scaling.fit(x, ~x.isnan())
    if not bool(scale.isfinite().all()):
        columns = (~scale.isfinite()).nonzero().flatten().tolist()
        raise ValueError(
            f"Expected X to have squares within double precision, got larger values in columns "
            f"{columns}: rescale them"
        )
    return Scaling(loc, torch.where(scale == 0, 1.0, scale))


def _identity_scaling(x: Tensor) -> Scaling:
    return Scaling(torch.zeros_like(x[0]), torch.ones_like(x[0]))
