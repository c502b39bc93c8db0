"""The multivariate normal of a full-covariance posterior."""

import pyro.distributions as dist

__all__ = ["FullNormal"]


class FullNormal(dist.MultivariateNormal):
    r"""A multivariate normal with a closed-form KL to independent normals.

    PyTorch's registry has none for that pair, although it is the commonest for a full-covariance
    posterior. It is registered for this class alone, so that no other program's multivariate
    normal changes.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> q = FullNormal(torch.zeros(2), scale_tril=torch.eye(2))
        >>> p = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> torch.distributions.kl_divergence(q, p)
        tensor(0.)
    """
