"""The base of posteriors of independent elements with a location and a scale."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.conditional import Posterior
from pyro_vae.validation import check_positive, check_size

__all__ = ["LocationScale"]


class LocationScale(Posterior):
    """A posterior of independent elements.

    Arguments:
        latent_dim: The number of latent dimensions.
        min_scale: The floor of the scale, which is a softplus of a feature plus this floor.

    Raises:
        ValueError: If a size or ``min_scale`` is not positive.
    """

    dependent: int = 0
    """The number of elements of z that follow from the others."""

    def __init__(self, latent_dim: int, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        self.latent_dim = check_size("latent_dim", latent_dim, least=1 + self.dependent)
        self.min_scale = check_positive("min_scale", min_scale)
        self.feature_shape = torch.Size((2, self.latent_dim - self.dependent))

    def compute_loc_and_scale(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns locations and scales for features of shape ``(*batch, *feature_shape)``."""
        loc, raw_scale = features.unbind(-2)
        return loc, softplus(raw_scale) + self.min_scale
