"""The categorical posterior with straight-through gradients."""

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.conditional import Posterior
from pyro_vae.distributions import StraightThroughOneHot
from pyro_vae.validation import check_variables

__all__ = ["StraightThrough"]


class StraightThrough(Posterior):
    r"""One-hot variables whose draws have the gradients of their probabilities.

    .. math:: z = \mathrm{onehot}(c) + \pi(x) - \mathrm{stop}(\pi(x)), \qquad c \sim \pi(x)

    All objectives train it. Its gradient is biased; the ELBO and the evidence are those of the
    one-hot model. The KL to :class:`pyro_vae.priors.OneHot` has a closed form, with its exact
    gradient.

    References:
        | Estimating or propagating gradients through stochastic neurons for conditional computation
          (Bengio, Léonard and Courville, 2013), https://arxiv.org/abs/1308.3432

    Arguments:
        latent_dim: The number of variables times that of their categories.
        variables: The number of variables; a VAE passes that of its prior.

    Raises:
        ValueError: If ``latent_dim`` is not at least two categories for each variable.

    Example:
        >>> StraightThrough(6, variables=2)(torch.zeros(2, 2, 3)).rsample().sum(-1)
        tensor([2., 2.])
    """

    support = constraints.one_hot
    caveat = (
        "The straight-through gradient of the encoder is biased; ELBO and evidence are those of "
        "the model with one-hot latent variables."
    )

    def __init__(self, latent_dim: int, *, variables: int = 1) -> None:
        super().__init__()
        self.latent_dim, self.variables = check_variables(latent_dim, variables)
        self.feature_shape = torch.Size((self.variables, self.latent_dim // self.variables))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, variables, categories)``."""
        return StraightThroughOneHot(features)

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"latent_dim={self.latent_dim}, variables={self.variables}"
