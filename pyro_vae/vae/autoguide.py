"""A VAE's guide as a component of Pyro's automatic guides."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_vae.masking import masked
from pyro_vae.networks import eval_mode
from pyro_vae.vae.model_guide import told_apart
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import describe_value

__all__ = ["AutoVAEGuide"]

_GIVEN = ("x", "covariates", "mask")


def _first_argument(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Returns the first argument of a model."""
    return x


class AutoVAEGuide(AutoGuide):
    r"""The amortized posterior of a VAE, beside automatic guides for the rest of a larger model.

    .. math:: q(w, z \mid x) = q(w) \prod_n q(z_n \mid x_n)

    A component of :class:`pyro.infer.autoguide.AutoGuideList`, or a guide by itself where ``z`` is
    the only latent variable. It samples the one site of a VAE's ``z``, within the plates in which
    the model calls ``vae.model``, and lets the list open them: a plain function cannot, for the
    list has opened each by then. Where a plate subsamples, the encoder is given the rows that the
    model draws.

    All of the VAE is a submodule, its decoder included, so that an optimizer of PyTorch's trains it
    by ``guide.parameters()`` where the model is a function. Pyro's store knows its parameters by
    the VAE's own name alone.

    As all automatic guides, it learns the plates from the first call. Where the size of a plate
    changes from batch to batch, give ``create_plates`` to the list.

    Arguments:
        model: The whole model, with the arguments that the guide will be called with; other sites
            are ignored.
        vae: A VAE whose model ``model`` calls.
        inputs: Maps the arguments of the model to what the encoder is given: ``x``, of shape
            ``(*batch, *event_shape)``; ``None``, for the prior; or a dict of some of ``x``,
            ``covariates`` and ``mask``. Each has either all rows of a plate that subsamples, or
            those of the subsample. Default: the first argument is ``x``.
        suffix: That of the call of ``vae.model``, if it has one: a component for each call.
        create_plates: As in :class:`pyro.infer.autoguide.AutoNormal`, if it stands by itself.

    Raises:
        ValueError: When it is made, if ``vae`` is no VAE; when it is called, if the model has no
            such latent site, or an input has neither all rows nor those of the subsample.
        NotImplementedError: By ``median`` and ``quantiles``, if the posterior has no quantiles in
            closed form.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyro.infer.autoguide import AutoGuideList, AutoNormal
        >>> vae = VAE(5, latent_dim=2, plate=None)
        >>> def model(x, y):
        ...     w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     with pyro.plate("rows", len(x), subsample_size=10) as rows:
        ...         z = vae.model(x[rows])
        ...         pyro.sample("y", dist.Normal((z * w).sum(-1), 1.0), obs=y[rows])
        >>> guide = AutoGuideList(model)
        >>> guide.append(AutoNormal(poutine.block(model, expose=["w"])))
        >>> guide.append(AutoVAEGuide(model, vae))
        >>> x, y = torch.ones(30, 5), torch.zeros(30)
        >>> {name: tuple(value.shape) for name, value in guide(x, y).items()}
        {'w': (2,), 'vae.z': (10, 2)}
        >>> guide.median(x, y)["vae.z"].shape
        torch.Size([30, 2])
    """

    vae: VAE

    def __init__(
        self,
        model: Callable[..., Any],
        vae: VAE,
        *,
        inputs: Callable[..., Tensor | Mapping[str, Tensor | None] | None] = _first_argument,
        suffix: str | int | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if not callable(model):
            raise ValueError(f"Expected model to be callable, got {describe_value(model)}")
        super().__init__(model, create_plates=create_plates)
        if not isinstance(vae, VAE):
            raise ValueError(f"Expected vae to be a VAE, got {type(vae).__name__}")
        self.vae = vae
        self.inputs = inputs
        self.suffix = suffix

    @property
    def site(self) -> str:
        """The name of the site that is sampled."""
        return self._part().guide.site("z", self.suffix)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples z, given the arguments of the model; returns it by the name of its site."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        guide = self._part().guide
        guide.scope.announce(guide)
        with told_apart(), ExitStack() as stack:
            around = [plates[frame.name] for frame in self._frames]
            for plate in around:
                stack.enter_context(plate)
            # Only now every plate has its dimension.
            x, covariates, mask = self._given(around, *args, **kwargs)
            x, rows, _ = guide.observed(x, mask)
            stack.enter_context(masked(rows))
            return {self.site: guide.draw(x, covariates, self.suffix)}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Tensor | list[float], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Returns quantiles of each element of z, in evaluation mode.

        Arguments:
            quantiles: Numbers between 0 and 1.
            args: The arguments of the model; all rows that are passed are encoded.
            kwargs: Likewise.

        Returns:
            By the name of the site, a tensor of shape ``(quantiles, *batch, latent_dim)``.
        """
        guide = self._part().guide
        x, covariates, mask = self._given((), *args, **kwargs)
        x, _, _ = guide.observed(x, mask)
        with eval_mode(self._part()):
            elements = _marginals(guide.distribution(x, covariates))
        levels = torch.as_tensor(quantiles, dtype=elements.mean.dtype, device=elements.mean.device)
        return {self.site: elements.icdf(levels.reshape(-1, *(1 for _ in elements.batch_shape)))}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the median of each element of z, of shape ``(*batch, latent_dim)``."""
        found = self.quantiles([0.5], *args, **kwargs)
        return {name: value.squeeze(0) for name, value in found.items()}

    def _part(self) -> VAE:
        """Returns the VAE; as an attribute Pyro would enter its parameters under a second name."""
        return cast(VAE, self._modules["vae"])

    def _prototype_hide_fn(self, msg: dict[str, Any]) -> bool:
        """Tells whether a site of the model is none that is sampled here."""
        return msg["name"] != self.site or msg["type"] != "sample" or msg["is_observed"]

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """Runs the model once, for the plates in which it calls the VAE."""
        super()._setup_prototype(*args, **kwargs)
        found: Any = self.prototype_trace
        if self.site not in found:
            self.prototype_trace = None
            raise ValueError(
                f"Expected model to have a latent site {self.site!r}, as it has where it calls "
                f"vae.model of this VAE with suffix={self.suffix!r}"
            )
        self._frames = found.nodes[self.site]["cond_indep_stack"]

    def _given(
        self, plates: Iterable[pyro.plate], *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns x, covariates and mask, as far as there are any: the rows that plates draw."""
        given = self.inputs(*args, **kwargs)
        given = given if isinstance(given, Mapping) else {"x": given}
        unknown = sorted(set(given) - set(_GIVEN))
        if unknown:
            raise ValueError(
                f"Expected inputs to return some of {list(_GIVEN)}, got also {unknown}"
            )
        x, covariates, mask = (given.get(name) for name in _GIVEN)
        event_dim = len(self._part().event_shape)
        single = mask is not None and x is not None and mask.dim() == x.dim()
        return (
            _rows_of(plates, "x", x, event_dim),
            _rows_of(plates, "covariates", covariates, 1),
            _rows_of(plates, "mask", mask, event_dim if single else 0),
        )


def _rows_of(
    plates: Iterable[pyro.plate], name: str, value: Tensor | None, event_dim: int
) -> Tensor | None:
    """Returns the rows of a tensor that plates draw, if it has all rows.

    Raises:
        ValueError: If it has neither all rows of a plate nor those of the subsample.
    """
    for plate in plates:
        dim = cast(int, plate.dim) - event_dim
        if value is None or value.dim() < -dim or value.shape[dim] in (1, plate.subsample_size):
            continue
        if value.shape[dim] != plate.size:
            raise ValueError(
                f"Expected {name} to have the {plate.size} rows of the plate {plate.name!r} at "
                f"dimension {dim}, or the {plate.subsample_size} of its subsample, got a tensor of "
                f"shape {tuple(value.shape)}: where batches differ in size, give create_plates to "
                f"the outermost guide"
            )
        value = value.index_select(dim, plate.indices.to(value.device))
    return value


def _marginals(q: dist.TorchDistribution) -> dist.TorchDistribution:
    """Returns the distributions of the single elements of a vector.

    Raises:
        NotImplementedError: If they are not known in closed form.
    """
    if isinstance(q, torch.distributions.MultivariateNormal):
        return dist.Normal(q.mean, q.stddev)
    inner = q.base_dist if isinstance(q, torch.distributions.Independent) else q
    if inner.event_shape or type(inner).icdf is torch.distributions.Distribution.icdf:
        raise NotImplementedError(
            f"Expected a posterior whose elements have quantiles in closed form, got {q}: draw "
            f"from the guide instead"
        )
    return inner
