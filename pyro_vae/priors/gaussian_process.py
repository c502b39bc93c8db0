"""The Gaussian process prior over positions within one datum."""

import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.conditional import Prior
from pyro_vae.distributions import GaussianProcess as GaussianProcessDistribution
from pyro_vae.distributions.cholesky import factorize
from pyro_vae.priors.location_scale import invert_positive
from pyro_vae.validation import check_choice, check_flag, check_number, check_positive, check_size

__all__ = ["GaussianProcess"]

_FLOOR = 1e-4


class GaussianProcess(Prior):
    r"""A prior of smooth paths over the positions of one datum, such as the times of a series.

    .. math::
        z_{t f} = g_f(x_t), \qquad g_f \sim \mathcal{GP}(0, k), \qquad
        k(x, x') = (1 - \epsilon)\, \kappa(\lvert x - x' \rvert / \ell) + \epsilon\, [x = x']

    The latent vector has the features of the first position first, so that
    ``z.unflatten(-1, (positions, features))`` is a path. The features are independent. A posterior
    of independent elements is rough, which costs of the order of :math:`1 / \epsilon` nats for each
    element until its scales have shrunk. The KL of normal, Laplace and Student-t posteriors has a
    closed form. A process over the rows of a data set would make them dependent, which the
    plate over rows excludes; positions are therefore the same for all rows.

    References:
        | GP-VAE: deep probabilistic time series imputation (Fortuin et al., 2020),
          https://arxiv.org/abs/1907.04155

    Arguments:
        latent_dim: The number of positions times that of the features.
        positions: The number of equidistant positions 0, 1, ..., or a list of their values.
            ``None``: one position for each latent dimension.
        kernel: ``"rbf"``, ``"matern12"``, ``"matern32"`` or ``"matern52"``.
        length_scale: :math:`\ell`, in units of the positions; with ``learned``, its initial value.
        noise: :math:`\epsilon`, the share of white noise, from 0.0001 to 1.
        learned: Whether the length scale is learned.

    Raises:
        ValueError: If ``latent_dim`` is not a multiple of the number of positions, positions
            repeat, or another argument is out of range.

    Example:
        >>> GaussianProcess(8, positions=4)().sample().unflatten(-1, (4, 2)).shape
        torch.Size([4, 2])
    """

    positions: Tensor
    raw_length_scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        positions: int | Sequence[float] | None = None,
        kernel: str = "rbf",
        length_scale: float = 2.0,
        noise: float = 0.01,
        learned: bool = False,
    ) -> None:
        super().__init__()
        self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.kernel = check_choice("kernel", kernel, tuple(_KERNELS))
        self.noise = check_number("noise", noise, least=1e-4, most=1.0)
        self.learned = check_flag("learned", learned)
        values = _read_positions(positions, self.latent_dim)
        self.features = self.latent_dim // len(values)
        self.register_buffer("positions", values)
        length_scale = check_positive("length_scale", length_scale)
        raw = torch.tensor(invert_positive(max(length_scale, 2 * _FLOOR), _FLOOR))
        if self.learned:
            self.raw_length_scale = nn.Parameter(raw)
        else:
            self.register_buffer("raw_length_scale", raw)

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()``."""
        length_scale = softplus(self.raw_length_scale) + _FLOOR
        eye = torch.eye(len(self.positions), dtype=length_scale.dtype, device=length_scale.device)
        distances = (self.positions[:, None] - self.positions).abs()
        smooth = _KERNELS[self.kernel](distances / length_scale)
        covariance = (1 - self.noise) * smooth + self.noise * eye
        return GaussianProcessDistribution(factorize(covariance), self.features)

    def extra_repr(self) -> str:
        """Shows the sizes and the kernel."""
        count = len(self.positions)
        return f"latent_dim={self.latent_dim}, positions={count}, kernel={self.kernel!r}"


def _read_positions(positions: int | Sequence[float] | None, latent_dim: int) -> Tensor:
    """Returns the positions, or raises a ``ValueError`` unless they divide the latent vector."""
    if positions is None:
        positions = latent_dim
    if isinstance(positions, Sequence) and not isinstance(positions, str):
        numbers = [check_number("positions", value) for value in positions]
        # Only differences matter, and large positions would lose theirs in single precision.
        values = torch.tensor([number - min(numbers) for number in numbers])
    else:
        values = torch.arange(check_size("positions", positions, least=1)).float()
    if not len(values) or latent_dim % len(values):
        raise ValueError(
            f"Expected latent_dim to be a multiple of the number of positions, {len(values)}, got "
            f"{latent_dim}: positions are those within one datum, because a process over the rows "
            f"of a data set would make them dependent"
        )
    if len(values.unique()) < len(values):
        raise ValueError(f"Expected positions that differ, got {values.tolist()}")
    return values


def _compute_matern32(r: Tensor) -> Tensor:
    return (1 + math.sqrt(3) * r) * torch.exp(-math.sqrt(3) * r)


def _compute_matern52(r: Tensor) -> Tensor:
    return (1 + math.sqrt(5) * r + 5 / 3 * r**2) * torch.exp(-math.sqrt(5) * r)


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "rbf": lambda r: torch.exp(-0.5 * r**2),
    "matern12": lambda r: torch.exp(-r),
    "matern32": _compute_matern32,
    "matern52": _compute_matern52,
}
