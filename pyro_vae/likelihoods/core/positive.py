"""Positive parameters of a likelihood: fixed, learned or from the network."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.validation import check_positive, describe_value

__all__ = ["SOURCES", "Concentration", "Scale", "bound_softly", "format_part"]

SOURCES = ("shared", "element", "network")

MAX_LOG = 20.0
"""The bound of logarithms that a network computes; e**20 is 5e8."""


def format_part(part: nn.Module) -> str:
    """Returns the repr of a likelihood in one line, with its positive parameters."""
    parameters = [f"{name}={child.extra_repr()}" for name, child in part.named_children()]
    return f"{type(part).__name__}({', '.join([part.extra_repr(), *parameters])})"


def bound_softly(h: Tensor, bound: float) -> Tensor:
    """Returns ``bound * tanh(h / bound)``, close to ``h`` where that is small."""
    return bound * torch.tanh(h / bound)


class _Positive(nn.Module):
    """The base of positive parameters.

    Arguments:
        name: The name of the likelihood's argument, for errors.
        value: A number, or the source of the parameter, one of ``SOURCES``.
        event_shape: The shape of one datum.
    """

    def __init__(self, name: str, value: Any, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.value = _check_value(name, value)
        if self.value in ("shared", "element"):
            shape = () if self.value == "shared" else tuple(event_shape)
            self.raw = nn.Parameter(torch.zeros(shape))

    @property
    def num_features(self) -> int:
        """The number of network outputs that it needs per element."""
        return int(self.value == "network")

    def forward(self, features: Tensor, dim: int) -> Tensor:
        """Returns the parameter, where ``network`` takes the last features along ``dim``."""
        if isinstance(self.value, float):
            return torch.full((), self.value, dtype=features.dtype, device=features.device)
        return self._to_positive(features.select(dim, -1) if self.num_features else self.raw)

    def _to_positive(self, raw: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Shows the value or its source."""
        return repr(self.value)


class Scale(_Positive):
    """A scale: softplus plus a floor, without which a density can grow without bound.

    Arguments:
        name: As above.
        value: As above.
        event_shape: As above.
        floor: The lower bound of a learned scale.
        unit: The factor of the softplus.
    """

    def __init__(
        self, name: str, value: Any, event_shape: Sequence[int], floor: float, unit: float = 1.0
    ) -> None:
        super().__init__(name, value, event_shape)
        self.floor, self.unit = floor, unit

    def _to_positive(self, raw: Tensor) -> Tensor:
        return self.unit * softplus(raw) + self.floor


class Concentration(_Positive):
    """A parameter that ranges over orders of magnitude, on a logarithmic scale.

    Arguments:
        name: As above.
        value: As above.
        event_shape: As above.
        initial: The value at the start of training.
        most: The upper bound of a learned value.
    """

    def __init__(
        self, name: str, value: Any, event_shape: Sequence[int], *, initial: float, most: float
    ) -> None:
        super().__init__(name, value, event_shape)
        self.initial = initial
        self.bound = math.log(most / initial)

    def _to_positive(self, raw: Tensor) -> Tensor:
        return self.initial * bound_softly(raw, self.bound).exp()

    def start_from(self, log_value: Tensor) -> None:
        """Sets a learned parameter to a value, given as its logarithm."""
        share = (log_value - math.log(self.initial)) / self.bound
        self.raw.copy_(self.bound * torch.atanh(share))


def _check_value(name: str, value: Any) -> float | str:
    if isinstance(value, str) and value in SOURCES:
        return value
    try:
        return check_positive(name, value)
    except ValueError:
        raise ValueError(
            f"Expected {name} to be positive or one of {SOURCES}, got {describe_value(value)}"
        ) from None
