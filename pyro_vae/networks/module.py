"""Any PyTorch module as a network."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.networks.inner import build_inner, check_options
from pyro_vae.validation import check_shape, check_size, describe_value

__all__ = ["Module"]


class Module(nn.Module):
    r"""Any PyTorch module, from its dotted name and arguments.

    In Python you can pass any module to a VAE as it is. This network is for configuration files,
    and for modules whose output has the right number of elements but another shape. If the
    constructor names ``in_shape``, ``out_shape`` or ``covariate_dim``, it gets them.

    A VAE with such a part is saved with the name and the arguments. To load it, allow the name:
    ``pyro_vae.load(path, allow=["torchvision.models.resnet18"])``.

    Arguments:
        in_shape: The shape of an input, without batch.
        out_shape: The shape of an output, without batch; the module's output is reshaped to it.
        path: The dotted name of a class of modules, or of a function that returns a module.
        arguments: Its arguments, such as ``{"num_classes": 10}``.
        covariate_dim: The number of covariates; if there are any, the module gets them as second
            argument.

    Raises:
        ValueError: If ``path`` cannot be imported, no module can be built from it, or, at each
            call, the output has another number of elements.

    Example:
        >>> import torch
        >>> arguments = {"in_features": 8, "out_features": 10}
        >>> linear = Module((8,), (2, 5), path="torch.nn.Linear", arguments=arguments)
        >>> linear(torch.zeros(3, 8)).shape
        torch.Size([3, 2, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        path: str,
        arguments: Mapping[str, Any] | None = None,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        factory = _import_factory(path)
        self.path = path
        sizes = {
            "in_shape": self.in_shape,
            "out_shape": self.out_shape,
            "covariate_dim": check_size("covariate_dim", covariate_dim, least=0),
        }
        self.module = build_inner(
            factory,
            check_options("arguments", arguments),
            sizes,
            name=path,
            options_name="arguments",
        )

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        try:
            out = self.module(x) if covariates is None else self.module(x, covariates)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            inputs = [tuple(t.shape) for t in (x, covariates) if t is not None]
            raise ValueError(
                f"Expected {self.path} to accept tensors of shape {', '.join(map(str, inputs))}, "
                f"got {type(error).__name__}: {str(error).splitlines()[0]}"
            ) from error
        size = self.out_shape.numel()
        if isinstance(out, Tensor) and out.shape[:1] == x.shape[:1]:
            if out.numel() == len(x) * size:
                return out.reshape(len(x), *self.out_shape)
            got = f"shape {tuple(out.shape[1:])} for each"
        else:
            got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else describe_value(out)
        raise ValueError(
            f"Expected {self.path} to return {size} numbers for each of {len(x)} inputs, as many "
            f"as out_shape={tuple(self.out_shape)} has, got {got}: set the size of its output by "
            f"arguments"
        )

    def extra_repr(self) -> str:
        """Shows the dotted name."""
        return f"path={self.path!r}"


def _import_factory(path: Any) -> Callable[..., Any]:
    """Imports a class or function, or raises a ``ValueError``."""
    factory: Any = None
    module, _, member = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    reason = "got"
    if module and member:
        try:
            factory = getattr(import_module(module), member, None)
        except ImportError as error:
            reason = f"{error}; got"
    if not callable(factory):
        raise ValueError(
            f"Expected path to be the dotted name of a class or function that can be imported, as "
            f"in 'torchvision.models.resnet18', {reason} {describe_value(path)}"
        )
    return factory
