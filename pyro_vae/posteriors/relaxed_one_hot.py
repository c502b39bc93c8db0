"""The relaxed categorical posterior."""

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.conditional import Posterior
from pyro_vae.distributions import RelaxedOneHot as RelaxedOneHotDistribution
from pyro_vae.validation import check_positive, check_variables

__all__ = ["RelaxedOneHot"]


class RelaxedOneHot(Posterior):
    r"""One or several relaxed categorical variables: concrete or Gumbel-softmax distributions.

    .. math::
        z = \mathrm{softmax}((h(x) + g) / \tau), \qquad g \sim \mathrm{Gumbel}(0, 1)

    It fits priors on the simplex. The model is then another than that with one-hot latent
    variables: its evidence is that of continuous ones.

    References:
        | The concrete distribution (Maddison, Mnih and Teh, 2016),
          https://arxiv.org/abs/1611.00712
        | Categorical reparameterization with Gumbel-softmax (Jang, Gu and Poole, 2016),
          https://arxiv.org/abs/1611.01144

    Arguments:
        latent_dim: The number of variables times that of their categories.
        variables: The number of variables; a VAE passes that of its prior.
        temperature: :math:`\tau`. A schedule of ``fit`` may lower it, by the name
            ``"posterior.temperature"``.

    Raises:
        ValueError: If ``latent_dim`` is not at least two categories for each variable, or the
            temperature is not positive.

    Example:
        >>> RelaxedOneHot(6, variables=2)(torch.zeros(7, 2, 3)).rsample().shape
        torch.Size([7, 6])
    """

    support = constraints.simplex
    schedulable = ("temperature",)
    caveat = (
        "The latent variables are relaxed: prior and posterior are densities on the simplex, and "
        "ELBO and evidence are those of this model, not of one with one-hot latent variables."
    )

    temperature: Tensor

    def __init__(self, latent_dim: int, *, variables: int = 1, temperature: float = 0.67) -> None:
        super().__init__()
        self.latent_dim, self.variables = check_variables(latent_dim, variables)
        temperature = check_positive("temperature", temperature)
        self.register_buffer("temperature", torch.tensor(temperature))
        self.feature_shape = torch.Size((self.variables, self.latent_dim // self.variables))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, variables, categories)``."""
        return RelaxedOneHotDistribution(self.temperature, features)

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"latent_dim={self.latent_dim}, variables={self.variables}"
