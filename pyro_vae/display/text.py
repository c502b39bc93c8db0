"""Short texts of objects: tensors by dtype and shape, results by their means."""

import inspect
import reprlib
import textwrap
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "describe_arguments",
    "describe_fields",
    "describe_mean",
    "describe_range",
    "describe_tensor",
]

_WIDTH = 100


class _ShortRepr(reprlib.Repr):
    """The repr of values, with tensors by dtype and shape and without the rest of long lists."""

    def __init__(self) -> None:
        super().__init__()
        self.maxtuple = self.maxlist = self.maxdict = 6
        self.maxlevel = 4
        self.maxstring, self.maxother = 100, 2000

    def repr_Tensor(self, tensor: Tensor, level: int) -> str:  # noqa: N802
        return describe_tensor(tensor)

    repr_Parameter = repr_Tensor  # noqa: N815

    def repr_float(self, number: float, level: int) -> str:
        return repr(float(f"{number:.6g}"))


_SHORT = _ShortRepr()


def describe_tensor(tensor: Tensor) -> str:
    """Returns dtype and shape of a tensor, or the value of a scalar.

    Example:
        >>> describe_tensor(torch.zeros(5, 2)), describe_tensor(torch.tensor(0.5))
        ('float32[5, 2]', '0.5')
    """
    if not tensor.dim():
        return f"{tensor.item():g}"
    sparse = "" if tensor.layout is torch.strided else "sparse "
    dtype = str(tensor.dtype).removeprefix("torch.")
    place = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{sparse}{dtype}{list(tensor.shape)}{place}"


def describe_mean(rows: Tensor) -> str:
    """Returns the form of a tensor with one number per row, and their mean ± standard error.

    Example:
        >>> describe_mean(torch.tensor([-2.0, -4.0]))
        'float32[2] (mean -3.000 ± 1.000)'
    """
    if not rows.numel():
        return describe_tensor(rows)
    values = rows.detach().double()
    error = f" ± {values.std() / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{describe_tensor(rows)} (mean {values.mean():.3f}{error})"


def describe_range(rows: Tensor) -> str:
    """Returns the form of a tensor with one number per row, and the smallest and largest number.

    Example:
        >>> describe_range(torch.tensor([1.5, 20.0]))
        'float32[2] (1.5 to 20)'
    """
    if not rows.numel():
        return describe_tensor(rows)
    return f"{describe_tensor(rows)} ({rows.min().item():.3g} to {rows.max().item():.3g})"


def describe_fields(record: Any, **texts: str) -> str:
    """Returns a named tuple as text, without the fields that have their default value.

    Arguments:
        record: The named tuple.
        texts: Texts in place of some of the values.

    Example:
        >>> from pyro_vae.data import Rows
        >>> describe_fields(Rows(torch.zeros(5, 2)))
        'Rows(x=float32[5, 2])'
    """
    defaults = record._field_defaults
    values = record._asdict()
    shown = [n for n in values if n in texts or n not in defaults or values[n] is not defaults[n]]
    fields = [f"{name}={texts.get(name) or _SHORT.repr(values[name])}" for name in shown]
    name = type(record).__name__
    line = f"{name}({', '.join(fields)})"
    if len(line) <= _WIDTH and "\n" not in line:
        return line
    lines = textwrap.indent(",\n".join(fields), "  ")
    return f"{name}(\n{lines},\n)"


def describe_arguments(instance: Any, *always: str) -> str:
    """Returns an object as a call of its class, without arguments that have their default value.

    Arguments:
        instance: An object that has its arguments as attributes of the same names.
        always: The arguments that are always shown.
    """
    shown = []
    for name, parameter in inspect.signature(type(instance)).parameters.items():
        value = getattr(instance, name, parameter.default)
        is_default = not isinstance(value, Tensor) and value == parameter.default
        if name in always or not is_default:
            shown.append(f"{name}={_SHORT.repr(value)}")
    return f"{type(instance).__name__}({', '.join(shown)})"
