"""The uniform prior on the sphere."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.conditional import Prior
from pyro_vae.distributions import UniformSphere as UniformSphereDistribution
from pyro_vae.validation import check_size

__all__ = ["UniformSphere"]


class UniformSphere(Prior):
    r"""A uniform prior over directions, the unit sphere of :math:`\mathbb{R}^D`.

    .. math:: p(z) = \frac{\Gamma(D / 2)}{2 \pi^{D / 2}}, \qquad \lVert z \rVert = 1

    It has no centre that attracts all embeddings. The KL of a power spherical posterior has a
    closed form.

    References:
        | Hyperspherical variational auto-encoders (Davidson et al., 2018),
          https://arxiv.org/abs/1804.00891

    Arguments:
        latent_dim: D, the number of coordinates, at least 2: one more than the dimension of the
            sphere.

    Raises:
        ValueError: If ``latent_dim`` is less than 2.

    Example:
        >>> UniformSphere(3)().sample().norm().round(decimals=3)
        tensor(1.)
    """

    support = constraints.sphere

    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = check_size("latent_dim", latent_dim, least=2)
        self.register_buffer("zero", torch.zeros(self.latent_dim), persistent=False)

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()``."""
        return UniformSphereDistribution(self.zero)
