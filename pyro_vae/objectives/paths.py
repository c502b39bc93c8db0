"""Gradients by the way of the samples, for estimators that weigh it apart from densities."""

import torch
from torch import Tensor

from pyro_vae.objectives.traces import Pair

__all__ = ["along_samples", "value_free"]


def along_samples(log_density: Tensor, pairs: list[Pair], *, score: bool) -> Tensor:
    """Returns zero, with the gradient that a log density has by the way of the samples.

    The derivative by each sample is taken at the leaf that holds it, other samples fixed.

    Arguments:
        log_density: A scalar, computed from the leaves.
        pairs: The traces of runs that were cut.
        score: Whether the log density itself keeps its derivative by the parameters of the guide,
            those of a later site included, which may depend on an earlier sample. If not, what
            they owe to that sample is part of the derivative by it.
    """
    cuts = [(p.drawn[n], p.guide.nodes[n]["value"]) for p in pairs for n in p.drawn]
    # A guide that is not trained has no way to its parameters.
    cuts = [(sample, leaf) for sample, leaf in cuts if sample.requires_grad]
    by = [leaf for _, leaf in cuts] + ([] if score else [sample for sample, _ in cuts])
    if not by:
        return torch.zeros(())
    slopes = torch.autograd.grad(log_density, by, retain_graph=True, allow_unused=True)
    samples = [sample for sample, _ in cuts] * (len(by) // len(cuts))
    along = [
        (slope.detach() * value_free(sample)).sum()
        for sample, slope in zip(samples, slopes, strict=True)
        if slope is not None
    ]
    return torch.stack(along).sum() if along else torch.zeros(())


def value_free(value: Tensor) -> Tensor:
    """Returns zero, with the gradient of a value."""
    return value - value.detach()
