"""The arguments of a step, and what tells one kind of call from others."""

from collections.abc import Hashable, Iterable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Call"]


class Call:
    """The arguments of a step.

    Arguments:
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.others = [leaf for leaf in self.leaves if not isinstance(leaf, Tensor)]
        self.key: Hashable = (self.spec, *map(_argument_key, self.leaves))

    def without_hash(self) -> Exception | None:
        """Returns an error that describes the first argument without a hash, if there is one."""
        for value in self.others:
            if not isinstance(value, Hashable):
                kind = type(value).__name__
                return TypeError(f"an argument is a {kind}: pass the tensors or numbers it holds")
        return None

    def of(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the same arguments with other tensors."""
        others = iter(tensors)
        leaves = [next(others) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)


def _argument_key(value: Any) -> Hashable:
    """Returns what an argument has to have in common with another of the same kind of call."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return value.__class__, value
