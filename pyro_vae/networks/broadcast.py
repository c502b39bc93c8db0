"""The one way in which a network is called: over any number of leading dimensions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["apply_network", "eval_mode"]


def apply_network(
    network: nn.Module, x: Tensor, event_dim: int, context: Tensor | None = None
) -> Tensor:
    r"""Calls a network that knows one batch dimension on any number of them.

    Particles, enumeration and plates put dimensions to the left of ``x``; convolutions and batch
    norm refuse those. Here all of them are flattened into one before the call and restored after.

    Arguments:
        network: The network, called as ``network(x)`` or ``network(x, context)``.
        x: Its input, of shape ``(*batch, *event)``.
        event_dim: The number of event dimensions.
        context: Covariates of shape ``(*batch, features)``, broadcast against the batch of ``x``
            in both directions.

    Example:
        >>> import torch
        >>> x = torch.zeros(7, 1, 3, 5)
        >>> apply_network(torch.nn.Linear(5, 2), x, event_dim=1).shape
        torch.Size([7, 1, 3, 2])
    """
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    if context is None:
        out = network(x.reshape(-1, *event))
    else:
        batch = torch.broadcast_shapes(batch, context.shape[:-1])
        x = x.expand(*batch, *event).reshape(-1, *event)
        context = context.expand(*batch, context.shape[-1]).reshape(-1, context.shape[-1])
        out = network(x, context)
    return out.reshape(*batch, *out.shape[1:])


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Puts modules into evaluation mode, and each submodule back into its own mode after."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
