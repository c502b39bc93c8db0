"""The variational autoencoder: a Pyro model and a Pyro guide over shared parts."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import likelihoods, networks, posteriors, priors
from pyro_vae.conditional import Likelihood, Posterior, Prior
from pyro_vae.finite import valid_parameters
from pyro_vae.guard import guard_process_state
from pyro_vae.masking import expand_mask, fill
from pyro_vae.networks import eval_mode
from pyro_vae.param_store import Scope
from pyro_vae.vae.build import Part, build, describe
from pyro_vae.vae.model_guide import Guide, Model, Parts, Sizes, check_input, state_without_store
from pyro_vae.validation import check_choice, check_shape, check_size

__all__ = ["VAE"]

PARTS = Parts._fields

_KINDS: dict[type, str] = {Prior: "prior", Posterior: "posterior", Likelihood: "likelihood"}


class VAE(nn.Module):
    r"""A variational autoencoder for Pyro.

    .. math::
        p(x) = \int p(x \mid z)\, p(z)\, dz, \qquad q(z \mid x) \approx p(z \mid x)

    :attr:`model` and :attr:`guide` are Pyro functions, each a ``torch.nn.Module`` over the shared
    parts: ``SVI(vae.model, vae.guide, optim, loss)`` and ``Trace_ELBO()(vae.model, vae.guide)``
    with an optimizer of PyTorch's both train all of them. Both have the signature

        ``(x=None, *, covariates=None, mask=None, data_size=None, n=1, suffix=None, infer=None)``

    and return ``z``. ``x`` has shape ``(*batch, *event_shape)``; without it ``n`` draws are made.
    ``covariates`` have shape ``(*batch, covariate_dim)``. ``mask`` is boolean and says what is
    observed: of shape ``batch`` it takes whole rows out, latent and all; of the shape of ``x`` it
    marks single values, and what it hides is replaced by zero before encoder and likelihood.
    ``data_size`` scales a batch of B to N, by N / B. ``suffix``, a string or an integer, tells
    several calls in one trace apart: it is appended to the names of all sites of the call, as in
    ``f"{name}.z_{suffix}"``, while the parameters stay the same. ``infer`` is what Pyro is told
    about the site of ``z``, such as a baseline.

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

    @guard_process_state
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
        self.event_shape = check_shape("event_shape", event_shape)
        self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        plate = check_choice("plate", plate, (True, None))
        parts: dict[str, Part] = {
            "prior": prior,
            "posterior": posterior,
            "likelihood": likelihood,
            "encoder": encoder,
            "decoder": decoder,
        }
        self.recipe: dict[str, Any] = {
            "event_shape": list(self.event_shape),
            "latent_dim": self.latent_dim,
            "plate": plate,
            "covariate_dim": self.covariate_dim,
            "parts": {role: describe(part) for role, part in parts.items()},
        }
        sizes = {
            "event_shape": self.event_shape,
            "latent_dim": self.latent_dim,
            "covariate_dim": self.covariate_dim,
        }
        self._make_parts(parts, sizes)
        scope = Scope(name)
        # Children would triple the keys of the state dict and make train() recurse for ever.
        shared = Sizes(self.event_shape, self.latent_dim, self.covariate_dim)
        object.__setattr__(self, "model", Model(self._parts(), shared, scope, plate))
        object.__setattr__(self, "guide", Guide(self._parts(), shared, scope, plate))

    def _parts(self) -> Parts:
        return Parts(*(getattr(self, role) for role in PARTS))

    def _make_parts(self, parts: dict[str, Part], sizes: dict[str, Any]) -> None:
        """Makes the families, and then the networks, whose sizes follow from them."""
        for role in ("prior", "posterior", "likelihood"):
            setattr(self, role, build(parts[role], role, **sizes))
        self._check_parts()
        self.encoder = build(
            parts["encoder"],
            "encoder",
            in_shape=self.event_shape,
            out_shape=self.posterior.feature_shape,
            covariate_dim=self.covariate_dim,
        )
        self.decoder = build(
            parts["decoder"],
            "decoder",
            in_shape=torch.Size((self.latent_dim,)),
            out_shape=self.likelihood.feature_shape,
            covariate_dim=self.covariate_dim,
        )
        self._check_parts()

    def _check_parts(self) -> None:
        """Raises a ``ValueError`` if a part was made for another size."""
        _check_part("prior", self.prior, latent_dim=self.latent_dim)
        _check_part("posterior", self.posterior, latent_dim=self.latent_dim)
        _check_part("likelihood", self.likelihood, event_shape=self.event_shape)
        for role in ("encoder", "decoder"):
            if role in self._modules:
                _check_kind(role, self._modules[role])

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Raises a ``ValueError``: a VAE is two programs, of which the caller has to choose one."""
        raise ValueError(
            "Expected a call of vae.model or vae.guide, which are Pyro programs, or of "
            "vae.encode, vae.decode, vae.reconstruct or vae.sample, got a call of the VAE itself"
        )

    @property
    def name(self) -> str:
        """The prefix of sites and parameters; a copy is given another by assigning to it."""
        return self.model.scope.name

    @name.setter
    def name(self, name: str) -> None:
        self.model.scope.rename(name)

    @guard_process_state
    def encode(self, x: Tensor, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns q(z given x), of the batch shape of ``x``.

        In a Pyro program of your own the parameters are trained as those of :attr:`guide` are.

        Raises:
            ValueError: If ``x`` is no tensor of the weights' dtype, has no rows or does not end in
                the event shape, or the covariates do not fit.
        """
        check_input("x", x, self.guide)
        self.guide.scope.announce(self.guide)
        return self.guide.encode(x, covariates)

    @guard_process_state
    def decode(self, z: Tensor, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(x given z), of the batch shape of ``z``.

        In a Pyro program of your own the parameters are trained as those of :attr:`model` are.

        Raises:
            ValueError: If ``z`` is no tensor of the weights' dtype, has no rows or does not end in
                ``latent_dim``, or the covariates do not fit.
        """
        check_input("z", z, self.model)
        self.model.scope.announce(self.model)
        return self.model.decode(z, covariates)

    @guard_process_state
    def prior_distribution(self, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(z), of batch shape ``()`` or that of ``covariates``."""
        self.guide.scope.announce(self.guide)
        return self.guide.prior_distribution(covariates)

    @guard_process_state
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
        n = check_size("n", n, least=1)
        with eval_mode(self):
            prior = self.prior_distribution(covariates)
            if covariates is not None:
                batch = torch.broadcast_shapes(prior.batch_shape, covariates.shape[:-1])
                prior = prior.expand(batch)
            p = self.decode(prior.sample(torch.Size((n,))), covariates)
            return p.mean if mean else p.sample()

    @guard_process_state
    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, *, covariates: Tensor | None = None, mean: bool = True
    ) -> Tensor:
        """Encodes and decodes, in evaluation mode.

        Arguments:
            x: Data of shape ``(*batch, *event_shape)``.
            covariates: Covariates, ``(*batch, covariate_dim)``.
            mean: Whether to go by the means of q and p, or to draw from both.

        Raises:
            ValueError: As :meth:`encode` does, or if covariates have batch dimensions that ``x``
                has not.
        """
        with eval_mode(self):
            q = self.encode(x, covariates)
            batch = x.shape[: x.dim() - len(self.event_shape)]
            if batch and covariates is not None and q.batch_shape != batch:
                raise ValueError(
                    f"Expected covariates of shape {(*batch, self.covariate_dim)}, got "
                    f"{tuple(covariates.shape)}"
                )
            p = self.decode(q.mean if mean else q.sample(), covariates)
            return p.mean if mean else p.sample()

    def check(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Checks data once, before any work is put into them.

        Raises:
            ValueError: If the shape does not fit, values are missing that no mask declares, or
                values lie outside the likelihood's support.
        """
        self.model.check(x, mask)

    @guard_process_state
    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Lets parts that start from training data do so; each does it once in its life."""
        for part in self.children():
            start = getattr(part, "initialize", None)
            if start is not None:
                start(x)

    @guard_process_state
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

        Raises:
            ValueError: If the data cannot be scored, or ``batch_size`` is not positive.
            FloatingPointError: If the mean, or a parameter of a distribution, is not finite.
        """
        batch_size = check_size("batch_size", batch_size, least=1)
        self.check(x, mask)
        calibrate = getattr(self.likelihood, "calibrate", None)
        if calibrate is None:
            return
        observed = None if mask is None else expand_mask(mask, x, self.event_shape)
        seen = torch.ones_like(x) if observed is None else observed.to(x.dtype)
        total = torch.zeros((), device=x.device, dtype=torch.float64)
        with eval_mode(self), valid_parameters("q(z given x) or p(x given z)"):
            for start in range(0, len(x), batch_size):
                some = slice(start, start + batch_size)
                rows = x[some] if observed is None else fill(x[some], observed[some])
                given = None if covariates is None else covariates[some]
                error = rows - self.decode(self.encode(rows, given).sample(), given).mean
                total += (seen[some] * error**2).double().sum()
        # Where nothing is observed there is nothing to calibrate by.
        if bool(seen.any()):
            variance = total / seen.double().sum()
            if not bool(variance.isfinite()):
                raise FloatingPointError(f"The mean squared error of x is not finite: {variance}")
            calibrate(variance)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a part of model and guide too, so that the three never differ."""
        super().__setattr__(name, value)
        if name in PARTS and "guide" in self.__dict__:
            self._check_parts()
            self.recipe["parts"][name] = None
            for side in (self.model, self.guide):
                side.take(self._parts())

    def __getstate__(self) -> dict[str, Any]:
        """Pickles without what Pyro's store leaves on parameters, a weak reference."""
        return state_without_store(self)

    def extra_repr(self) -> str:
        """Shows sizes and name."""
        return (
            f"event_shape={tuple(self.event_shape)}, latent_dim={self.latent_dim}, "
            f"name={self.name!r}"
        )


def _check_part(role: str, part: nn.Module, **sizes: object) -> None:
    """Raises a ``ValueError`` if a part is of another kind, or was made for another size."""
    _check_kind(role, part)
    for name, size in sizes.items():
        own = getattr(part, name, size)
        if own != size:
            raise ValueError(f"Expected {role} to have {name}={size}, got {own} in {part}")
    if role != "prior" and not hasattr(part, "feature_shape"):
        raise ValueError(
            f"Expected {role} to have a feature_shape, the shape that its network must give, got "
            f"{type(part).__name__} without one"
        )


def _check_kind(role: str, part: nn.Module | None) -> None:
    """Raises a ``ValueError`` if a part is one for another role."""
    roles = [other for kind, other in _KINDS.items() if isinstance(part, kind)]
    for other in roles:
        if role not in roles:
            raise ValueError(
                f"Expected {role} to be made for that role, got {type(part).__name__}, a {other}"
            )
