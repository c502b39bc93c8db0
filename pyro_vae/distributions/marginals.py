"""The marginals of distributions over vectors."""

import pyro.distributions as dist
import torch

__all__ = ["find_marginals"]


def find_marginals(d: dist.TorchDistribution) -> dist.TorchDistribution | None:
    """Returns the marginal of each dimension, as one distribution of batch shape ``(*, dim)``.

    A distribution over numbers is its own marginal. ``None`` if the marginals are not known.
    """
    if not d.event_shape:
        return d
    if isinstance(d, torch.distributions.Independent):
        return find_marginals(d.base_dist)
    if isinstance(
        d, (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)
    ):
        return dist.Normal(d.mean, d.stddev)
    if isinstance(d, torch.distributions.MixtureSameFamily):
        parts = find_marginals(d.component_distribution)
        if isinstance(parts, torch.distributions.Normal):
            # From (*batch, components, dim) to (*batch, dim, components).
            parts = dist.Normal(parts.loc.transpose(-1, -2), parts.scale.transpose(-1, -2))
            logits = d.mixture_distribution.logits.unsqueeze(-2).expand(parts.batch_shape)
            return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
    return None
