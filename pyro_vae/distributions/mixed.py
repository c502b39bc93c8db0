"""Elements of different families side by side."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.types import _size

from pyro_vae.validation import describe_value

__all__ = ["Mixed"]


class _Parts(constraints.Constraint):
    """The supports of the parts, for their elements."""

    def __init__(self, parts: Sequence[Any], order: Tensor) -> None:
        self.parts, self.order = parts, order
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        pieces = _split(value, self.parts, self.order)
        valid = [part.support.check(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return _join(valid, self.order)


class Mixed(TorchDistribution):
    r"""Independent elements of different families, such as the columns of a table.

    .. math:: p(x) = \prod_i p_i(x_i)

    The elements are batch dimensions, as those of a normal: ``.to_event(1)`` makes a row of them.
    :attr:`mean` is the mean of each element. For codes of categories or ordered levels, which have
    no mean, it is the most probable code.

    Arguments:
        parts: Distributions of batch shape ``(*batch, n)`` without event dimensions.
        order: The position of each element among those of all parts, a permutation.

    Example:
        >>> import pyro.distributions as dist
        >>> parts = [dist.Normal(torch.zeros(2), 1.0), dist.Categorical(logits=torch.zeros(1, 3))]
        >>> d = Mixed(parts, torch.tensor([0, 2, 1]))
        >>> d.log_prob(torch.tensor([0.0, 1.0, 0.0]))
        tensor([-0.9189, -1.0986, -0.9189])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        parts: Sequence[TorchDistribution],
        order: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        _check_parts(parts)
        size = sum(part.batch_shape[-1] for part in parts)
        # Values are not compared, because that would wait for a device.
        if not isinstance(order, Tensor) or order.shape != (size,) or order.dtype != torch.long:
            raise ValueError(
                f"Expected order to be a permutation of the {size} elements, integers of shape "
                f"({size},), got {describe_value(order)}"
            )
        self.parts: tuple[Any, ...] = tuple(parts)
        self.order = order
        batch = parts[0].batch_shape[:-1]
        super().__init__(torch.Size((*batch, size)), validate_args=validate_args)

    def __repr__(self) -> str:
        return f"Mixed({', '.join(type(part).__name__ for part in self.parts)})"

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The supports of the parts."""
        return _Parts(self.parts, self.order)

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> "Mixed":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(Mixed, _instance)
        batch_shape = torch.Size(batch_shape)
        if batch_shape[-1:] != self.batch_shape[-1:]:
            raise ValueError(
                f"Expected batch_shape to end in {tuple(self.batch_shape[-1:])}, the number of "
                f"elements, got {tuple(batch_shape)}"
            )
        new.parts = tuple(
            part.expand(torch.Size((*batch_shape[:-1], part.batch_shape[-1])))
            for part in self.parts
        )
        new.order = self.order
        super(Mixed, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The mean of each element, or its most probable code."""
        return _join([_compute_mean(part) for part in self.parts], self.order)

    @property
    def variance(self) -> Tensor:
        """The variance of each element; NaN for those with codes."""
        return _join([part.variance for part in self.parts], self.order)

    @property
    def expectations(self) -> Tensor:
        """Means and probabilities of codes, ``(*batch, n)``, which average over a mixture.

        :meth:`summarize` turns their average into one value for each element.
        """
        return torch.cat(
            [p.probs.flatten(-2) if _is_categorical(p) else p.mean for p in self.parts], -1
        )

    def summarize(self, expectations: Tensor) -> Tensor:
        """Returns one value for each element from averaged expectations.

        It is the mean of a number, and the most probable code of a binary or other coded element.
        """
        sizes = [_count_expectations(part) for part in self.parts]
        pieces = []
        for part, piece in zip(self.parts, expectations.split(sizes, -1), strict=True):
            if _is_categorical(part):
                probs = piece.unflatten(-1, (part.batch_shape[-1], -1))
                piece = probs.argmax(-1).to(expectations.dtype)
            elif isinstance(part, torch.distributions.Bernoulli):
                piece = (piece > 0.5).to(expectations.dtype)
            pieces.append(piece)
        return _join(pieces, self.order)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        pieces = _split(value, self.parts, self.order)
        return _join(
            [part.log_prob(piece) for part, piece in zip(self.parts, pieces, strict=True)],
            self.order,
        )

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws elements; codes are floating-point numbers."""
        with torch.no_grad():
            draws = [part.sample(torch.Size(sample_shape)) for part in self.parts]
            dtype = next((d.dtype for d in draws if d.is_floating_point()), None)
            dtype = dtype or self.expectations.dtype
            return _join([draw.to(dtype) for draw in draws], self.order)


def _is_categorical(part: Any) -> bool:
    return isinstance(part, torch.distributions.Categorical)


def _count_expectations(part: Any) -> int:
    size = part.batch_shape[-1]
    return size * part.probs.shape[-1] if _is_categorical(part) else size


def _compute_mean(part: Any) -> Tensor:
    if _is_categorical(part):
        return part.logits.argmax(-1).to(part.logits.dtype)
    return part.mean


def _check_parts(parts: Any) -> None:
    """Raises a ``ValueError`` unless distributions have one batch shape but for its last size."""
    valid = isinstance(parts, Sequence) and len(parts) > 0
    valid = valid and all(
        isinstance(part, torch.distributions.Distribution)
        and part.batch_shape
        and not part.event_shape
        and part.batch_shape[:-1] == parts[0].batch_shape[:-1]
        for part in parts
    )
    if not valid:
        raise ValueError(
            f"Expected parts to be distributions of batch shape (*batch, n) with one batch and "
            f"without event dimensions, got {describe_value(parts)}"
        )


def _split(value: Tensor, parts: Sequence[Any], order: Tensor) -> tuple[Tensor, ...]:
    """Returns the elements of each part."""
    sorted_value = value.index_select(-1, order.argsort())
    return sorted_value.split([part.batch_shape[-1] for part in parts], -1)


def _join(pieces: Sequence[Tensor], order: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
    expanded = [piece.expand(*shape, piece.shape[-1]) for piece in pieces]
    return torch.cat(expanded, -1).index_select(-1, order)
