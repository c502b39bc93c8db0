"""The normalizing flow prior."""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.conditional import Prior
from pyro_vae.distributions import Flow as FlowDistribution
from pyro_vae.networks.flow import build_flow
from pyro_vae.validation import check_size

__all__ = ["Flow"]


class Flow(Prior):
    r"""A normalizing flow, trained jointly with the other parts.

    .. math::
        p(z) = \mathcal{N}(T(z) \mid 0, I) \left| \det \frac{\partial T}{\partial z} \right|

    :math:`T` is autoregressive: a density takes one pass, and a draw one pass for each dimension,
    or ``passes``. It starts near the identity, so that the prior starts near a standard normal.
    Given covariates, :math:`T` depends on them. The KL of a posterior is sampled.

    References:
        | Masked autoregressive flow for density estimation (Papamakarios, Pavlakou and Murray,
          2017), https://arxiv.org/abs/1705.07057
        | Neural spline flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Arguments:
        latent_dim: The number of latent dimensions.
        family: ``"spline"`` (NSF) or ``"affine"`` (MAF).
        transforms: The number of transforms.
        hidden: The widths of the hidden layers of their networks.
        activation: As in :class:`~pyro_vae.networks.MLP`.
        passes: The number of passes of a draw; 2 for coupling transforms. ``None``: one for each
            dimension.
        bins: The number of bins of a spline.
        covariate_dim: The number of covariates.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> Flow(3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    loc: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        family: str = "spline",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        passes: int | None = None,
        bins: int = 8,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        self.family = family
        self.transform = build_flow(
            self.latent_dim,
            self.covariate_dim,
            family=family,
            transforms=transforms,
            hidden=hidden,
            activation=activation,
            passes=passes,
            bins=bins,
        )
        self.register_buffer("loc", torch.zeros(self.latent_dim))

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()`` or that of ``covariates``.

        Raises:
            ValueError: If covariates are missing.
        """
        if self.covariate_dim and covariates is None:
            raise ValueError(f"Expected {self.covariate_dim} covariates, got None")
        return FlowDistribution(self.transform, self.loc, torch.ones_like(self.loc), covariates)

    def extra_repr(self) -> str:
        """Shows the size and the family."""
        return f"latent_dim={self.latent_dim}, family={self.family!r}"
