"""The Dirichlet distribution of a prior."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.distributions.draws import get_log

__all__ = ["Dirichlet"]


class Dirichlet(dist.Dirichlet):
    r"""A Dirichlet distribution that scores draws of this package by their logarithms.

    .. math:: \log p(z) = \sum_k (\alpha_k - 1) \log z_k + \log \Gamma(\textstyle\sum_k \alpha_k)
        - \sum_k \log \Gamma(\alpha_k)

    Shares that underflow in single precision keep their density.

    Example:
        >>> import torch
        >>> Dirichlet(torch.ones(3)).log_prob(torch.tensor([0.2, 0.3, 0.5]))
        tensor(0.6931)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density by the first elements, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        constant = self.concentration.sum(-1).lgamma() - self.concentration.lgamma().sum(-1)
        return ((self.concentration - 1) * get_log(value)).sum(-1) + constant
