"""The variational autoencoder: a Pyro model and a Pyro guide over shared parts."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import likelihoods, networks, posteriors, priors, transforms
from pyro_vae.conditional import Likelihood, Posterior, Prior
from pyro_vae.data.sparse_rows import is_sparse, take_rows
from pyro_vae.distributions.blocks import find_centre, interpolate_points
from pyro_vae.finite import explain_invalid_parameters
from pyro_vae.guard import guard_process_state
from pyro_vae.masking import expand_mask, fill_missing
from pyro_vae.networks import eval_mode
from pyro_vae.param_store import Scope
from pyro_vae.vae.build import Part, build_part, describe_part
from pyro_vae.vae.initialization import initialize_parts
from pyro_vae.vae.input_checks import check_input, check_rows_of_covariates, check_sparse_rows
from pyro_vae.vae.model_guide import (
    Guide,
    Model,
    Parts,
    Sizes,
    get_state_without_store,
)
from pyro_vae.vae.part_checks import check_parts, count_network_covariates
from pyro_vae.validation import check_choice, check_shape, check_size

__all__ = ["VAE"]

PARTS = Parts._fields


class VAE(nn.Module):
    r"""A variational autoencoder for Pyro.

    .. math::
        p(x) = \int p(x \mid z)\, p(z)\, dz, \qquad q(z \mid x) \approx p(z \mid x)

    :attr:`model` and :attr:`guide` are Pyro functions, each a ``torch.nn.Module`` over the shared
    parts: ``SVI(vae.model, vae.guide, optim, loss)`` and ``Trace_ELBO()(vae.model, vae.guide)``
    with a PyTorch optimizer both train all of them. Both have the signature

        ``(x=None, *, covariates=None, mask=None, data_size=None, n=1, suffix=None, infer=None)``

    and return ``z``. ``x`` has shape ``(*batch, *event_shape)``; without it they draw ``n`` rows.
    ``covariates`` have shape ``(*batch, covariate_dim)``. ``mask`` is boolean, with True for
    observed values. A mask of shape ``batch`` removes whole rows, including their latents. A mask
    of the shape of ``x`` marks single values; the others are zero for the encoder, and are not
    scored. ``data_size`` scales a batch of B rows to N, by N / B. ``suffix``, a string or an
    integer, distinguishes several calls in one trace: it is appended to the names of all sites of
    the call, as in ``f"{name}.z_{suffix}"``. The parameters stay the same. ``infer`` is Pyro's
    ``infer`` argument of the site of ``z``, such as a baseline.

    The sites are ``f"{name}.z"`` and ``f"{name}.x"``. With ``plate=True`` the VAE opens the plate
    ``f"{name}.data"`` over the batch; with ``plate=None`` the caller opens any number of plates.

    References:
        | Auto-encoding variational Bayes (Kingma and Welling, 2013),
          https://arxiv.org/abs/1312.6114

    Arguments:
        event_shape: The shape of one datum.
        latent_dim: The number of latent dimensions.
        prior: p(z). Like every part, a module, or a callable that builds one from the sizes that
            its signature names.
        posterior: q(z given x), a family.
        likelihood: p(x given z), a family.
        encoder: The network from x to the posterior's features; a callable receives ``in_shape``,
            ``out_shape`` and ``covariate_dim``.
        decoder: The network from z to the likelihood's features, likewise.
        name: The prefix of sites and parameters. Two VAEs in one program need two names.
        plate: True, or None if the caller owns the plates.
        covariate_dim: The number of covariates. A likelihood with ``size_factor="covariate"`` takes
            the last one, which prior and networks do not see.
        input_transform: A fixed function of the data, applied before the encoder; a member of
            :mod:`pyro_vae.transforms`. ``None``: the default of the likelihood, which is the
            identity for all but :class:`pyro_vae.likelihoods.Columns`.

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
    input_transform: nn.Module

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
        input_transform: Part | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.latent_dim = check_size("latent_dim", latent_dim, least=1)
        self.covariate_dim = check_size("covariate_dim", covariate_dim, least=0)
        plate = check_choice("plate", plate, (True, None))
        parts: dict[str, Any] = {
            "prior": prior,
            "posterior": posterior,
            "likelihood": likelihood,
            "encoder": encoder,
            "decoder": decoder,
            "input_transform": input_transform,
        }
        self.recipe: dict[str, Any] = {
            "event_shape": list(self.event_shape),
            "latent_dim": self.latent_dim,
            "plate": plate,
            "covariate_dim": self.covariate_dim,
        }
        sizes = {name: getattr(self, name) for name in Sizes._fields}
        self._build_parts(parts, sizes)
        self.recipe["parts"] = {role: describe_part(part) for role, part in parts.items()}
        scope = Scope(name)
        # As children they would triple the keys of the state dict, and train() would not end.
        shared = Sizes(self.event_shape, self.latent_dim, self.covariate_dim)
        object.__setattr__(self, "model", Model(self._get_parts(), shared, scope, plate))
        object.__setattr__(self, "guide", Guide(self._get_parts(), shared, scope, plate))

    def _get_parts(self) -> Parts:
        return Parts(*(getattr(self, role) for role in PARTS))

    def _build_parts(self, parts: dict[str, Any], sizes: dict[str, Any]) -> None:
        """Builds the families first, because the sizes of the networks follow from them."""
        # Assigned in the order of their roles, which is that of the parameters.
        likelihood = build_part(parts["likelihood"], "likelihood", **sizes)
        if parts["input_transform"] is None:
            name = getattr(likelihood, "default_transform", "Identity")
            parts["input_transform"] = getattr(transforms, name)
        columns = {"columns": likelihood.columns} if hasattr(likelihood, "columns") else {}
        transform = build_part(parts["input_transform"], "input_transform", **sizes, **columns)
        in_shape = getattr(transform, "out_shape", self.event_shape)
        count = count_network_covariates(self.covariate_dim, likelihood)
        # A prior that uses the encoder has pseudo-inputs as the encoder sees them.
        sizes |= {"event_shape": in_shape, "covariate_dim": count}
        self.prior = build_part(parts["prior"], "prior", **sizes)
        sizes["variables"] = getattr(self.prior, "variables", 1)
        self.posterior = build_part(parts["posterior"], "posterior", **sizes)
        self.likelihood = likelihood
        check_parts(self)
        self.encoder = build_part(
            parts["encoder"],
            "encoder",
            in_shape=in_shape,
            out_shape=self.posterior.feature_shape,
            covariate_dim=count,
        )
        self.decoder = build_part(
            parts["decoder"],
            "decoder",
            in_shape=torch.Size((self.latent_dim,)),
            out_shape=self.likelihood.feature_shape,
            covariate_dim=count,
        )
        self.input_transform = transform
        check_parts(self)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Raises a ``ValueError``: the caller has to choose one of the two programs of a VAE."""
        raise ValueError(
            "Expected a call of vae.model or vae.guide, which are Pyro programs, or of "
            "vae.encode, vae.decode, vae.reconstruct or vae.sample, got a call of the VAE itself"
        )

    @property
    def name(self) -> str:
        """The prefix of sites and parameters; assign to it to rename a copy."""
        return self.model.scope.name

    @name.setter
    def name(self, name: str) -> None:
        self.model.scope.rename(name)

    @guard_process_state
    def encode(
        self, x: Tensor, covariates: Tensor | None = None, mask: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Returns q(z given x), of the batch shape of ``x``.

        Within another Pyro program its parameters are trained like those of :attr:`guide`. ``mask``
        is True where a value is observed, of the shape of ``x`` or of its batch. ``x`` may lie
        outside of the likelihood's support, as means do; :meth:`check` refuses that.

        Raises:
            ValueError: If ``x`` is not a tensor of the weights' dtype, has no rows, does not end in
                the event shape, or has NaN or infinite values; or the covariates do not fit.
        """
        check_input("x", x, self.guide)
        if mask is not None:
            mask = expand_mask(mask, x, self.event_shape)
            x = fill_missing(x, mask, self.guide.fill_value)
        self.guide.validate(x)
        self.guide.scope.announce_parameters(self.guide)
        return self.guide.encode(x, covariates, mask)

    @guard_process_state
    def decode(self, z: Tensor, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(x given z), of the batch shape of ``z``.

        Within another Pyro program its parameters are trained like those of :attr:`model`.

        Raises:
            ValueError: If ``z`` is not a tensor of the weights' dtype, has no rows or does not end
                in ``latent_dim``, or the covariates do not fit.
        """
        check_input("z", z, self.model)
        self.model.scope.announce_parameters(self.model)
        return self.model.decode(z, covariates)

    @guard_process_state
    def prior_distribution(self, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(z), of batch shape ``()`` or that of ``covariates``."""
        self.guide.scope.announce_parameters(self.guide)
        return self.guide.prior_distribution(covariates)

    @guard_process_state
    @torch.no_grad()
    def sample(self, n: int = 1, *, covariates: Tensor | None = None, mean: bool = False) -> Tensor:
        """Draws data from the model, in evaluation mode.

        Arguments:
            n: The number of draws; with ``covariates``, for each of their rows.
            covariates: Covariates, ``(*batch, covariate_dim)``.
            mean: Whether to return the mean of p(x given z) instead of a draw from it.

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
        self,
        x: Tensor,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        mean: bool = True,
    ) -> Tensor:
        """Encodes and decodes data, in evaluation mode.

        Arguments:
            x: Data of shape ``(*batch, *event_shape)``.
            covariates: Covariates, ``(*batch, covariate_dim)``.
            mask: As in :meth:`encode`. Missing values are reconstructed too.
            mean: Whether to use the means of q and p, instead of draws from both. On spheres and
                one-hot vectors it is the mode of q.

        Raises:
            ValueError: As in :meth:`encode`, or if covariates have batch dimensions that ``x``
                lacks.
        """
        with eval_mode(self):
            q = self.encode(x, covariates, mask)
            batch = x.shape[: x.dim() - len(self.event_shape)]
            if batch and covariates is not None and q.batch_shape != batch:
                raise ValueError(
                    f"Expected covariates of shape {(*batch, self.covariate_dim)}, got "
                    f"{tuple(covariates.shape)}"
                )
            support = getattr(self.posterior, "support", None)
            p = self.decode(find_centre(q, support) if mean else q.sample(), covariates)
            return p.mean if mean else p.sample()

    @guard_process_state
    @torch.no_grad()
    def interpolate(
        self,
        start: Tensor,
        end: Tensor,
        steps: int = 8,
        *,
        covariates: Tensor | None = None,
        mask: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Decodes the line between the embeddings of data, in evaluation mode.

        Arguments:
            start: Data of shape ``(*batch, *event_shape)``.
            end: Data of the same shape.
            steps: The number of points on the line, with both ends.
            covariates: Covariates of all points, ``(*batch, covariate_dim)``.
            mask: The masks of observed values of start and end; or ``None``.

        Returns:
            The means of p(x given z), ``(steps, *batch, *event_shape)``.

        Raises:
            ValueError: As in :meth:`encode`, or if ``steps`` is less than 2.
        """
        steps = check_size("steps", steps, least=2)
        masks = (None, None) if mask is None else mask
        support = getattr(self.posterior, "support", None)
        with eval_mode(self):
            z = [
                find_centre(self.encode(x, covariates, observed), support)
                for x, observed in zip((start, end), masks, strict=True)
            ]
            weights = torch.linspace(0, 1, steps, dtype=z[0].dtype, device=z[0].device)
            line = [interpolate_points(z[0], z[1], weight, support) for weight in weights]
            return self.decode(torch.stack(line), covariates).mean

    def check(
        self, x: Tensor, mask: Tensor | None = None, covariates: Tensor | None = None
    ) -> None:
        """Checks data before training or evaluation.

        Raises:
            ValueError: If the shape does not fit, a value is NaN but not masked, values lie outside
                the likelihood's support, or covariates are missing, not finite, or do not have one
                row for each row of ``x``.
        """
        if is_sparse(x):
            check_sparse_rows(x, mask, self.model.check)
        else:
            self.model.check(x, mask)
        self.model.check_covariates(covariates)
        has_size_factor = self.model.uses_size_factor
        check_rows_of_covariates(covariates, len(x), has_size_factor=has_size_factor)

    @guard_process_state
    @torch.no_grad()
    def initialize(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Initializes data-dependent parts from training rows; a second call changes nothing.

        Each part with a method ``initialize`` is initialized by it. Input transform and likelihood
        get the data, with NaN for missing values; the other parts get the input of the encoder.

        Arguments:
            x: Training rows, ``(N, *event_shape)``.
            mask: True where a value is observed; ``None`` for all values but NaN.

        Raises:
            ValueError: If the data cannot be scored, or no value is observed.
        """
        initialize_parts(self, x, mask)

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
        r"""Calibrates the likelihood on training data, for evaluation.

        Passes the mean of :math:`\mathbb{E}_{q(z \mid x)} (x_i - \mu_i(z))^2` to the likelihood's
        method ``calibrate``, if it has one.

        Raises:
            ValueError: If the data cannot be scored, or ``batch_size`` is not positive.
            FloatingPointError: If the mean, or a parameter of a distribution, is not finite.
        """
        batch_size = check_size("batch_size", batch_size, least=1)
        self.check(x, mask, covariates)
        calibrate = getattr(self.likelihood, "calibrate", None)
        if calibrate is None:
            return
        observed = None if mask is None else expand_mask(mask, x, self.event_shape)
        total = torch.zeros((), device=x.device, dtype=torch.float64)
        count = x.numel() if observed is None else int(observed.sum())
        with eval_mode(self), explain_invalid_parameters("q(z given x) or p(x given z)"):
            for start in range(0, len(x), batch_size):
                batch = slice(start, start + batch_size)
                seen = None if observed is None else observed[batch]
                c = None if covariates is None else covariates[batch]
                rows = take_rows(x, batch)
                z = self.encode(rows, c, seen).sample()
                error = fill_missing(rows, seen) - self.decode(z, c).mean
                total += fill_missing(error**2, seen).double().sum()
        # Without observed values the mean is not defined.
        if count:
            variance = total / count
            if not bool(variance.isfinite()):
                raise FloatingPointError(f"The mean squared error of x is not finite: {variance}")
            calibrate(variance)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets a part in model and guide too, so that the three never differ."""
        super().__setattr__(name, value)
        if name in PARTS and "guide" in self.__dict__:
            check_parts(self)
            self.recipe["parts"][name] = None
            for program in (self.model, self.guide):
                program.set_parts(self._get_parts())

    def __getstate__(self) -> dict[str, Any]:
        """Omits the weak references that Pyro's store leaves on parameters."""
        return get_state_without_store(self)

    def extra_repr(self) -> str:
        """Shows sizes and name."""
        return (
            f"event_shape={tuple(self.event_shape)}, latent_dim={self.latent_dim}, "
            f"name={self.name!r}"
        )
