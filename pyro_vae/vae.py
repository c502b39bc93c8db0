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

PARTS = ("prior", "posterior", "likelihood", "encoder", "decoder")


class VAE(nn.Module):
    r"""A variational autoencoder for Pyro.

    .. math::
        p(x) = \int p(x \mid z)\, p(z)\, dz, \qquad q(z \mid x) \approx p(z \mid x)

    :attr:`model` and :attr:`guide` are Pyro functions, each a ``torch.nn.Module`` over the shared
    parts: ``SVI(vae.model, vae.guide, optim, loss)`` and ``Trace_ELBO()(vae.model, vae.guide)``
    with an optimizer of PyTorch's both train all of them. Both have the signature

        ``(x=None, *, covariates=None, mask=None, data_size=None, n=1)``

    and return ``z``. ``x`` has shape ``(*batch, *event_shape)``; without it ``n`` draws are made.
    ``covariates`` have shape ``(*batch, covariate_dim)``. ``mask`` is boolean and says what is
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
            ``out_shape`` and ``covariate_dim``.
        decoder: The network from z to the likelihood's features, likewise.
        name: The prefix of sites and parameters. Two VAEs in one program need two names.
        plate: True, or None if the caller owns the plates.
        covariate_dim: The number of covariates.

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
        covariate_dim: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = check_shape(event_shape)
        self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
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
            "covariate_dim": covariate_dim,
            "parts": {role: describe(part) for role, part in parts.items()},
        }
        sizes = {
            "event_shape": self.event_shape,
            "latent_dim": latent_dim,
            "covariate_dim": covariate_dim,
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
            covariate_dim=covariate_dim,
        )
        self.decoder = build(
            decoder,
            "decoder",
            in_shape=torch.Size((latent_dim,)),
            out_shape=self.likelihood.feature_shape,
            covariate_dim=covariate_dim,
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

    def encode(self, x: Tensor, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns q(z given x), of the batch shape of ``x``.

        Raises:
            ValueError: If ``x`` does not end in the event shape.
        """
        return self.guide.encode(x, covariates)

    def decode(self, z: Tensor, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(x given z), of the batch shape of ``z``.

        Raises:
            ValueError: If ``z`` does not end in ``latent_dim``.
        """
        return self.model.decode(z, covariates)

    def prior_distribution(self, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(z), of batch shape ``()`` or that of ``covariates``."""
        return self.guide.prior_distribution(covariates)

    @torch.no_grad()
    def sample(self, n: int = 1, *, covariates: Tensor | None = None, mean: bool = False) -> Tensor:
        """Draws data from the model, in evaluation mode.

        Arguments:
            n: The number of draws; with ``covariates``, for each row of it.
            covariates: Covariates.
            mean: Whether to return the mean of p(x given z) in place of a draw from it.

        Returns:
            A tensor of shape ``(n, *event_shape)``, or ``(n, *batch, *event_shape)``.
        """
        check_size("n", n, least=1)
        with eval_mode(self):
            prior = self.prior_distribution(covariates)
            if covariates is not None:
                batch = torch.broadcast_shapes(prior.batch_shape, covariates.shape[:-1])
                prior = prior.expand(batch)
            p = self.decode(prior.sample(torch.Size((n,))), covariates)
            return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, *, covariates: Tensor | None = None, mean: bool = True
    ) -> Tensor:
        """Encodes and decodes, in evaluation mode.

        Arguments:
            x: Data of shape ``(*batch, *event_shape)``.
            covariates: Covariates.
            mean: Whether to go by the means of q and p, or to draw from both.
        """
        with eval_mode(self):
            q = self.encode(x, covariates)
            p = self.decode(q.mean if mean else q.sample(), covariates)
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
    def calibrate(
        self,
        x: Tensor,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        batch_size: int = 1000,
    ) -> None:
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
            for start in range(0, len(x), batch_size):
                some = slice(start, start + batch_size)
                rows = x[some] if observed is None else fill(x[some], observed[some])
                given = None if covariates is None else covariates[some]
                error = rows - self.decode(self.encode(rows, given).sample(), given).mean
                total += (seen[some] * error**2).double().sum()
        calibrate(total / seen.double().sum())

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a part of model and guide too, so that the three never differ."""
        super().__setattr__(name, value)
        if name in PARTS and "guide" in self.__dict__:
            self.recipe["parts"][name] = None
            for side in (self.model, self.guide):
                if name in side._modules:
                    setattr(side, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without what Pyro's store leaves on parameters, a weak reference."""
        return state_without_store(self)

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

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without what Pyro's store leaves on parameters, a weak reference."""
        return state_without_store(self)

    def __init__(self, vae: VAE, scope: Scope, plate: bool | None) -> None:
        super().__init__()
        self.scope = scope
        self.plate = plate
        self.event_shape = vae.event_shape
        self.latent_dim = vae.latent_dim
        self.covariate_dim = vae.covariate_dim
        self.prior = vae.prior

    def encode(
        self, x: Tensor, covariates: Tensor | None = None, *, frozen: bool = False
    ) -> dist.TorchDistribution:
        """Returns q(z given x)."""
        check_trailing("x", x, self.event_shape)
        self.check_covariates(covariates)
        features = apply_network(self.encoder, x, len(self.event_shape), covariates, frozen=frozen)
        check_trailing("the encoder's output", features, self.posterior.feature_shape)
        return self.posterior(features)

    def encode_in_eval_mode(
        self, x: Tensor, covariates: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Returns q(z given x) for inputs that must not enter running statistics."""
        with eval_mode(self.encoder, self.posterior):
            return self.encode(x, covariates, frozen=True)

    def prior_distribution(self, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(z)."""
        self.check_covariates(covariates)
        needs = getattr(self.prior, "uses_encoder", False)
        return self.prior(covariates, encode=self.encode_in_eval_mode if needs else None)

    def check_covariates(self, covariates: Tensor | None) -> None:
        """Raises a ``ValueError`` unless there are covariates just where they are expected."""
        if covariates is None and self.covariate_dim:
            raise ValueError(
                f"Expected covariates of shape (batch, {self.covariate_dim}), as covariate_dim="
                f"{self.covariate_dim} says, got None"
            )
        if covariates is not None and (
            not covariates.dim() or covariates.shape[-1] != self.covariate_dim
        ):
            raise ValueError(
                f"Expected covariates to have {self.covariate_dim} features (covariate_dim), got a "
                f"tensor of shape {tuple(covariates.shape)}"
            )

    def check(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Raises a ``ValueError`` for data that cannot be scored."""
        if not isinstance(x, Tensor):
            raise ValueError(f"Expected x to be a torch.Tensor, got {type(x).__name__}")
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
        if bool(torch.isinf(x).any()):
            raise ValueError(f"Expected x to be finite, got {int(torch.isinf(x).sum())} infinite")
        own = next((p.dtype for p in self.parameters()), x.dtype)
        if x.dtype != own:
            raise ValueError(
                f"Expected x of the dtype of the VAE's weights, {own}, got {x.dtype}: convert one "
                f"of them, x.to({own}) or vae.to({x.dtype})"
            )

    def opened(
        self, x: Tensor | None, covariates: Tensor | None, data_size: int | None, n: int
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
        size = self.batch_size(x, covariates, n)
        name = f"{self.scope.name}.data"
        if data_size is None:
            return pyro.plate(name, size, dim=-1)
        if check_size("data_size", data_size, least=1) < size:
            raise ValueError(
                f"Expected data_size to be at least the batch's {size} rows, got {data_size}"
            )
        # Which rows these are is the caller's affair; only their number sets the scale.
        return pyro.plate(name, data_size, subsample=torch.arange(size), dim=-1)

    def batch_size(self, x: Tensor | None, covariates: Tensor | None, n: int) -> int:
        """Returns the number of rows."""
        if x is not None:
            if x.dim() != len(self.event_shape) + 1:
                raise ValueError(
                    f"Expected x of shape (batch, {', '.join(map(str, self.event_shape))}), got "
                    f"{tuple(x.shape)}: for other batches make the VAE with plate=None and open "
                    f"the plates yourself"
                )
            if covariates is not None and covariates.shape[:-1] not in ((), (1,), x.shape[:1]):
                raise ValueError(
                    f"Expected covariates of {x.shape[0]} rows, as x has, got a tensor of shape "
                    f"{tuple(covariates.shape)}"
                )
            return x.shape[0]
        if covariates is not None and covariates.dim() > 1:
            if n not in (1, covariates.shape[0]):
                raise ValueError(
                    f"Expected n to be the {covariates.shape[0]} rows of covariates, got {n}"
                )
            return covariates.shape[0]
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

    def decode(self, z: Tensor, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(x given z)."""
        check_trailing("z", z, torch.Size((self.latent_dim,)))
        self.check_covariates(covariates)
        features = apply_network(self.decoder, z, 1, covariates)
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
        covariates: Tensor | None = None,
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
        with self.opened(x, covariates, data_size, n), masked(rows):
            z = pyro.sample(f"{name}.z", self.prior_distribution(covariates))
            p = self.decode(z, covariates)
            if elements is not None and (rows is None or factorizes(p)):
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
        covariates: Tensor | None = None,
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
        with self.opened(x, covariates, data_size, n), masked(rows):
            q = self.prior_distribution(covariates) if x is None else self.encode(x, covariates)
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
    check_mask(mask)
    if x is None:
        return mask, None
    elements = expand_mask(mask, x, event_shape)
    return (None, elements) if mask.dim() == x.dim() else (mask, elements)


def check_mask(mask: Tensor) -> None:
    """Raises a ``ValueError`` unless a mask is a boolean tensor."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"Expected mask to be boolean, got {got}")


def expand_mask(mask: Tensor, x: Tensor, event_shape: torch.Size) -> Tensor:
    """Returns a mask of the shape of ``x``, from one of that shape or of its batch."""
    check_mask(mask)
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


def factorizes(p: dist.TorchDistribution) -> bool:
    """Tells whether a likelihood is one of independent elements."""
    return isinstance(p, torch.distributions.Independent)


def state_without_store(module: nn.Module) -> dict[str, Any]:
    """Returns a module's state, its parameters freed of what Pyro's store has left on them."""
    for parameter in module.parameters():
        vars(parameter).pop("unconstrained", None)
    return vars(module).copy()


def mask_elements(p: dist.TorchDistribution, elements: Tensor) -> dist.TorchDistribution:
    """Returns a likelihood that scores the observed elements only.

    Raises:
        ValueError: If the likelihood does not factorize over elements.
    """
    if not factorizes(p):
        raise ValueError(
            f"Expected a likelihood of independent elements with a mask of elements, got {p}"
        )
    return p.base_dist.mask(elements).to_event(p.reinterpreted_batch_ndims)
