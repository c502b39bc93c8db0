"""The full-covariance normal posterior."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.conditional import Posterior
from pyro_vae.distributions import FullNormal
from pyro_vae.validation import check_positive, check_size

__all__ = ["Full"]


class Full(Posterior):
    r"""A normal posterior with an amortized Cholesky factor.

    .. math::
        q(z \mid x) = \mathcal{N}(z \mid \mu(x), L(x) L(x)^\top), \qquad
        L(x) = S(x) \left(I + B(x) / \sqrt{D}\right)

    :math:`S` is diagonal and positive, and :math:`B` is strictly lower triangular. Without the
    factor :math:`1 / \sqrt{D}` the condition number of :math:`L` grows exponentially with the
    number of dimensions :math:`D`; without :math:`S` before :math:`B` it grows as :math:`S`
    shrinks. The KL to a diagonal normal prior is in closed form.

    Files of earlier versions have weights of :math:`L = S + B`. For them the buffer ``relative``
    is false, which selects that formula.

    Arguments:
        latent_dim: The number of latent dimensions.
        min_scale: The least element of :math:`S`, the diagonal of :math:`L`.

    Raises:
        ValueError: If a size or ``min_scale`` is not positive.

    Example:
        >>> posterior = Full(3)
        >>> posterior(torch.zeros(7, *posterior.feature_shape)).covariance_matrix.shape
        torch.Size([7, 3, 3])
    """

    cells: Tensor
    rows: Tensor
    relative: Tensor

    def __init__(self, latent_dim: int, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        latent_dim = self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.min_scale = check_positive("min_scale", min_scale)
        below = latent_dim * (latent_dim - 1) // 2
        self.feature_shape = torch.Size((2 * latent_dim + below,))
        # The index of each cell of L in: the diagonal, the elements below it, a zero.
        cells = torch.full((latent_dim, latent_dim), latent_dim + below)
        cells.fill_diagonal_(0)
        cells += torch.diag(torch.arange(latent_dim))
        rows, columns = torch.tril_indices(latent_dim, latent_dim, -1)
        cells[rows, columns] = latent_dim + torch.arange(below)
        self.register_buffer("cells", cells.flatten(), persistent=False)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("relative", torch.tensor(True))

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """Returns the posterior for features of shape ``(*batch, *feature_shape)``."""
        d = self.latent_dim
        loc, raw_scale, below = features[..., :d], features[..., d : 2 * d], features[..., 2 * d :]
        scale = softplus(raw_scale) + self.min_scale
        unit = torch.where(self.relative, scale / math.sqrt(d), torch.ones_like(scale))
        entries = [scale, below * unit[..., self.rows], torch.zeros_like(loc[..., :1])]
        tril = torch.cat(entries, -1)[..., self.cells].unflatten(-1, (d, d))
        return FullNormal(loc, scale_tril=tril)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Files of earlier versions lack this entry, and their weights are those of L = S + B.
        state_dict.setdefault(f"{prefix}relative", torch.tensor(False))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
