"""The amortized normalizing flow posterior."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.conditional import Posterior
from pyro_vae.distributions import Flow as FlowDistribution
from pyro_vae.networks.flow import build_flow
from pyro_vae.validation import check_positive, check_size

__all__ = ["Flow"]


class Flow(Posterior):
    r"""An inverse autoregressive flow, with features of the encoder as context.

    .. math::
        z = \mu(x) + \sigma(x) \odot T(\epsilon \mid c(x)), \qquad \epsilon \sim \mathcal{N}(0, I)

    A draw and its density take one pass. The density of another value takes one pass for each
    dimension, or ``passes``: the gradient estimators STL and DReG and a VampPrior need it.
    :math:`T` starts near the identity, so that the posterior starts near a diagonal normal. The
    KL is sampled. The mean is estimated from 512 quasi-random points.

    References:
        | Improving variational inference with inverse autoregressive flow (Kingma et al., 2016),
          https://arxiv.org/abs/1606.04934
        | Neural spline flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Arguments:
        latent_dim: The number of latent dimensions.
        family: ``"spline"`` (NSF) or ``"affine"`` (IAF).
        transforms: The number of transforms.
        hidden: The widths of the hidden layers of their networks.
        activation: As in :class:`~pyro_vae.networks.MLP`.
        passes: The number of passes of an inverse; 2 for coupling transforms. ``None``: one for
            each dimension.
        bins: The number of bins of a spline.
        context: The number of features in :math:`c`.
        min_scale: The floor of :math:`\sigma`, which is a softplus of a feature plus this floor.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> posterior = Flow(3)
        >>> posterior(torch.zeros(7, *posterior.feature_shape)).rsample().shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        family: str = "spline",
        transforms: int = 2,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        passes: int | None = None,
        bins: int = 8,
        context: int = 16,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        latent_dim = self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        context = check_size("context", context, least=1)
        self.min_scale = check_positive("min_scale", min_scale)
        self.family = family
        self.feature_shape = torch.Size((2 * latent_dim + context,))
        self.transform = build_flow(
            latent_dim,
            context,
            family=family,
            transforms=transforms,
            hidden=hidden,
            activation=activation,
            passes=passes,
            bins=bins,
        )

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, *feature_shape)``."""
        d = self.latent_dim
        loc, raw_scale = features[..., :d], features[..., d : 2 * d]
        # The networks of the transforms see features of any size.
        context = torch.tanh(features[..., 2 * d :])
        scale = softplus(raw_scale) + self.min_scale
        return FlowDistribution(self.transform, loc, scale, context, generative=True)

    def extra_repr(self) -> str:
        """Shows the size and the family."""
        return f"latent_dim={self.latent_dim}, family={self.family!r}"
