"""The one abstraction of the package: a conditional distribution."""

from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

__all__ = ["Conditional", "Likelihood", "Posterior", "Prior"]


class Conditional(nn.Module, ABC):
    """A module whose ``forward`` returns a Pyro distribution.

    A part never calls ``pyro.sample`` and uses no site names. Its caller decides where the
    distribution is sampled or scored.
    """

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> dist.TorchDistribution:
        """Returns the distribution given the values of the condition."""


class Prior(Conditional):
    r"""A prior :math:`p(z)` or :math:`p(z \mid c)` over vectors of length ``latent_dim``.

    ``forward(covariates=None, *, encode=None)`` returns a distribution of event shape
    ``(latent_dim,)``. A prior that evaluates the posterior, such as the VampPrior, sets
    :attr:`uses_encoder` and calls ``encode``, a callable :math:`x \mapsto q(z \mid x)`.

    Attributes:
        support: The support of a block of z, a vector constraint of :mod:`pyro.distributions`. A
            posterior fits a prior if their supports and numbers of blocks are the same. ``None``:
            that of any posterior.
        variables: The number of blocks.
        caveat: A sentence that reports add, or ``None``.
        schedulable: The names of positive scalar buffers that ``fit`` may change by a schedule, as
            ``schedules={"prior.temperature": ...}``.
    """

    uses_encoder: bool = False
    support: Any = constraints.real_vector
    variables: int = 1
    caveat: str | None = None
    schedulable: tuple[str, ...] = ()

    latent_dim: int

    def extra_repr(self) -> str:
        """Shows the size in the module's repr."""
        return f"latent_dim={self.latent_dim}"


class Posterior(Conditional):
    r"""A posterior family :math:`q(z \mid x)`, parametrized by the features of an encoder.

    ``forward(features)`` takes ``(*batch, *feature_shape)`` and returns a distribution of batch
    shape ``batch`` and event shape ``(latent_dim,)``.

    Attributes:
        feature_shape: The output shape of the encoder. A tuple of several shapes demands an encoder
            that returns a tuple of as many tensors, which ``forward`` takes one by one.
        support: The support of a block of z, as of :class:`Prior`.
        variables: The number of blocks. The VAE passes that of the prior to a constructor that
            names it.
        caveat: A sentence that reports add, or ``None``.
        schedulable: As of :class:`Prior`.
    """

    support: Any = constraints.real_vector
    variables: int = 1
    caveat: str | None = None
    schedulable: tuple[str, ...] = ()

    latent_dim: int
    feature_shape: torch.Size | tuple[torch.Size, ...]

    def extra_repr(self) -> str:
        """Shows the size in the module's repr."""
        return f"latent_dim={self.latent_dim}"


class Likelihood(Conditional):
    r"""A likelihood family :math:`p(x \mid z)`, computed from the features of a decoder.

    ``forward(features)`` takes ``(*batch, *feature_shape)`` and returns a distribution of batch
    shape ``batch`` and event shape ``event_shape``.

    Attributes:
        measure: ``"mass"`` if values are probabilities of discrete data, ``"density"`` otherwise.
            Only evidence of one measure is compared.
        grey_scale: Whether values outside of the support are scored, so that the score is not a
            likelihood.
        fill_value: A point of the support, which replaces missing values.
        uses_size_factor: Whether ``forward`` takes a size factor of shape ``batch`` as its second
            argument. It is the last covariate of the VAE.
        is_count: Whether the data are counts, for which reports compare variances, zeros and sums.
        condition: The function of the datum that its evidence takes as given, such as
            ``"row sum"``; or ``None``.
        default_transform: The member of :mod:`pyro_vae.transforms` that prepares its data for the
            encoder, unless another is given.
    """

    measure: str
    grey_scale: bool = False
    fill_value: float = 0.0
    uses_size_factor: bool = False
    is_count: bool = False
    condition: str | None = None
    default_transform: str = "Identity"

    event_shape: torch.Size
    feature_shape: torch.Size

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` where ``x`` lies outside the support."""

    def em_step(
        self, responsibilities: Tensor, x: Tensor, smoothing: float
    ) -> dist.TorchDistribution | None:
        """Computes the M step of a mixture of this likelihood, for the baseline of a report.

        Arguments:
            responsibilities: The weight of each row in each component, ``(N, K)``.
            x: Rows of elements, ``(N, D)``, in double precision, with NaN for missing values.
            smoothing: A pseudo-count, which keeps components off the edge of their range.

        Returns:
            The components, independent over elements, of batch shape ``(K, D)``; or ``None``, the
            default, for a likelihood without a closed M step.
        """
        return None

    def extra_repr(self) -> str:
        """Shows the shape in the module's repr."""
        return f"event_shape={tuple(self.event_shape)}"
