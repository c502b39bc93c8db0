"""The one abstraction of the package: a conditional distribution."""

from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["Conditional", "Likelihood", "Posterior", "Prior", "positive"]


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
    """

    uses_encoder: bool = False

    latent_dim: int

    def extra_repr(self) -> str:
        """Shows the size in the module's repr."""
        return f"latent_dim={self.latent_dim}"


class Posterior(Conditional):
    r"""A posterior family :math:`q(z \mid x)`, parametrized by the features of an encoder.

    ``forward(features)`` takes ``(*batch, *feature_shape)`` and returns a distribution of batch
    shape ``batch`` and event shape ``(latent_dim,)``.
    """

    latent_dim: int
    feature_shape: torch.Size

    def extra_repr(self) -> str:
        """Shows the size in the module's repr."""
        return f"latent_dim={self.latent_dim}"


class Likelihood(Conditional):
    r"""A likelihood family :math:`p(x \mid z)`, parametrized by the features of a decoder.

    ``forward(features)`` takes ``(*batch, *feature_shape)`` and returns a distribution of batch
    shape ``batch`` and event shape ``event_shape``.
    """

    event_shape: torch.Size
    feature_shape: torch.Size

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` if ``x`` lies outside the support."""

    def extra_repr(self) -> str:
        """Shows the shape in the module's repr."""
        return f"event_shape={tuple(self.event_shape)}"


def positive(raw: Tensor, floor: float) -> Tensor:
    r"""Maps a real number to a scale, :math:`\mathrm{softplus}(\mathrm{raw}) + \mathrm{floor}`.

    It grows linearly, so that it does not overflow. The lower bound keeps densities finite.
    """
    return nn.functional.softplus(raw) + floor
