"""A VAE with the interface of scikit-learn: numpy in, numpy out."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from pyro_vae import evaluate, likelihoods, networks, posteriors, priors
from pyro_vae.data import Rows, Scaling
from pyro_vae.guard import guard_process_state
from pyro_vae.networks import eval_mode
from pyro_vae.seeding import own_randomness
from pyro_vae.training.single import fit
from pyro_vae.vae.build import Part
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_flag, check_shape, check_size

__all__ = ["VAETransformer"]

_Array = NDArray[Any]


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""The codes of a VAE as a transformer of scikit-learn's, for tables and for pictures.

    ``transform`` gives the mean of q(z given x), ``inverse_transform`` the mean of p(x given z),
    ``score_samples`` an estimate of log p(x) in nats, in the units of the data, and ``score`` its
    mean over rows, by which a grid search may choose. Data are two-dimensional as everywhere in
    scikit-learn, a picture one row. NaN marks a missing value, which is left out of the likelihood.

    It works in double precision and on the processor. All randomness comes from ``random_state``.

    Arguments:
        latent_dim: The number of codes.
        event_shape: The shape of one datum, such as ``(1, 8, 8)`` for pictures of 64 columns;
            ``None`` stands for the number of columns.
        standardize: Whether each column is brought to mean 0 and standard deviation 1 before.
            Turn it off for a likelihood of data within bounds.
        prior: As those that follow, a part as :class:`pyro_vae.VAE` takes it.
        posterior: The family of q(z given x).
        likelihood: The family of p(x given z).
        encoder: The network from x.
        decoder: The network from z.
        objective: As in :func:`pyro_vae.fit`, an instance such as ``objectives.IWAE(5)``, of which
            each ``fit`` uses a copy; or a class or function that makes one. Default: the ELBO.
        optimizer: Makes a PyTorch optimizer from parameters, as in :func:`pyro_vae.fit`.
        epochs: The number of passes over the data.
        batch_size: The number of rows of a batch.
        num_particles: The number of samples for each row of ``score_samples``.
        random_state: An integer, a ``numpy.random.RandomState`` or ``None``.

    Attributes:
        vae_: The VAE.
        scaling_: How the columns were standardized.
        result_: What :func:`pyro_vae.fit` returned.
        n_features_in_: The number of columns.

    Raises:
        ValueError: If an argument does not fit, or data have another number of columns, lie outside
            the likelihood's support, or are infinite.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x = load_iris().data
        >>> codes = VAETransformer(2, epochs=5, random_state=0).fit_transform(x)
        >>> codes.shape
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
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        # Scikit-learn wants the arguments unchanged and unchecked until there are data.
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
        self.random_state = random_state

    def set_params(self, **params: Any) -> "VAETransformer":
        """Sets arguments of the constructor; those of an objective are not reached by ``__``."""
        nested = [name for name in params if "__" in name]
        if nested:
            raise ValueError(
                f"Expected names of arguments of VAETransformer, got {nested[0]!r}: search over "
                f"whole objects, as in objective=[ELBO(beta=0.5), ELBO(beta=1.0)]"
            )
        return super().set_params(**params)

    @guard_process_state
    def fit(self, X: _Array, y: object = None) -> "VAETransformer":
        """Trains a VAE.

        Arguments:
            X: Data of shape ``(N, columns)``.
            y: Not used.
        """
        check_size("num_particles", self.num_particles, least=1)
        standardize = check_flag("standardize", self.standardize)
        x = torch.tensor(self._checked(X, reset=True))
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.scaling_ = _standard(x) if standardize else _identity(x)
        with own_randomness(x.device, self._seed):
            self.vae_ = self._made(x.shape[1])
        x, mask = self._rows(x)
        self.result_ = fit(
            self.vae_,
            Rows(x, mask),
            objective=self._make_objective(),
            optimizer=self.optimizer,
            epochs=self.epochs,
            batch_size=self.batch_size,
            seed=self._seed,
        )
        return self

    @guard_process_state
    def transform(self, X: _Array) -> _Array:
        """Returns the means of q(z given x), of shape ``(N, latent_dim)``."""
        x, mask = self._given(X)
        return evaluate.posterior_means(self.vae_, x, mask=mask).numpy()

    @guard_process_state
    @torch.no_grad()
    def inverse_transform(self, X: _Array) -> _Array:
        """Returns the means of p(x given z), of shape ``(N, columns)``.

        Arguments:
            X: Codes of shape ``(N, latent_dim)``.
        """
        check_is_fitted(self)
        z = torch.tensor(check_array(X, dtype=np.float64))
        with eval_mode(self.vae_):
            mean = self.vae_.decode(z).mean
        return self.scaling_.undo(mean.flatten(1)).numpy()

    @guard_process_state
    def score_samples(self, X: _Array) -> _Array:
        """Returns estimates of log p(x) by importance sampling, of shape ``(N,)``, in nats.

        They are the same each time for the same rows in the same order.
        """
        x, mask = self._given(X)
        with own_randomness(x.device, self._seed):
            found = evaluate.log_evidence(self.vae_, x, self.num_particles, mask=mask)
        unit = self.scaling_.scale.log().expand(len(x), -1)
        seen = unit if mask is None else torch.where(mask.flatten(1), unit, 0.0)
        return (found - seen.sum(1)).numpy()

    def score(self, X: _Array, y: object = None) -> float:
        """Returns the mean of :meth:`score_samples`.

        Arguments:
            X: Data of shape ``(N, columns)``.
            y: Not used.
        """
        return float(self.score_samples(X).mean())

    @property
    def _n_features_out(self) -> int:
        """What scikit-learn names the codes by."""
        return self.latent_dim

    def __sklearn_tags__(self) -> Any:
        """Tells scikit-learn that NaN may stand for a missing value."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _checked(self, X: _Array, *, reset: bool) -> _Array:
        """Returns data as scikit-learn checks them."""
        options = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
        return validate_data(self, X, reset=reset, **options)

    def _made(self, columns: int) -> VAE:
        """Returns a VAE with new weights."""
        given = columns if self.event_shape is None else self.event_shape
        shape = tuple(check_shape("event_shape", given))
        if math.prod(shape) != columns:
            raise ValueError(
                f"Expected X to have {math.prod(shape)} columns, as event_shape={shape} says, got "
                f"{columns}"
            )
        return VAE(
            shape,
            self.latent_dim,
            prior=self.prior,
            posterior=self.posterior,
            likelihood=self.likelihood,
            encoder=self.encoder,
            decoder=self.decoder,
        ).double()

    def _make_objective(self) -> Any:
        """Returns an objective that no other ``fit`` changes."""
        if hasattr(self.objective, "differentiable_loss") and not isinstance(self.objective, type):
            return copy.deepcopy(self.objective)
        return self.objective() if callable(self.objective) else self.objective

    def _given(self, X: _Array) -> tuple[Tensor, Tensor | None]:
        """Returns rows and mask for data that come after the fit."""
        check_is_fitted(self)
        return self._rows(torch.tensor(self._checked(X, reset=False)))

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns standardized rows of the event shape, and a mask if values are missing."""
        scaled = (x - self.scaling_.loc) / self.scaling_.scale
        rows = scaled.reshape(-1, *self.vae_.event_shape)
        seen = ~rows.isnan()
        return rows, None if bool(seen.all()) else seen


def _standard(x: Tensor) -> Scaling:
    """Returns what brings each column to mean 0 and standard deviation 1, constant ones to 0."""
    seen = ~x.isnan()
    count = seen.sum(0).clamp(min=1)
    loc = torch.where(seen, x, 0.0).sum(0) / count
    scale = (torch.where(seen, (x - loc) ** 2, 0.0).sum(0) / count).sqrt()
    # The mean of equal numbers differs from them in the last bits.
    constant = scale <= 1e-12 * loc.abs()
    if not bool(scale.isfinite().all()):
        columns = (~scale.isfinite()).nonzero().flatten().tolist()
        raise ValueError(
            f"Expected X to have squares within double precision, got larger values in columns "
            f"{columns}: rescale them"
        )
    return Scaling(loc, torch.where(constant, 1.0, scale))


def _identity(x: Tensor) -> Scaling:
    """Returns what leaves each column as it is."""
    return Scaling(torch.zeros_like(x[0]), torch.ones_like(x[0]))
