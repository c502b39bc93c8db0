"""The arguments of a step, and the key of their kind."""

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
        self.non_tensors = [leaf for leaf in self.leaves if not isinstance(leaf, Tensor)]
        self.key: Hashable = (self.spec, *map(_argument_key, self.leaves))

    def find_unhashable(self) -> Exception | None:
        """Returns an error that describes the first argument without a hash, if there is one."""
        for value in self.non_tensors:
            if not isinstance(value, Hashable):
                kind = type(value).__name__
                return TypeError(f"an argument is a {kind}: pass the tensors or numbers it holds")
        return None

    def with_tensors(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the same arguments with other tensors."""
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)


def _argument_key(value: Any) -> Hashable:
    """Returns the properties of an argument that a graph fixes."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return value.__class__, value
