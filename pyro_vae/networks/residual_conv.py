"""Convolutional residual networks for images of any size."""

import math
from collections.abc import Sequence
from itertools import pairwise

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
from pyro_vae.networks.residual_mlp import shrink_layers
from pyro_vae.validation import check_flag, check_shape, check_size

__all__ = ["ResidualConvDecoder", "ResidualConvEncoder"]

_MAX_GROUPS, _GROUP = 8, 4
"""The largest number of groups of a group norm, and the least number of channels of each."""


class _Block(nn.Module):
    """A pre-activation residual block of two convolutions."""

    def __init__(self, channels: int, activation: str, group_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += _build_activation(channels, activation, group_norm)
            layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _build_activation(channels: int, activation: str, group_norm: bool) -> list[nn.Module]:
    groups = 1 if channels % _GROUP else math.gcd(_MAX_GROUPS, channels // _GROUP)
    norm = [nn.GroupNorm(groups, channels)] if group_norm else []
    return [*norm, build_activation(activation)]


def _shrink_blocks(network: nn.Module) -> None:
    shrink_layers([m.layers[-1] for m in network.modules() if isinstance(m, _Block)])  # type: ignore[misc]


class ResidualConvEncoder(nn.Module):
    r"""A convolutional residual network from an image to features.

    Each layer of a :class:`~pyro_vae.networks.ConvEncoder`, a convolution of kernel 3 and stride 2,
    is followed by ``blocks`` residual blocks, each of two convolutions of kernel 3:

    .. math:: h_{l + 1} = h_l + W_l * a(n(V_l * a(n(h_l))))

    The activation :math:`a` precedes the convolutions, and :math:`n` is a group norm or nothing.
    Neither depends on the other images of a batch. The last convolutions of all blocks start
    divided by the square root of their number, so a deep network starts near a shallow one. Two
    linear layers follow.

    References:
        | Identity mappings in deep residual networks (He et al., 2016),
          https://arxiv.org/abs/1603.05027
        | Group normalization (Wu and He, 2018), https://arxiv.org/abs/1803.08494

    Arguments:
        in_shape: ``(height, width)`` or ``(channels, height, width)``, of any size.
        out_shape: The shape of an output, without batch.
        channels: The number of channels at each size; ``None`` as in
            :class:`~pyro_vae.networks.ConvEncoder`.
        blocks: The number of residual blocks at each size.
        hidden: The width of the linear layer before the last.
        activation: As in :class:`~pyro_vae.networks.MLP`.
        group_norm: Whether to put a group norm before each activation: of 8 groups, or fewer so
            that each has at least four channels.
        covariate_dim: The number of covariates, added as constant channels.
        channels_first: As in :class:`~pyro_vae.networks.ConvEncoder`.

    Raises:
        ValueError: If ``in_shape`` is not an image, or an argument is out of range.

    Example:
        >>> import torch
        >>> ResidualConvEncoder((3, 29, 17), (2, 5))(torch.zeros(4, 3, 29, 17)).shape
        torch.Size([4, 2, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        channels: Sequence[int] | None = None,
        blocks: int = 1,
        hidden: int = 128,
        activation: str = "relu",
        group_norm: bool = False,
        covariate_dim: int = 0,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.channels_first = check_flag("channels_first", channels_first)
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        fan_in, height, width = read_image_shape(self.in_shape, "in_shape")
        blocks = check_size("blocks", blocks, least=1)
        hidden = check_size("hidden", hidden, least=1)
        group_norm = check_flag("group_norm", group_norm)
        self.image_shape = (fan_in, height, width)
        fan_in += check_size("covariate_dim", covariate_dim, least=0)
        layers: list[nn.Module] = []
        channels = choose_channels(channels, height, width)
        for fan_out in channels:
            layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1))
            layers += [_Block(fan_out, activation, group_norm) for _ in range(blocks)]
            layers += _build_activation(fan_out, activation, group_norm)
            fan_in = fan_out
        self.features = nn.Sequential(*layers)
        _shrink_blocks(self.features)
        height, width = halve_sizes((height, width), len(channels))[-1]
        self.head = build_head(fan_in * height * width, hidden, self.out_shape.numel(), activation)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = append_planes(x, covariates, self.image_shape)
        return self.head(self.features(x).flatten(1)).unflatten(-1, self.out_shape)


class ResidualConvDecoder(nn.Module):
    r"""A transposed convolutional residual network from features to an image.

    The mirror of :class:`ResidualConvEncoder`: linear layers return the smallest image. At each
    size, ``blocks`` residual blocks precede the transposed convolution of kernel 3 and stride 2
    that doubles the image, to the encoder's size at that depth.

    References:
        | Identity mappings in deep residual networks (He et al., 2016),
          https://arxiv.org/abs/1603.05027

    Arguments:
        in_shape: The shape of an input, without batch; flattened.
        out_shape: ``(height, width)``, ``(channels, height, width)``, or
            ``(numbers, channels, height, width)`` for a likelihood with several numbers for each
            pixel and channel.
        channels: The number of channels at each size, in the encoder's order: the last belongs to
            the smallest image; ``None`` as in :class:`~pyro_vae.networks.ConvEncoder`.
        blocks: The number of residual blocks at each size.
        hidden: The width of the linear layer before the smallest image.
        activation: As in :class:`~pyro_vae.networks.MLP`.
        group_norm: As in :class:`ResidualConvEncoder`.
        covariate_dim: The number of covariates, concatenated to the input.
        channels_first: As in :class:`~pyro_vae.networks.ConvEncoder`.

    Raises:
        ValueError: If ``out_shape`` is not an image, or an argument is out of range.

    Example:
        >>> import torch
        >>> ResidualConvDecoder((5,), (2, 3, 29, 17))(torch.zeros(4, 5)).shape
        torch.Size([4, 2, 3, 29, 17])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        channels: Sequence[int] | None = None,
        blocks: int = 1,
        hidden: int = 128,
        activation: str = "relu",
        group_norm: bool = False,
        covariate_dim: int = 0,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.channels_first = check_flag("channels_first", channels_first)
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        planes, height, width = read_feature_image(self.out_shape, "out_shape")
        channels = choose_channels(channels, height, width)
        blocks = check_size("blocks", blocks, least=1)
        hidden = check_size("hidden", hidden, least=1)
        group_norm = check_flag("group_norm", group_norm)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        sizes = halve_sizes((height, width), len(channels))
        self.smallest = (channels[-1] if channels else planes, *sizes[-1])
        self.head = build_head(
            self.in_shape.numel() + covariate_dim, hidden, math.prod(self.smallest), activation
        )
        layers: list[nn.Module] = []
        widths = [*reversed(channels), planes]
        for (fan_in, fan_out), size in zip(pairwise(widths), sizes[-2::-1], strict=True):
            layers += [_Block(fan_in, activation, group_norm) for _ in range(blocks)]
            layers += _build_activation(fan_in, activation, group_norm)
            layers.append(build_upsampling(fan_in, fan_out, size))
        self.layers = nn.Sequential(*layers)
        _shrink_blocks(self.layers)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        return self.layers(self.head(x).unflatten(-1, self.smallest)).reshape(-1, *self.out_shape)
