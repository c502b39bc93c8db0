"""The one way in which a network is called: over any number of leading dimensions."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["apply_network", "eval_mode"]


def apply_network(
    network: nn.Module,
    x: Tensor,
    event_dim: int,
    covariates: Tensor | None = None,
    *,
    frozen: bool = False,
) -> Tensor:
    r"""Calls a network that knows one batch dimension on any number of them.

    Particles, enumeration and plates put dimensions to the left of ``x``; convolutions and batch
    norm refuse those. Here all of them are flattened into one before the call and restored after.
    A network with the attribute ``broadcasts = True`` is given them as they are: one whose weights
    are random has a draw of them for each particle. Under ``torch.autocast`` the output has the
    precision of the input, since densities need it.

    Arguments:
        network: The network, called as ``network(x)`` or ``network(x, covariates)``.
        x: Its input, of shape ``(*batch, *event)``.
        event_dim: The number of event dimensions.
        covariates: Covariates of shape ``(*batch, features)``, broadcast against the batch of ``x``
            in both directions.
        frozen: Whether the network works on copies of its buffers. Batch norm reads its running
            statistics once more on the way back, when a later batch may have changed them.

    Raises:
        ValueError: If the network does not return a row for each row that it is given.

    Example:
        >>> import torch
        >>> x = torch.zeros(7, 1, 3, 5)
        >>> apply_network(torch.nn.Linear(5, 2), x, event_dim=1).shape
        torch.Size([7, 1, 3, 2])
    """
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    call = _on_copies_of_buffers(network) if frozen else network
    if getattr(network, "broadcasts", False):
        out = _check_output(network, call(x) if covariates is None else call(x, covariates))
        return _with_precision_of(x, out)
    if covariates is None:
        x = x.reshape(math.prod(batch), *event)
        out = call(x)
    else:
        batch = torch.broadcast_shapes(batch, covariates.shape[:-1])
        x = x.expand(*batch, *event).reshape(math.prod(batch), *event)
        covariates = covariates.expand(*batch, covariates.shape[-1])
        out = call(x, covariates.reshape(math.prod(batch), covariates.shape[-1]))
    _check_output(network, out)
    if out.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"Expected {type(network).__name__} to return {x.shape[0]} rows for {x.shape[0]}, "
            f"got a tensor of shape {tuple(out.shape)}"
        )
    return _with_precision_of(x, out.reshape((*batch, *out.shape[1:])))


def _check_output(network: nn.Module, out: Any) -> Tensor:
    """Returns the output of a network, or raises a ``ValueError`` unless it is one tensor."""
    if isinstance(out, Tensor):
        return out
    shapes = [tuple(one.shape) for one in out] if _are_tensors(out) else ""
    cure = ": stack them, torch.stack(outputs, 1)" if shapes else ""
    raise ValueError(
        f"Expected {type(network).__name__} to return one tensor, got a {type(out).__name__} "
        f"{shapes}{cure}".rstrip()
    )


def _are_tensors(out: Any) -> bool:
    return isinstance(out, (tuple, list)) and all(isinstance(one, Tensor) for one in out)


def _with_precision_of(x: Tensor, out: Tensor) -> Tensor:
    """Returns an output in the precision of its input, which ``torch.autocast`` lowers."""
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
        return out.to(x.dtype)
    return out


def _on_copies_of_buffers(network: nn.Module) -> Callable[..., Tensor]:
    """Returns a network as a function of its input, its buffers as they are now."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    if not buffers:
        return network
    return lambda *inputs: functional_call(network, buffers, inputs)


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
