"""Embeddings of categories in front of another network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.networks.gated_mlp import GatedMLP
from pyro_vae.networks.gru import GRUEncoder
from pyro_vae.networks.inner import build_inner, check_options
from pyro_vae.networks.mlp import MLP
from pyro_vae.networks.residual_mlp import ResidualMLP
from pyro_vae.networks.transformer import TransformerEncoder
from pyro_vae.validation import check_choice, check_flag, check_shape, check_size

__all__ = ["Embedding"]

_NETWORKS: dict[str, type[nn.Module]] = {
    "gated_mlp": GatedMLP,
    "gru": GRUEncoder,
    "mlp": MLP,
    "residual_mlp": ResidualMLP,
    "transformer": TransformerEncoder,
}


class Embedding(nn.Module):
    r"""Replaces each category of the input by a learned vector, for another network.

    The categories are levels :math:`l / (L - 1)`, data of a
    :class:`~pyro_vae.likelihoods.Categorical`. Each element becomes a vector of length ``dim``, in
    the last dimension: the network's input is ``(*in_shape, dim)``. A value between two levels,
    such as a pseudo-input of a prior, gets a mean of their two vectors, in proportion; the same
    lines continue below 0 and above 1.

    With ``masked=True`` the vector of an element that is not observed is zero, and the mask follows
    the vectors in the first dimension, as networks for sequences with ``masked=True`` read it.

    Arguments:
        in_shape: The shape of an input, without batch. With ``masked=True`` the first dimension is
            that of the values and then of the mask, as ``append_mask=True`` of an input transform
            returns them.
        out_shape: The shape of an output, without batch.
        levels: The number of levels :math:`L`, the same for all elements.
        dim: The length of each vector.
        network: The network: ``"gated_mlp"``, ``"gru"``, ``"mlp"``, ``"residual_mlp"`` or
            ``"transformer"``; or a callable as a VAE takes one, but :func:`pyro_vae.load` needs a
            name.
        options: Arguments of the network, such as ``{"hidden": [64]}``.
        masked: Whether the input contains the mask of observed values. A network that has the
            argument ``masked`` gets the same.
        covariate_dim: The number of covariates, passed to the network.

    Raises:
        ValueError: If an argument is out of range, or ``options`` do not fit the network.

    Example:
        >>> import torch
        >>> words = Embedding((20,), (2, 5), levels=1000, network="gru", options={"hidden": 32})
        >>> words(torch.randint(1000, (4, 20)) / 999).shape
        torch.Size([4, 2, 5])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        levels: int = 256,
        dim: int = 8,
        network: str | Callable[..., nn.Module] = "mlp",
        options: Mapping[str, Any] | None = None,
        masked: bool = False,
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = check_shape("in_shape", in_shape)
        self.out_shape = check_shape("out_shape", out_shape)
        self.levels = check_size("levels", levels, least=2)
        self.dim = check_size("dim", dim, least=1)
        self.masked = check_flag("masked", masked)
        if self.masked and self.in_shape[0] % 2:
            raise ValueError(
                f"Expected in_shape to begin with values and their mask for masked=True, an even "
                f"number, got {tuple(self.in_shape)}: pass append_mask=True to the input transform"
            )
        sizes = {
            "in_shape": torch.Size((*self.in_shape, self.dim)),
            "out_shape": self.out_shape,
            "covariate_dim": check_size("covariate_dim", covariate_dim, least=0),
            "masked": self.masked,
        }
        self.vectors = nn.Embedding(self.levels, self.dim)
        self.network = _build_network(network, options, sizes)

    def forward(self, x: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Maps ``(batch, *in_shape)`` to ``(batch, *out_shape)``."""
        if self.masked:
            values, mask = x.chunk(2, 1)
            # Pseudo-inputs of a prior have masks between zero and one.
            observed = mask > 0.5
            vectors = self._embed(torch.where(observed, values, 0.0))
            vectors = torch.where(observed[..., None], vectors, 0.0)
            x = torch.cat([vectors, mask[..., None].expand_as(vectors)], 1)
        else:
            x = self._embed(x)
        return self.network(x) if covariates is None else self.network(x, covariates)

    def _embed(self, x: Tensor) -> Tensor:
        """Interpolates linearly between the vectors of the two nearest levels."""
        steps = x * (self.levels - 1)
        lower = steps.detach().floor().clamp(0, self.levels - 2)
        weight = (steps - lower)[..., None]
        index = lower.long()
        return (1 - weight) * self.vectors(index) + weight * self.vectors(index + 1)


def _build_network(
    network: Any, options: Mapping[str, Any] | None, sizes: Mapping[str, Any]
) -> nn.Module:
    choices = tuple(sorted(_NETWORKS))
    if not callable(network) or isinstance(network, nn.Module):
        network = _NETWORKS[check_choice("network", network, choices)]
    arguments = check_options("options", options)
    if "masked" in {**getattr(network, "keywords", {}), **arguments}:
        raise ValueError(
            "Expected options without masked, which is an argument of Embedding, got masked"
        )
    name = getattr(network, "__name__", "network")
    return build_inner(network, arguments, sizes, name=name, options_name="options")
