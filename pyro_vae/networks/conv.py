"""Convolutional networks for images of any size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.networks.mlp import build_activation
from pyro_vae.validation import check_flag, check_shape, check_size, check_sizes

__all__ = ["ConvDecoder", "ConvEncoder", "check_channels_first"]

_COLOURS = (1, 3, 4)
"""The usual numbers of channels: grey, colour, colour with transparency."""


def _read_image_shape(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Reads ``(height, width)`` or ``(channels, height, width)``, or raises a ``ValueError``."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise ValueError(
        f"Expected {name} to be an image, (height, width) or (channels, height, width), "
        f"got {tuple(shape)}: a convolution needs an image, an MLP takes any shape"
    )


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
        network: Any network; only :class:`ConvEncoder` and :class:`ConvDecoder` are checked.
        event_shape: The shape of one datum.
    """
    if not isinstance(network, (ConvEncoder, ConvDecoder)) or network.channels_first:
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


def _halve_size(size: int) -> int:
    """Returns the output size of a convolution of stride 2."""
    return (size + 1) // 2


def _choose_channels(channels: Sequence[int] | None, height: int, width: int) -> tuple[int, ...]:
    if channels is not None:
        return check_sizes("channels", channels)
    depth = max(2, math.ceil(math.log2(max(height, width) / 8)))
    return tuple(max(16, 64 >> (depth - 1 - layer)) for layer in range(depth))


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
        fan_in, height, width = _read_image_shape(self.in_shape, "in_shape")
        hidden = check_size("hidden", hidden, least=1)
        batch_norm = check_flag("batch_norm", batch_norm)
        self.image_shape = (fan_in, height, width)
        fan_in += check_size("covariate_dim", covariate_dim, least=0)
        layers: list[nn.Module] = []
        for fan_out in _choose_channels(channels, height, width):
            layers.append(nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(fan_out))
            layers.append(build_activation(activation))
            fan_in, height, width = fan_out, _halve_size(height), _halve_size(width)
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(fan_in * height * width, hidden),
            build_activation(activation),
            nn.Linear(hidden, self.out_shape.numel()),
        )

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.reshape(-1, *self.image_shape)
        if covariates is not None:
            planes = covariates[:, :, None, None].expand(-1, -1, *self.image_shape[1:])
            x = torch.cat([x, planes], 1)
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
        shape = self.out_shape
        numbers, image = (shape[0], shape[1:]) if len(shape) == 4 else (1, shape)
        planes, height, width = _read_image_shape(image, "out_shape")
        channels = _choose_channels(channels, height, width)
        hidden = check_size("hidden", hidden, least=1)
        batch_norm = check_flag("batch_norm", batch_norm)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        sizes = [(height, width)]
        for _ in channels:
            sizes.append((_halve_size(sizes[-1][0]), _halve_size(sizes[-1][1])))
        self.smallest = (channels[-1] if channels else numbers * planes, *sizes[-1])
        self.head = nn.Sequential(
            nn.Linear(self.in_shape.numel() + covariate_dim, hidden),
            build_activation(activation),
            nn.Linear(hidden, math.prod(self.smallest)),
        )
        layers: list[nn.Module] = []
        widths = [*reversed(channels), numbers * planes]
        for depth in range(len(channels)):
            if batch_norm:
                layers.append(nn.BatchNorm2d(widths[depth]))
            layers.append(build_activation(activation))
            layers.append(_build_upsampling(widths[depth], widths[depth + 1], sizes[-2 - depth]))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        x = x.flatten(1)
        if covariates is not None:
            x = torch.cat([x, covariates], -1)
        return self.layers(self.head(x).unflatten(-1, self.smallest)).reshape(-1, *self.out_shape)


def _build_upsampling(fan_in: int, fan_out: int, size: tuple[int, int]) -> nn.ConvTranspose2d:
    """Builds a transposed convolution whose output has the given height and width."""
    odd = (1 - size[0] % 2, 1 - size[1] % 2)
    return nn.ConvTranspose2d(fan_in, fan_out, 3, stride=2, padding=1, output_padding=odd)
