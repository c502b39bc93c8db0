"""Steps of sequences, for recurrent networks and transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["append_covariates", "read_sequence_shape", "read_steps", "split_length", "write_steps"]


def split_length(
    name: str, shape: Sequence[int], time_dim: int, form: str
) -> tuple[int, torch.Size]:
    """Returns the length of a sequence and the shape of a step.

    Arguments:
        name: The name of the shape, named in the error.
        shape: The shape of the sequence.
        time_dim: The dimension of ``shape`` that is time.
        form: The shape that the default of ``time_dim`` stands for, named in the error.

    Raises:
        ValueError: If ``shape`` has no dimension ``time_dim``.
    """
    if time_dim >= len(shape):
        raise ValueError(
            f"Expected {name} to have a dimension {time_dim}, which is time by {time_dim=}, as "
            f"{form} does, got {tuple(shape)}: pass the dimension of the steps, "
            f"time_dim={len(shape) - 1} or less"
        )
    return shape[time_dim], torch.Size((*shape[:time_dim], *shape[time_dim + 1 :]))


def read_sequence_shape(in_shape: Sequence[int], time_dim: int, masked: bool) -> tuple[int, int]:
    """Returns the length of an encoder's input and the number of features of each step.

    Raises:
        ValueError: If ``in_shape`` has no dimension ``time_dim``, or cannot hold a mask.
    """
    first, *rest = in_shape
    if masked and first % 2:
        raise ValueError(
            f"Expected in_shape to begin with values and their mask for masked=True, an even "
            f"number, got {tuple(in_shape)}: pass append_mask=True to the input transform"
        )
    shape = (first // 2, *rest) if masked else tuple(in_shape)
    length, step = split_length("in_shape", shape, time_dim, "(length, *features)")
    return length, step.numel() * (2 if masked else 1)


def read_steps(x: Tensor, time_dim: int, masked: bool) -> tuple[Tensor, Tensor | None]:
    """Returns steps ``(batch, length, features)``, and which of them are not padding.

    With a mask, features are the values, zero where they are not observed, followed by the mask.
    Padding are the steps after the last one with an observed value.

    Returns:
        The steps, and booleans ``(batch, length)``, or ``None`` without a mask.
    """
    if not masked:
        return _flatten_steps(x, time_dim), None
    values, mask = x.chunk(2, 1)
    # Pseudo-inputs of a prior have masks between zero and one.
    observed = mask > 0.5
    values = torch.where(observed, values, 0.0)
    steps = torch.cat([_flatten_steps(values, time_dim), _flatten_steps(mask, time_dim)], -1)
    later = _flatten_steps(observed, time_dim).any(-1).flip(1).cumsum(1).flip(1)
    return steps, later > 0


def _flatten_steps(x: Tensor, time_dim: int) -> Tensor:
    x = x.movedim(1 + time_dim, 1)
    return x.reshape(*x.shape[:2], x.shape[2:].numel())


def append_covariates(steps: Tensor, covariates: Tensor | None) -> Tensor:
    """Returns steps ``(batch, length, features)`` with the covariates as features of each."""
    if covariates is None:
        return steps
    return torch.cat([steps, covariates[:, None].expand(-1, steps.shape[1], -1)], -1)


def write_steps(steps: Tensor, step_shape: torch.Size, time_dim: int) -> Tensor:
    """Returns ``(batch, *out_shape)`` from outputs ``(batch, length, numel)`` for each step."""
    return steps.reshape(*steps.shape[:2], *step_shape).movedim(1, 1 + time_dim)
