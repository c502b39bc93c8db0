"""Convolutional networks for images of any size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.networks.images import (
    append_planes,
    build_head,
    build_upsampling,
    choose_channels,
    halve_sizes,
    read_feature_image,
    read_image_shape,
)
from pyro_vae.networks.mlp import build_activation
from pyro_vae.validation import check_flag, check_shape, check_size

__all__ = ["ConvDecoder", "ConvEncoder"]


class ConvEncoder(nn.Module):
    r"""A convolutional network from an image to features.

    Each layer is a convolution of kernel 3 and stride 2, so that ``n`` layers reduce each side to
    :math:`\lceil \mathrm{size} / 2^n \rceil` pixels. Two linear layers follow.

    Arguments:
        in_shape: ``(height, width)`` or ``(channels, height, width)``, of any size.
        out_shape: The shape of an output, without batch.
        channels: The number of channels of each layer. ``None``: (32, 64) for images of up to 32
            pixels; larger ones get as many layers as reduce them to 8 pixels, with 64, 32, 16, ...
            channels from the last layer to the first.
        hidden: The width of the linear layer before the last.
        activation: As in :class:`~pyro_vae.networks.MLP`.
        batch_norm: Whether to put a batch norm before each activation.
        covariate_dim: The number of covariates, added as constant channels.
        channels_first: Whether a shape that looks like ``(height, width, channels)`` is in fact
            ``(channels, height, width)``. By default :func:`pyro_vae.fit` refuses such a shape.

    Raises:
        ValueError: If ``in_shape`` is not an image.

    Example:
        >>> import torch
        >>> ConvEncoder((3, 29, 17), (2, 5))(torch.zeros(4, 3, 29, 17)).shape
        torch.Size([4, 2, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        channels: Sequence[int] | None = None,
        hidden: int = 128,
        activation: str = "relu",
        batch_norm: bool = False,
        covariate_dim: int = 0,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.channels_first = check_flag("channels_first", channels_first)
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        fan_in, height, width = read_image_shape(self.in_shape, "in_shape")
        hidden = check_size("hidden", hidden, least=1)
        batch_norm = check_flag("batch_norm", batch_norm)
        self.image_shape = (fan_in, height, width)
        fan_in += check_size("covariate_dim", covariate_dim, least=0)
        layers: list[nn.Module] = []
        channels = choose_channels(channels, height, width)
        for fan_out in channels:
            layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(fan_out))
            layers.append(build_activation(activation))
            fan_in = fan_out
        self.features = nn.Sequential(*layers)
        height, width = halve_sizes((height, width), len(channels))[-1]
        self.head = build_head(fan_in * height * width, hidden, self.out_shape.numel(), activation)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = append_planes(x, covariates, self.image_shape)
        return self.head(self.features(x).flatten(1)).unflatten(-1, self.out_shape)


class ConvDecoder(nn.Module):
    r"""A transposed convolutional network from features to an image.

    The mirror of :class:`ConvEncoder`: linear layers return the smallest image, and transposed
    convolutions of kernel 3 and stride 2 double it, each to the encoder's size at that depth.

    Arguments:
        in_shape: The shape of an input, without batch; flattened.
        out_shape: ``(height, width)``, ``(channels, height, width)``, or
            ``(numbers, channels, height, width)`` for a likelihood with several numbers for each
            pixel and channel.
        channels: The number of channels of each layer, in the encoder's order: the last belongs
            to the smallest image; ``None`` as in :class:`ConvEncoder`.
        hidden: The width of the linear layer before the smallest image.
        activation: As in :class:`~pyro_vae.networks.MLP`.
        batch_norm: Whether to put a batch norm before each activation.
        covariate_dim: The number of covariates, concatenated to the input.
        channels_first: As in :class:`ConvEncoder`.

    Raises:
        ValueError: If ``out_shape`` is not an image.

    Example:
        >>> import torch
        >>> ConvDecoder((5,), (2, 3, 29, 17))(torch.zeros(4, 5)).shape
        torch.Size([4, 2, 3, 29, 17])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        channels: Sequence[int] | None = None,
        hidden: int = 128,
        activation: str = "relu",
        batch_norm: bool = False,
        covariate_dim: int = 0,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.channels_first = check_flag("channels_first", channels_first)
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        planes, height, width = read_feature_image(self.out_shape, "out_shape")
        channels = choose_channels(channels, height, width)
        hidden = check_size("hidden", hidden, least=1)
        batch_norm = check_flag("batch_norm", batch_norm)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        sizes = halve_sizes((height, width), len(channels))
        self.smallest = (channels[-1] if channels else planes, *sizes[-1])
        self.head = build_head(
            self.in_shape.numel() + covariate_dim, hidden, math.prod(self.smallest), activation
        )
        layers: list[nn.Module] = []
        widths = [*reversed(channels), planes]
        for depth in range(len(channels)):
            if batch_norm:
                layers.append(nn.BatchNorm2d(widths[depth]))
            layers.append(build_activation(activation))
            layers.append(build_upsampling(widths[depth], widths[depth + 1], sizes[-2 - depth]))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        return self.layers(self.head(x).unflatten(-1, self.smallest)).reshape(-1, *self.out_shape)
