"""The VampPrior: a mixture of posteriors at learned pseudo-inputs."""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.conditional import Prior
from pyro_vae.validation import check_shape, check_size, check_tensor

__all__ = ["Vamp"]


class Vamp(Prior):
    r"""A variational mixture of posteriors.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    The pseudo-inputs :math:`u_k` are learned; :func:`pyro_vae.fit` initializes them from training
    data by :meth:`initialize`. They are inputs of the encoder, after the VAE's input transform. The
    encoder maps them in evaluation mode, so that they never enter its running statistics. The KL of
    a posterior to this prior is sampled.

    References:
        | VAE with a VampPrior (Tomczak and Welling, 2018), https://arxiv.org/abs/1705.07120

    Arguments:
        latent_dim: The number of latent dimensions.
        event_shape: The shape of one input of the encoder.
        components: The number of pseudo-inputs.

    Raises:
        ValueError: If a size is not a positive integer.

    Example:
        >>> from pyro_vae import VAE
        >>> vae = VAE((1, 8, 8), 3, prior=Vamp)
        >>> vae.prior_distribution().sample((5,)).shape
        torch.Size([5, 3])
    """

    uses_encoder = True
    support = None

    started: Tensor

    def __init__(
        self, latent_dim: int, event_shape: Sequence[int], *, components: int = 50
    ) -> None:
        super().__init__()
        self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.components = check_size("components", components, least=1)
        shape = check_shape("event_shape", event_shape)
        self.pseudo_inputs = nn.Parameter(torch.rand(self.components, *shape))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Initializes the pseudo-inputs with random rows of ``x``, once.

        A second call changes nothing, so that training can resume from learned pseudo-inputs. If
        there are fewer rows than components, rows are repeated with a little noise. Missing values
        (NaN) become zero, as in the encoder's input.

        Raises:
            ValueError: If ``x`` has no rows, rows of another shape, or infinite or complex values.
        """
        check_tensor("x", x)
        if not x.numel() or x.dim() == 0 or x.shape[1:] != self.pseudo_inputs.shape[1:]:
            raise ValueError(
                f"Expected x to be rows of shape {tuple(self.pseudo_inputs.shape[1:])}, got a "
                f"tensor of shape {tuple(x.shape)}"
            )
        if x.is_complex() or bool(torch.isinf(x).any()):
            raise ValueError("Expected x to hold finite real numbers, or NaN where one is missing")
        if self.started:
            return
        order = torch.randperm(len(x), device=x.device)
        rows = order.repeat(-(-self.components // len(x)))[: self.components]
        inputs = x[rows].to(self.pseudo_inputs)
        inputs = torch.where(torch.isnan(inputs), torch.zeros_like(inputs), inputs)
        if self.components > len(x):
            inputs[len(x) :] += 0.01 * torch.randn_like(inputs[len(x) :])
        self.pseudo_inputs.copy_(inputs)
        self.started.fill_(True)

    def forward(
        self,
        covariates: Tensor | None = None,
        *,
        encode: Callable[..., dist.TorchDistribution] | None = None,
    ) -> dist.TorchDistribution:
        """Returns the prior, of batch shape ``()`` or that of ``covariates``.

        Raises:
            ValueError: If ``encode`` is missing.
        """
        if encode is None:
            raise ValueError("Expected encode, a callable from x to q(z given x), got None")
        if covariates is not None:
            covariates = covariates.unsqueeze(-2)
        components = encode(self.pseudo_inputs, covariates)
        logits = self.pseudo_inputs.new_zeros(components.batch_shape)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)

    def extra_repr(self) -> str:
        """Shows the sizes."""
        return f"latent_dim={self.latent_dim}, components={self.components}"
