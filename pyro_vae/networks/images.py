"""Image shapes, and layers that halve and double images, for convolutional networks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.networks.mlp import build_activation
from pyro_vae.validation import check_sizes

__all__ = [
    "append_planes",
    "build_head",
    "build_upsampling",
    "check_channels_first",
    "choose_channels",
    "halve_sizes",
    "read_feature_image",
    "read_image_shape",
]

_COLOURS = (1, 3, 4)
"""The usual numbers of channels: grey, colour, colour with transparency."""


def read_image_shape(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Reads ``(height, width)`` or ``(channels, height, width)``, or raises a ``ValueError``."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise ValueError(
        f"Expected {name} to be an image, (height, width) or (channels, height, width), "
        f"got {tuple(shape)}: a convolution needs an image, an MLP takes any shape"
    )


def read_feature_image(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Reads an image as :func:`read_image_shape`, or ``(numbers, channels, height, width)``.

    The several numbers for each pixel and channel are further channels.
    """
    numbers, image = (shape[0], shape[1:]) if len(shape) == 4 else (1, shape)
    channels, height, width = read_image_shape(image, name)
    return numbers * channels, height, width


def _is_likely_channels_last(shape: Sequence[int]) -> bool:
    """Whether a shape is plausible only as an image whose channels come last."""
    if len(shape) != 3:
        return False
    height, width, channels = shape
    small, large = min(height, width), max(height, width)
    # Beyond an aspect ratio of 2:1 it may be a series of several channels.
    return channels in _COLOURS and small >= 8 and large <= 2 * small


def check_channels_first(role: str, network: nn.Module, event_shape: Sequence[int]) -> None:
    """Raises a ``ValueError`` for images ``(H, W, C)``, which a convolution reads as H channels.

    Arguments:
        role: The role of the network, named in the error.
        network: Any network; only one with an attribute ``channels_first`` is checked.
        event_shape: The shape of one datum.
    """
    if getattr(network, "channels_first", None) is not False:
        return
    if _is_likely_channels_last(event_shape):
        height, width, channels = event_shape
        kind = type(network).__name__
        raise ValueError(
            f"Expected images (channels, height, width) for the convolutions of the {role}, got "
            f"event_shape={tuple(event_shape)}, which looks like (height, width, channels): move "
            f"the channels of the data, x.permute(0, 3, 1, 2) or np.moveaxis(x, -1, 1), and give "
            f"the VAE event_shape={(channels, height, width)}; if they are {height} channels, make "
            f"the {role} by functools.partial(networks.{kind}, channels_first=True)"
        )


def halve_sizes(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """Returns an image's size, and those after each of several convolutions of stride 2."""
    sizes = [size]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def choose_channels(channels: Sequence[int] | None, height: int, width: int) -> tuple[int, ...]:
    """Returns the channels of each layer; by default, as many layers as reduce to 8 pixels."""
    if channels is not None:
        return check_sizes("channels", channels)
    depth = max(2, math.ceil(math.log2(max(height, width) / 8)))
    return tuple(max(16, 64 >> (depth - 1 - layer)) for layer in range(depth))


def append_planes(
    x: Tensor, covariates: Tensor | None, image_shape: tuple[int, int, int]
) -> Tensor:
    """Returns images ``(batch, channels, height, width)`` with covariates as constant channels."""
    x = x.reshape(-1, *image_shape)
    if covariates is None:
        return x
    planes = covariates[:, :, None, None].expand(-1, -1, *image_shape[1:])
    return torch.cat([x, planes], 1)


def build_head(fan_in: int, hidden: int, fan_out: int, activation: str) -> nn.Sequential:
    """Builds the two linear layers between an image and features."""
    return nn.Sequential(
        nn.Linear(fan_in, hidden), build_activation(activation), nn.Linear(hidden, fan_out)
    )


def build_upsampling(fan_in: int, fan_out: int, size: tuple[int, int]) -> nn.ConvTranspose2d:
    """Builds a transposed convolution whose output has the given height and width."""
    odd = (1 - size[0] % 2, 1 - size[1] % 2)
    return nn.ConvTranspose2d(fan_in, fan_out, 3, stride=2, padding=1, output_padding=odd)
