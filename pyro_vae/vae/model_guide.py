"""The model and the guide of a VAE: Pyro functions over its parts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import InferDict
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyro_vae.conditional import Likelihood, Posterior, Prior
from pyro_vae.guard import guard_process_state
from pyro_vae.masking import (
    expand_mask,
    fill_missing,
    mask_elements,
    mask_rows,
    split_mask,
)
from pyro_vae.networks import apply_network, eval_mode
from pyro_vae.param_store import Scope
from pyro_vae.transforms import InputTransform
from pyro_vae.vae.input_checks import (
    can_check_values,
    check_covariates,
    check_dtype,
    check_layout_and_device,
    check_size_factor,
    check_trailing,
)
from pyro_vae.validation import check_size, check_tensor, to_plain_python

__all__ = [
    "Guide",
    "Model",
    "Parts",
    "Sizes",
    "explain_site_clash",
    "get_state_without_store",
    "transform_input",
]

_NO_BATCH = torch.Size()


class Sizes(NamedTuple):
    """The sizes shared by all parts of a VAE."""

    event_shape: torch.Size
    latent_dim: int
    covariate_dim: int


class Parts(NamedTuple):
    """The parts shared by model and guide."""

    prior: Prior
    posterior: Posterior
    likelihood: Likelihood
    encoder: nn.Module
    decoder: nn.Module
    input_transform: nn.Module


class _PyroProgram(nn.Module):
    """The base of model and guide: the parts that both need, and the plate over the batch."""

    prior: Prior
    posterior: Posterior
    encoder: nn.Module

    def __getstate__(self) -> dict[str, Any]:
        """Omits the weak references that Pyro's store leaves on parameters."""
        return get_state_without_store(self)

    def __init__(self, parts: Parts, sizes: Sizes, scope: Scope, plate: bool | None) -> None:
        super().__init__()
        self.scope = scope
        self.plate = plate
        self.event_shape, self.latent_dim, self.covariate_dim = sizes
        self.set_parts(parts)

    def set_parts(self, parts: Parts) -> None:
        """Registers the parts that this program needs."""
        self.prior = parts.prior
        self.fill_value = float(getattr(parts.likelihood, "fill_value", 0.0))
        self.uses_size_factor = bool(getattr(parts.likelihood, "uses_size_factor", False))
        self.input_dim = len(getattr(parts.input_transform, "out_shape", self.event_shape))

    def encode_input(
        self, x: Tensor, covariates: Tensor | None = None, *, frozen: bool = False
    ) -> dist.TorchDistribution:
        """Returns q(z given x) for inputs and covariates of the encoder."""
        # A posterior may demand several tensors of different shapes.
        shape: Any = self.posterior.feature_shape
        several = bool(shape) and isinstance(shape[0], tuple)
        features = apply_network(
            self.encoder, x, self.input_dim, covariates, frozen=frozen,
            num_outputs=len(shape) if several else None,
        )  # fmt: skip
        parts = features if several else (features,)
        for part, expected in zip(parts, shape if several else (shape,), strict=True):
            check_trailing("the encoder's output", part, torch.Size(expected))
        return self.posterior(*parts)

    def encode_in_eval_mode(
        self, x: Tensor, covariates: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Returns q(z given x) for encoder inputs, without an update of running statistics."""
        with eval_mode(self.encoder, self.posterior):
            return self.encode_input(x, covariates, frozen=True)

    def select_network_covariates(self, covariates: Tensor | None) -> Tensor | None:
        """Returns the covariates that prior and networks see, which lack the size factor."""
        if covariates is None or not self.uses_size_factor:
            return covariates
        return None if self.covariate_dim == 1 else covariates[..., :-1]

    def prior_distribution(self, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(z)."""
        self.check_covariates(covariates)
        uses_encoder = getattr(self.prior, "uses_encoder", False)
        covariates = self.select_network_covariates(covariates)
        return self.prior(covariates, encode=self.encode_in_eval_mode if uses_encoder else None)

    def check_covariates(self, covariates: Tensor | None, batch: torch.Size = _NO_BATCH) -> None:
        """Raises a ``ValueError`` if covariates are missing, unexpected or of another shape."""
        check_covariates(covariates, self.covariate_dim, batch, self)

    def check(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Raises a ``ValueError`` for data that cannot be scored."""
        if not isinstance(x, Tensor):
            check_tensor("x", x)
        check_layout_and_device("x", x, self)
        check_trailing("x", x, self.event_shape)
        if x.numel() == 0:
            raise ValueError(f"Expected x to have rows, got a tensor of shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(
                f"Expected x to be a floating-point tensor, got {x.dtype}: convert it, x.float()"
            )
        if mask is not None:
            x = fill_missing(x, expand_mask(mask, x, self.event_shape), self.fill_value)
        missing = torch.isnan(x)
        if bool(missing.any()):
            raise ValueError(
                f"Expected x to have no NaN, got {int(missing.sum())}: declare missing values by "
                f"mask, which is True where a value is observed"
            )
        if bool(torch.isinf(x).any()):
            raise ValueError(f"Expected x to be finite, got {int(torch.isinf(x).sum())} infinite")
        check_dtype("x", x, self)

    def validate(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Calls :meth:`check` where values can be read, and Pyro validates."""
        if can_check_values():
            self.check(x, mask)

    def prepare_data(
        self, x: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the data, without missing values, and the masks of rows and elements."""
        if x is not None:
            self.validate(x, mask)
        if mask is None:
            return x, None, None
        rows, elements = split_mask(mask, x, self.event_shape)
        return None if x is None else fill_missing(x, elements, self.fill_value), rows, elements

    def site(self, role: str, suffix: str | int | None) -> str:
        """Returns the name of a site of one call."""
        name = f"{self.scope.name}.{role}"
        if suffix is None:
            return name
        suffix = to_plain_python(suffix)
        if not isinstance(suffix, (str, int)) or isinstance(suffix, bool) or suffix == "":
            raise ValueError(
                f"Expected suffix to be a non-empty string or an integer, got {suffix!r}"
            )
        return f"{name}_{suffix}"

    @contextmanager
    def open_context(
        self,
        x: Tensor | None,
        rows: Tensor | None,
        covariates: Tensor | None,
        data_size: int | None,
        n: int,
        suffix: str | int | None,
    ) -> Iterator[None]:
        """Opens the plate over the batch, and masks its rows; explains a clash of site names."""
        with explain_site_clash(), self.open_plate(x, covariates, data_size, n, suffix):
            if rows is None:
                yield
            else:
                with mask_rows(rows):
                    yield

    def open_plate(
        self,
        x: Tensor | None,
        covariates: Tensor | None,
        data_size: int | None,
        n: int,
        suffix: str | int | None,
    ) -> AbstractContextManager:
        """Returns the plate over the batch, or a null context if the caller owns the plates."""
        # The usual case costs no call.
        n = n if type(n) is int and n >= 1 else check_size("n", n, least=1)
        if self.plate is None:
            if data_size is not None or n != 1:
                raise ValueError(
                    f"Expected neither data_size nor n with plate=None, because the caller's "
                    f"plates define both, got {data_size=}, {n=}"
                )
            return nullcontext()
        size = self.batch_size(x, covariates, n)
        name = self.site("data", suffix)
        if data_size is None:
            return pyro.plate(name, size, dim=-1)
        data_size = check_size("data_size", data_size, least=1)
        if data_size < size:
            raise ValueError(
                f"Expected data_size to be at least the batch's {size} rows, got {data_size}"
            )
        # The scale depends only on the number of rows, so their indices do not matter.
        return pyro.plate(name, data_size, subsample=torch.arange(size), dim=-1)

    def batch_size(self, x: Tensor | None, covariates: Tensor | None, n: int) -> int:
        """Returns the number of rows."""
        if x is not None:
            if x.dim() != len(self.event_shape) + 1:
                raise ValueError(
                    f"Expected x of shape (batch, {', '.join(map(str, self.event_shape))}), got "
                    f"{tuple(x.shape)}: for other batches build the VAE with plate=None and open "
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


class Model(_PyroProgram):
    """The generative model, p(z) p(x given z), as a Pyro function."""

    likelihood: Likelihood
    decoder: nn.Module

    def set_parts(self, parts: Parts) -> None:
        """Registers the generative parts, and the encoder only if the prior uses it."""
        super().set_parts(parts)
        self.decoder = parts.decoder
        self.likelihood = parts.likelihood
        if getattr(parts.prior, "uses_encoder", False):
            self.encoder = parts.encoder
            self.posterior = parts.posterior
        else:
            self._modules.pop("encoder", None)
            self._modules.pop("posterior", None)

    def decode(self, z: Tensor, covariates: Tensor | None = None) -> dist.TorchDistribution:
        """Returns p(x given z)."""
        check_trailing("z", z, torch.Size((self.latent_dim,)))
        self.check_covariates(covariates, z.shape[:-1])
        seen = self.select_network_covariates(covariates)
        features = apply_network(self.decoder, z, 1, seen)
        check_trailing("the decoder's output", features, self.likelihood.feature_shape)
        if self.uses_size_factor and covariates is not None:
            size = covariates[..., -1]
            if is_validation_enabled():
                check_size_factor(size)
            return self.likelihood(features, size)
        return self.likelihood(features)

    def check(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Raises a ``ValueError`` for data that cannot be scored."""
        super().check(x, mask)
        if mask is not None:
            x = fill_missing(x, expand_mask(mask, x, self.event_shape), self.fill_value)
        check_support = getattr(self.likelihood, "check", None)
        if check_support is not None:
            check_support(x)

    @guard_process_state
    def forward(
        self,
        x: Tensor | None = None,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        data_size: int | None = None,
        n: int = 1,
        suffix: str | int | None = None,
        infer: dict[str, Any] | None = None,
    ) -> Tensor:
        """Samples z, and samples or scores x; returns z."""
        x, rows, elements = self.prepare_data(x, mask)
        self.scope.announce_parameters(self)
        with self.open_context(x, rows, covariates, data_size, n, suffix):
            prior = self.prior_distribution(covariates)
            z = pyro.sample(self.site("z", suffix), prior, infer=_check_infer(infer))
            p = self.decode(z, covariates)
            if elements is not None:
                p = mask_elements(p, rows, elements)
            pyro.sample(self.site("x", suffix), p, obs=x)
        return z


class Guide(_PyroProgram):
    """The amortized posterior, q(z given x), as a Pyro function."""

    def set_parts(self, parts: Parts) -> None:
        """Registers the posterior, the encoder, and the prior for calls without data."""
        super().set_parts(parts)
        self.encoder = parts.encoder
        self.posterior = parts.posterior
        self.input_transform = parts.input_transform

    def encode(
        self, x: Tensor, covariates: Tensor | None = None, observed: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Returns q(z given x), with zeros for the encoder where a value is not observed."""
        check_trailing("x", x, self.event_shape)
        self.check_covariates(covariates, x.shape[: x.dim() - len(self.event_shape)])
        inputs = transform_input(self.input_transform, x, observed)
        return self.encode_input(inputs, self.select_network_covariates(covariates))

    @guard_process_state
    def forward(
        self,
        x: Tensor | None = None,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        data_size: int | None = None,
        n: int = 1,
        suffix: str | int | None = None,
        infer: dict[str, Any] | None = None,
    ) -> Tensor:
        """Samples z from the posterior, or from the prior if ``x`` is ``None``; returns z."""
        x, rows, elements = self.prepare_data(x, mask)
        # This detects another VAE of the same name, so it comes before any site.
        self.scope.announce_parameters(self)
        with self.open_context(x, rows, covariates, data_size, n, suffix):
            return self.sample_latent(x, covariates, suffix, infer, elements)

    def sample_latent(
        self,
        x: Tensor | None,
        covariates: Tensor | None,
        suffix: str | int | None = None,
        infer: dict[str, Any] | None = None,
        observed: Tensor | None = None,
    ) -> Tensor:
        """Samples z within the plates and masks that the caller has opened."""
        q = self.distribution(x, covariates, observed)
        return pyro.sample(self.site("z", suffix), q, infer=_check_infer(infer))

    def distribution(
        self, x: Tensor | None, covariates: Tensor | None, observed: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Returns the posterior, or the prior if ``x`` is ``None``."""
        if x is None:
            return self.prior_distribution(covariates)
        return self.encode(x, covariates, observed)


def transform_input(
    transform: Callable[[Tensor], Tensor], x: Tensor, observed: Tensor | None
) -> Tensor:
    """Returns encoder inputs, with zeros where a value is not observed."""
    if isinstance(transform, InputTransform):
        return transform.encode(x, observed)
    inputs = transform(x)
    if observed is None:
        return inputs
    expand = getattr(transform, "expand_mask", None)
    return fill_missing(inputs, observed if expand is None else expand(observed))


def _check_infer(infer: dict[str, Any] | None) -> InferDict | None:
    if infer is not None and not isinstance(infer, dict):
        raise ValueError(f"Expected infer to be a dict or None, got {infer!r}")
    return cast(InferDict | None, infer)


@contextmanager
def explain_site_clash() -> Iterator[None]:
    """Suggests ``suffix=`` for two calls in one trace; Pyro reports only the duplicate name."""
    try:
        yield
    except RuntimeError as error:
        # Pyro does not define a class for this error.
        if "Multiple sample sites named" not in str(error):
            raise
        raise ValueError(
            f"Expected calls of one VAE in one trace to have different values of suffix=, as in "
            f"vae.model(x, suffix=0), got the same twice: {error}"
        ) from error


def get_state_without_store(module: nn.Module) -> dict[str, Any]:
    """Returns a module's state, without the weak references of Pyro's store on parameters."""
    for parameter in module.parameters():
        vars(parameter).pop("unconstrained", None)
    return vars(module).copy()
