"""The variational autoencoder: a Pyro model and a Pyro guide over shared parts."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyro_vae import likelihoods, networks, posteriors, priors
from pyro_vae.conditional import Likelihood, Part, Posterior, Prior, build, check_size, describe
from pyro_vae.networks import apply_network, eval_mode
from pyro_vae.scope import Scope

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""A variational autoencoder for Pyro.

    .. math::
        p(x) = \int p(x \mid z)\, p(z)\, dz, \qquad q(z \mid x) \approx p(z \mid x)

    :attr:`model` and :attr:`guide` are Pyro functions, each a ``torch.nn.Module`` over the shared
    parts: ``SVI(vae.model, vae.guide, optim, loss)`` and ``Trace_ELBO()(vae.model, vae.guide)``
    with an optimizer of PyTorch's both train all of them. Both have the signature

        ``(x=None, *, context=None, mask=None, data_size=None, n=1)``

    and return ``z``. ``x`` has shape ``(*batch, *event_shape)``; without it ``n`` draws are made.
    ``context`` holds covariates, ``(*batch, context_dim)``. ``mask`` is boolean and says what is
    observed: of shape ``batch`` it takes whole rows out, latent and all; of the shape of ``x`` it
    marks single values, and what it hides is replaced by zero before encoder and likelihood.
    ``data_size`` scales a batch of B to N, by N / B.

    The sites are ``f"{name}.z"`` and ``f"{name}.x"``. With ``plate=True`` the batch is the
    plate ``f"{name}.data"``; with ``plate=None`` the caller opens the plates, any number of them.

    References:
        | Auto-encoding variational Bayes (Kingma and Welling, 2013),
          https://arxiv.org/abs/1312.6114

    Arguments:
        event_shape: The shape of one datum.
        latent_dim: The number of latent dimensions.
        prior: p(z); as every part a module, or a callable that makes one and is given those of the
            sizes that its signature names.
        posterior: q(z given x), a family.
        likelihood: p(x given z), a family.
        encoder: The network from x to the posterior's features; a callable is given ``in_shape``,
            ``out_shape`` and ``context_dim``.
        decoder: The network from z to the likelihood's features, likewise.
        name: The prefix of sites and parameters. Two VAEs in one program need two names.
        plate: True, or None if the caller owns the plates.
        context_dim: The number of covariates.

    Raises:
        ValueError: If a size is not positive, or a part does not fit.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.optim import Adam
        >>> vae = VAE((1, 8, 8), latent_dim=2)
        >>> svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(torch.ones(10, 1, 8, 8), data_size=1000)
        >>> vae.encode(torch.ones(10, 1, 8, 8)).mean.shape
        torch.Size([10, 2])
    """

    model: "Model"
    guide: "Guide"
    prior: Prior
    posterior: Posterior
    likelihood: Likelihood
    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        event_shape: Sequence[int] | int,
        latent_dim: int,
        *,
        prior: Part = priors.Normal,
        posterior: Part = posteriors.Normal,
        likelihood: Part = likelihoods.Bernoulli,
        encoder: Part = networks.MLP,
        decoder: Part = networks.MLP,
        name: str = "vae",
        plate: bool | None = True,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = check_shape(event_shape)
        self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.context_dim = check_size("context_dim", context_dim, least=0)
        if plate not in (True, None):
            raise ValueError(f"Expected plate to be True or None, got {plate!r}")
        parts = {
            "prior": prior,
            "posterior": posterior,
            "likelihood": likelihood,
            "encoder": encoder,
            "decoder": decoder,
        }
        self.recipe: dict[str, Any] = {
            "event_shape": list(self.event_shape),
            "latent_dim": latent_dim,
            "plate": plate,
            "context_dim": context_dim,
            "parts": {role: describe(part) for role, part in parts.items()},
        }
        sizes = {
            "event_shape": self.event_shape,
            "latent_dim": latent_dim,
            "context_dim": context_dim,
        }
        self.prior = build(prior, "prior", **sizes)
        self.posterior = build(posterior, "posterior", **sizes)
        self.likelihood = build(likelihood, "likelihood", **sizes)
        check_part("prior", self.prior, latent_dim=latent_dim)
        check_part("posterior", self.posterior, latent_dim=latent_dim)
        check_part("likelihood", self.likelihood, event_shape=self.event_shape)
        self.encoder = build(
            encoder,
            "encoder",
            in_shape=self.event_shape,
            out_shape=self.posterior.feature_shape,
            context_dim=context_dim,
        )
        self.decoder = build(
            decoder,
            "decoder",
            in_shape=torch.Size((latent_dim,)),
            out_shape=self.likelihood.feature_shape,
            context_dim=context_dim,
        )
        scope = Scope(name)
        # Children would triple the keys of the state dict and make train() recurse for ever.
        object.__setattr__(self, "model", Model(self, scope, plate))
        object.__setattr__(self, "guide", Guide(self, scope, plate))

    @property
    def name(self) -> str:
        """The prefix of sites and parameters; a copy is given another by assigning to it."""
        return self.model.scope.name

    @name.setter
    def name(self, name: str) -> None:
        self.model.scope.rename(name)

    def encode(self, x: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        """Returns q(z given x), of the batch shape of ``x``.

        Raises:
            ValueError: If ``x`` does not end in the event shape.
        """
        return self.guide.encode(x, context)

    def decode(self, z: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(x given z), of the batch shape of ``z``.

        Raises:
            ValueError: If ``z`` does not end in ``latent_dim``.
        """
        return self.model.decode(z, context)

    def prior_distribution(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(z), of batch shape ``()`` or that of ``context``."""
        return self.guide.prior_distribution(context)

    @torch.no_grad()
    def sample(self, n: int = 1, *, context: Tensor | None = None, mean: bool = False) -> Tensor:
        """Draws data from the model, in evaluation mode.

        Arguments:
            n: The number of draws; with ``context``, for each row of it.
            context: Covariates.
            mean: Whether to return the mean of p(x given z) in place of a draw from it.

        Returns:
            A tensor of shape ``(n, *event_shape)``, or ``(n, *batch, *event_shape)``.
        """
        check_size("n", n, least=1)
        with eval_mode(self):
            p = self.decode(self.prior_distribution(context).sample(torch.Size((n,))), context)
            return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, context: Tensor | None = None, mean: bool = True) -> Tensor:
        """Encodes and decodes, in evaluation mode.

        Arguments:
            x: Data of shape ``(*batch, *event_shape)``.
            context: Covariates.
            mean: Whether to go by the means of q and p, or to draw from both.
        """
        with eval_mode(self):
            q = self.encode(x, context)
            p = self.decode(q.mean if mean else q.sample(), context)
            return p.mean if mean else p.sample()

    def check(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Checks data once, before any work is put into them.

        Raises:
            ValueError: If the shape does not fit, values are missing that no mask declares, or
                values lie outside the likelihood's support.
        """
        self.model.check(x, mask)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Lets parts that start from training data do so; each does it once in its life."""
        for part in self.children():
            start = getattr(part, "initialize", None)
            if start is not None:
                start(x)

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, mask: Tensor | None = None, batch_size: int = 1000) -> None:
        r"""Freezes what a likelihood takes from the training data for evaluation.

        Hands the likelihood the mean of :math:`\mathbb{E}_{q(z \mid x)} (x_i - \mu_i(z))^2`, if it
        has a method ``calibrate``.
        """
        calibrate = getattr(self.likelihood, "calibrate", None)
        if calibrate is None:
            return
        observed = None if mask is None else expand_mask(mask, x, self.event_shape)
        seen = torch.ones_like(x) if observed is None else observed.to(x.dtype)
        total = torch.zeros((), device=x.device, dtype=torch.float64)
        with eval_mode(self):
            for rows, weight in zip(
                fill(x, observed).split(batch_size), seen.split(batch_size), strict=True
            ):
                error = rows - self.decode(self.encode(rows).sample()).mean
                total += (weight * error**2).double().sum()
        calibrate(total / seen.double().sum())

    def extra_repr(self) -> str:
        """Shows sizes and name."""
        return (
            f"event_shape={tuple(self.event_shape)}, latent_dim={self.latent_dim}, "
            f"name={self.name!r}"
        )


class Side(nn.Module):
    """What model and guide share: the parts that each needs, and how the batch is opened."""

    prior: Prior
    posterior: Posterior
    encoder: nn.Module

    def __init__(self, vae: VAE, scope: Scope, plate: bool | None) -> None:
        super().__init__()
        self.scope = scope
        self.plate = plate
        self.event_shape = vae.event_shape
        self.latent_dim = vae.latent_dim
        self.context_dim = vae.context_dim
        self.prior = vae.prior

    def encode(self, x: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        """Returns q(z given x)."""
        check_trailing("x", x, self.event_shape)
        self.check_context(context)
        features = apply_network(self.encoder, x, len(self.event_shape), context)
        check_trailing("the encoder's output", features, self.posterior.feature_shape)
        return self.posterior(features)

    def encode_in_eval_mode(
        self, x: Tensor, context: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Returns q(z given x) for inputs that must not enter running statistics."""
        with eval_mode(self.encoder, self.posterior):
            return self.encode(x, context)

    def prior_distribution(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(z)."""
        self.check_context(context)
        needs = getattr(self.prior, "uses_encoder", False)
        return self.prior(context, encode=self.encode_in_eval_mode if needs else None)

    def check_context(self, context: Tensor | None) -> None:
        """Raises a ``ValueError`` unless there are covariates just where they are expected."""
        if context is None and self.context_dim:
            raise ValueError(
                f"Expected context of shape (batch, {self.context_dim}), as context_dim="
                f"{self.context_dim} says, got None"
            )
        if context is not None and (not context.dim() or context.shape[-1] != self.context_dim):
            raise ValueError(
                f"Expected context to have {self.context_dim} features (context_dim), got a "
                f"tensor of shape {tuple(context.shape)}"
            )

    def check(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Raises a ``ValueError`` for data that cannot be scored."""
        check_trailing("x", x, self.event_shape)
        if x.numel() == 0:
            raise ValueError(f"Expected x to have rows, got a tensor of shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"Expected x to be a floating-point tensor, got {x.dtype}")
        if mask is not None:
            x = fill(x, expand_mask(mask, x, self.event_shape))
        missing = torch.isnan(x)
        if bool(missing.any()):
            raise ValueError(
                f"Expected x to have no NaN, got {int(missing.sum())}: declare missing values by "
                f"mask, which is True where a value is observed"
            )

    def opened(
        self, x: Tensor | None, context: Tensor | None, data_size: int | None, n: int
    ) -> AbstractContextManager:
        """Opens the plate over the batch, or nothing where the caller owns the plates."""
        check_size("n", n, least=1)
        if self.plate is None:
            if data_size is not None or n != 1:
                raise ValueError(
                    f"Expected neither data_size nor n with plate=None, where the caller's plates "
                    f"say both, got {data_size=}, {n=}"
                )
            return nullcontext()
        size = self.batch_size(x, context, n)
        name = f"{self.scope.name}.data"
        if data_size is None:
            return pyro.plate(name, size, dim=-1)
        if data_size < size:
            raise ValueError(
                f"Expected data_size to be at least the batch's {size} rows, got {data_size}"
            )
        # Which rows these are is the caller's affair; only their number sets the scale.
        return pyro.plate(name, data_size, subsample=torch.arange(size), dim=-1)

    def batch_size(self, x: Tensor | None, context: Tensor | None, n: int) -> int:
        """Returns the number of rows."""
        if x is not None:
            if x.dim() != len(self.event_shape) + 1:
                raise ValueError(
                    f"Expected x of shape (batch, {', '.join(map(str, self.event_shape))}), got "
                    f"{tuple(x.shape)}: for other batches make the VAE with plate=None and open "
                    f"the plates yourself"
                )
            return x.shape[0]
        if context is not None and context.dim() > 1:
            if n not in (1, context.shape[0]):
                raise ValueError(f"Expected n to be context's {context.shape[0]} rows, got {n}")
            return context.shape[0]
        return n


class Model(Side):
    """The generative model, p(z) p(x given z), as a Pyro function."""

    likelihood: Likelihood
    decoder: nn.Module

    def __init__(self, vae: VAE, scope: Scope, plate: bool | None) -> None:
        super().__init__(vae, scope, plate)
        self.decoder = vae.decoder
        self.likelihood = vae.likelihood
        if getattr(vae.prior, "uses_encoder", False):
            self.encoder = vae.encoder
            self.posterior = vae.posterior

    def decode(self, z: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(x given z)."""
        check_trailing("z", z, torch.Size((self.latent_dim,)))
        self.check_context(context)
        features = apply_network(self.decoder, z, 1, context)
        check_trailing("the decoder's output", features, self.likelihood.feature_shape)
        return self.likelihood(features)

    def check(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Raises a ``ValueError`` for data that cannot be scored."""
        super().check(x, mask)
        if mask is not None:
            x = fill(x, expand_mask(mask, x, self.event_shape))
        supported = getattr(self.likelihood, "check", None)
        if supported is not None:
            supported(x)

    def forward(
        self,
        x: Tensor | None = None,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        data_size: int | None = None,
        n: int = 1,
    ) -> Tensor:
        """Samples z and x, or z and scores x; returns z."""
        rows, elements = split_mask(mask, x, self.event_shape)
        if x is not None:
            if is_validation_enabled():
                self.check(x, mask)
            x = fill(x, elements)
        name = self.scope.name
        self.scope.announce(self)
        with self.opened(x, context, data_size, n), masked(rows):
            z = pyro.sample(f"{name}.z", self.prior_distribution(context))
            p = self.decode(z, context)
            if elements is not None:
                p = mask_elements(p, elements)
            pyro.sample(f"{name}.x", p, obs=x)
        return z


class Guide(Side):
    """The amortized posterior, q(z given x), as a Pyro function."""

    def __init__(self, vae: VAE, scope: Scope, plate: bool | None) -> None:
        super().__init__(vae, scope, plate)
        self.encoder = vae.encoder
        self.posterior = vae.posterior

    def forward(
        self,
        x: Tensor | None = None,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        data_size: int | None = None,
        n: int = 1,
    ) -> Tensor:
        """Samples z from the posterior, or from the prior where there is no x; returns z."""
        rows, elements = split_mask(mask, x, self.event_shape)
        if x is not None:
            if is_validation_enabled():
                self.check(x, mask)
            x = fill(x, elements)
        self.scope.announce(self)
        with self.opened(x, context, data_size, n), masked(rows):
            q = self.prior_distribution(context) if x is None else self.encode(x, context)
            return pyro.sample(f"{self.scope.name}.z", q)


def check_shape(event_shape: Sequence[int] | int) -> torch.Size:
    """Returns the event shape, of at least one dimension, or raises a ``ValueError``."""
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"Expected event_shape to be positive integers, got {event_shape!r}")
    return torch.Size(shape)


def check_part(role: str, part: nn.Module, **sizes: object) -> None:
    """Raises a ``ValueError`` if a ready-made part was made for another size."""
    for name, size in sizes.items():
        own = getattr(part, name, size)
        if own != size:
            raise ValueError(f"Expected {role} to have {name}={size}, got {own} in {part}")
    if role != "prior" and not hasattr(part, "feature_shape"):
        raise ValueError(
            f"Expected {role} to have a feature_shape, the shape that its network must give, got "
            f"{type(part).__name__} without one"
        )


def check_trailing(what: str, value: Tensor, shape: torch.Size) -> None:
    """Raises a ``ValueError`` unless a tensor's shape ends in ``shape``."""
    if value.shape[max(value.dim() - len(shape), 0) :] != shape:
        raise ValueError(
            f"Expected {what} to have shape (*batch, {', '.join(map(str, shape))}), got "
            f"{tuple(value.shape)}"
        )


def split_mask(
    mask: Tensor | None, x: Tensor | None, event_shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the mask of rows and that of elements, as far as one is given.

    A mask of rows is also one of elements: what stands in a missing row is arbitrary too.
    """
    if mask is None:
        return None, None
    if mask.dtype != torch.bool:
        raise ValueError(f"Expected mask to be boolean, got {mask.dtype}")
    if x is None:
        return mask, None
    elements = expand_mask(mask, x, event_shape)
    return (None, elements) if mask.dim() == x.dim() else (mask, elements)


def expand_mask(mask: Tensor, x: Tensor, event_shape: torch.Size) -> Tensor:
    """Returns a mask of the shape of ``x``, from one of that shape or of its batch."""
    batch = x.shape[: x.dim() - len(event_shape)]
    if mask.shape == batch:
        return mask.reshape(*batch, *(1 for _ in event_shape)).expand(x.shape)
    if mask.shape == x.shape:
        return mask
    raise ValueError(
        f"Expected mask to have the shape of x, {tuple(x.shape)}, or of its batch, "
        f"{tuple(batch)}, got {tuple(mask.shape)}"
    )


def fill(x: Tensor, elements: Tensor | None) -> Tensor:
    """Returns ``x`` with zeros, which every likelihood here supports, for what is missing."""
    return x if elements is None else torch.where(elements, x, torch.zeros_like(x))


def masked(rows: Tensor | None) -> AbstractContextManager:
    """Takes rows out of every site within, or nothing."""
    return nullcontext() if rows is None else poutine.mask(mask=cast(torch.BoolTensor, rows))


def mask_elements(p: dist.TorchDistribution, elements: Tensor) -> dist.TorchDistribution:
    """Returns a likelihood that scores the observed elements only.

    Raises:
        ValueError: If the likelihood does not factorize over elements.
    """
    if not isinstance(p, torch.distributions.Independent):
        raise ValueError(
            f"Expected a likelihood of independent elements with a mask of elements, got {p}"
        )
    return p.base_dist.mask(elements).to_event(p.reinterpreted_batch_ndims)
