"""The Student-t distribution of a posterior."""

import pyro.distributions as dist

__all__ = ["StudentT"]


class StudentT(dist.StudentT):
    r"""A Student-t distribution whose KL to a normal has a closed form.

    PyTorch's registry lacks this pair. The formula is registered for this class only. It is
    infinite for at most two degrees of freedom.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> q, p = StudentT(torch.tensor(5.0)), dist.Normal(torch.zeros(()), 1.0)
        >>> torch.distributions.kl_divergence(q, p)
        tensor(0.1248)
    """
