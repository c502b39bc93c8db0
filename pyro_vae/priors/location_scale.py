"""The base of priors of independent elements with a location and a scale."""

from collections.abc import Sequence
from math import exp, log1p

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.conditional import Prior
from pyro_vae.networks import MLP, apply_network
from pyro_vae.validation import check_flag, check_size, check_sizes

__all__ = ["FLOOR", "LocationScale", "invert_positive"]

FLOOR = 1e-3


class LocationScale(Prior):
    """A prior of independent elements, standard or with learned locations and scales.

    Arguments:
        latent_dim: The number of latent dimensions.
        learned: Whether locations and scales are learned.
        covariate_dim: The number of covariates, used only by a learned prior.
        hidden: The widths of the hidden layers of its network; an empty list makes it linear.

    Raises:
        ValueError: If a size is out of range, or hidden layers are given without a learned prior
            with covariates.
    """

    dependent: int = 0
    """The number of elements of z that follow from the others."""

    loc: Tensor
    raw_scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        learned: bool = False,
        covariate_dim: int = 0,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        learned = check_flag("learned", learned)
        covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        hidden = check_sizes("hidden", hidden)
        if hidden and not (learned and covariate_dim):
            raise ValueError(
                f"Expected hidden only with learned=True and covariates, got {hidden=} with "
                f"{learned=}, {covariate_dim=}"
            )
        self.latent_dim = check_size("latent_dim", latent_dim, least=1 + self.dependent)
        self.learned = learned
        dim = self.latent_dim - self.dependent
        loc, raw_scale = torch.zeros(dim), torch.full((dim,), invert_positive(1.0, FLOOR))
        if learned:
            self.loc, self.raw_scale = nn.Parameter(loc), nn.Parameter(raw_scale)
        else:
            self.register_buffer("loc", loc)
        self.shift = None
        if learned and covariate_dim:
            self.shift = _build_shift(covariate_dim, 2 * dim, hidden)

    def compute_loc_and_scale(self, covariates: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns locations and scales, of batch shape ``()`` or that of ``covariates``."""
        if not self.learned:
            return self.loc, torch.ones_like(self.loc)
        loc, raw_scale = self.loc, self.raw_scale
        if self.shift is not None and covariates is not None:
            shift_loc, shift_scale = apply_network(self.shift, covariates, 1).chunk(2, -1)
            loc, raw_scale = loc + shift_loc, raw_scale + shift_scale
        return loc, softplus(raw_scale) + FLOOR

    def extra_repr(self) -> str:
        """Shows the size and whether it is learned."""
        return f"latent_dim={self.latent_dim}, learned={self.learned}"


def _build_shift(in_size: int, out_size: int, hidden: Sequence[int]) -> nn.Module:
    """Builds a network whose initial output is zero."""
    if not hidden:
        linear = nn.Linear(in_size, out_size, bias=False)
        nn.init.zeros_(linear.weight)
        return linear
    network = MLP((in_size,), (out_size,), hidden=hidden)
    for parameter in network.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return network


def invert_positive(scale: float, floor: float) -> float:
    """Returns the number that ``softplus(raw) + floor`` maps to ``scale``."""
    # log(exp(x) - 1) without overflow.
    x = scale - floor
    return x + log1p(-exp(-x))
