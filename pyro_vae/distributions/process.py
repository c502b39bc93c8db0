"""Gaussian processes over positions within one datum."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.types import _size

from pyro_vae.validation import check_size

__all__ = ["GaussianProcess"]


class GaussianProcess(dist.MultivariateNormal):
    r"""Independent Gaussian processes at the same positions, as one vector.

    .. math:: z_{t f} = \sum_s L_{t s}\, \epsilon_{s f}

    The vector has the features of the first position first. A KL to it from a distribution of
    independent elements has a closed form.

    Arguments:
        scale_tril: :math:`L`, the Cholesky factor of the covariance of positions, ``(*, T, T)``.
        features: The number of features at each position.

    Example:
        >>> GaussianProcess(torch.eye(4), features=2).sample((5,)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self, scale_tril: Tensor, features: int, *, validate_args: bool | None = None
    ) -> None:
        if scale_tril.dim() < 2 or scale_tril.shape[-1] != scale_tril.shape[-2]:
            raise ValueError(
                f"Expected scale_tril of shape (*, T, T), got {tuple(scale_tril.shape)}"
            )
        self.features = features = check_size("features", features, least=1)
        eye = torch.eye(features, dtype=scale_tril.dtype, device=scale_tril.device)
        # A Kronecker product of matrices with batch dimensions.
        product = scale_tril[..., :, None, :, None] * eye[:, None, :]
        size = scale_tril.shape[-1] * features
        tril = product.reshape(*scale_tril.shape[:-2], size, size)
        super().__init__(
            torch.zeros_like(tril[..., 0]), scale_tril=tril, validate_args=validate_args
        )

    def expand(self, batch_shape: _size, _instance: Any | None = None) -> "GaussianProcess":
        """Returns the distribution broadcast to ``batch_shape``."""
        new: Any = self._get_checked_instance(GaussianProcess, _instance)
        new.features = self.features
        return super().expand(batch_shape, _instance=new)
