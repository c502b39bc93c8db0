"""Calls of networks with any number of leading dimensions, and in evaluation mode."""

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
    num_outputs: int | None = None,
) -> Any:
    r"""Calls a network for one batch dimension on any number of batch dimensions.

    Particles, enumeration and plates add dimensions to the left of ``x``, which convolutions and
    batch norm refuse. They are flattened into one dimension before the call and restored after it.
    A network with the attribute ``broadcasts = True`` receives ``x`` unchanged; random weights, for
    example, have one draw per particle. Under ``torch.autocast`` the output has the precision of
    the input, because densities need it.

    Arguments:
        network: The network, called as ``network(x)`` or ``network(x, covariates)``.
        x: Its input, of shape ``(*batch, *event)``.
        event_dim: The number of event dimensions.
        covariates: Covariates of shape ``(*batch, features)``, broadcast against the batch of ``x``
            in both directions.
        frozen: Whether to use copies of the buffers. Batch norm in evaluation mode reads its
            running statistics again in the backward pass, when a later batch may have changed them.
        num_outputs: The length of the tuple that the network returns; ``None`` for one tensor.

    Returns:
        The output, or a tuple of outputs.

    Raises:
        ValueError: If the network does not return one row for each input row, or another number of
            tensors.

    Example:
        >>> import torch
        >>> x = torch.zeros(7, 1, 3, 5)
        >>> apply_network(torch.nn.Linear(5, 2), x, event_dim=1).shape
        torch.Size([7, 1, 3, 2])
    """
    batch, event = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :]
    call = _copy_buffers(network) if frozen else network
    broadcasts = getattr(network, "broadcasts", False)
    if not broadcasts:
        if covariates is not None:
            batch = torch.broadcast_shapes(batch, covariates.shape[:-1])
            covariates = covariates.expand(*batch, covariates.shape[-1])
            covariates = covariates.reshape(math.prod(batch), covariates.shape[-1])
        x = x.expand(*batch, *event).reshape(math.prod(batch), *event)
    out = call(x) if covariates is None else call(x, covariates)
    outputs = _read_outputs(network, out, num_outputs)
    if not broadcasts:
        outputs = tuple(_restore_batch(network, output, len(x), batch) for output in outputs)
    outputs = tuple(_restore_precision(x, output) for output in outputs)
    return outputs[0] if num_outputs is None else outputs


def _read_outputs(network: nn.Module, out: Any, count: int | None) -> tuple[Tensor, ...]:
    """Returns the outputs of a network, or raises a ``ValueError`` if there are more or fewer."""
    if count is None and isinstance(out, Tensor):
        return (out,)
    several = isinstance(out, (tuple, list)) and all(isinstance(o, Tensor) for o in out)
    if count is not None and several and len(out) == count:
        return tuple(out)
    shapes = [tuple(o.shape) for o in out] if several else ""
    got = "one tensor" if isinstance(out, Tensor) else f"a {type(out).__name__} {shapes}".rstrip()
    if count is None:
        remedy = ": stack them, torch.stack(outputs, 1)" if shapes else ""
        expected = "one tensor"
    else:
        expected, remedy = f"a tuple of {count} tensors, as the posterior demands", ""
    raise ValueError(f"Expected {type(network).__name__} to return {expected}, got {got}{remedy}")


def _restore_batch(network: nn.Module, output: Tensor, rows: int, batch: torch.Size) -> Tensor:
    """Restores the batch dimensions that were flattened, or raises a ``ValueError``."""
    if output.shape[:1] != (rows,):
        raise ValueError(
            f"Expected {type(network).__name__} to return {rows} rows for {rows}, got a tensor of "
            f"shape {tuple(output.shape)}"
        )
    return output.reshape((*batch, *output.shape[1:]))


def _restore_precision(x: Tensor, out: Tensor) -> Tensor:
    """Converts an output to the precision of its input, which ``torch.autocast`` lowers."""
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
        return out.to(x.dtype)
    return out


def _copy_buffers(network: nn.Module) -> Callable[..., Tensor]:
    """Returns the network as a function that uses copies of the current buffers."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    if not buffers:
        return network
    return lambda *inputs: functional_call(network, buffers, inputs)


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Sets modules to evaluation mode, and restores the mode of each submodule after it."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
